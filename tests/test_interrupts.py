"""What signals do to a command; that they lose no row is tested in tests/e2e/test_faults.py."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

CODE = """
import os, signal, sys
from trt_vit.interrupts import install
number = int(sys.argv[1])
if sys.argv[2] == "ignored":
    signal.signal(number, signal.SIG_IGN)
install()
try:
    os.kill(os.getpid(), number)
except BaseException as error:
    print(type(error).__name__)
else:
    print("nothing")
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize(
    ("number", "before", "found"),
    [
        (signal.SIGINT, "handled", "KeyboardInterrupt"),
        (signal.SIGINT, "ignored", "nothing"),
        (signal.SIGTERM, "handled", "Terminated"),
        (signal.SIGTERM, "ignored", "nothing"),
    ],
)
def test_a_signal_that_was_ignored_stays_so(number: signal.Signals, before: str, found: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(number.value), before], check=True, capture_output=True, text=True
    )
    assert done.stdout == f"{found}\n"
