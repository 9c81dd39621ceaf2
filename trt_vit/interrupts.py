"""How a command ends that is asked to: what is under way is finished where there is time for it, and then it ends.

SIGINT (Ctrl-C) is Python's KeyboardInterrupt, SIGTERM is ``Terminated``. The first lets work under way finish. A
second SIGINT, or the end of the time that SIGTERM leaves, ends the process wherever it is: what is on disk by then is
whole or not there, so nothing needs a clean end.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, NoReturn

from trt_vit.errors import EXIT_INTERRUPTED, EXIT_TERMINATED

if TYPE_CHECKING:
    from types import FrameType

TERM_SECONDS = 10.0
"""Seconds from SIGTERM to the end. Schedulers send SIGKILL after 30, as a rule."""

ABORT_SECONDS = 3.0
"""Seconds from a second SIGINT to the end."""


class Terminated(BaseException):
    """SIGTERM, on its way up: not an Exception, so that only the command line ends it."""


def install() -> None:
    """Handle both signals, from here on, as described above. Call it once, in the main thread."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _terminate)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, _abort)
    raise KeyboardInterrupt


def _abort(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _leave_within(ABORT_SECONDS, EXIT_INTERRUPTED)
    raise KeyboardInterrupt


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _leave_within(TERM_SECONDS, EXIT_TERMINATED)
    raise Terminated


def _leave_within(seconds: float, code: int) -> None:
    """End the process after a time, even if it is stuck in a library by then."""
    timer = threading.Timer(seconds, os._exit, [code])
    timer.daemon = True
    timer.start()
