"""How a command ends that is asked to: what is under way is finished where there is time for it, and then it ends.

SIGINT (Ctrl-C) is Python's KeyboardInterrupt, SIGTERM is ``Terminated``. The first lets work under way finish. A
second SIGINT, or the end of the time that SIGTERM leaves, ends the process wherever it is: what is on disk by then is
whole or not there, so nothing needs a clean end.

Python's handlers run in the main thread, between two of its instructions. Where that thread is stuck in a library, they
never do, so the time is kept by another thread, which the interpreter wakes as soon as a signal has come.
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
"""Seconds from a second SIGINT to the end, or after a first one from the end of the main thread to the process's."""


class Terminated(BaseException):
    """SIGTERM, on its way up: not an Exception, so that only the command line ends it."""


_asked: list[int] = []


def exit_code(code: int) -> int:
    """Return how a command ends that ended with ``code``: of a signal, a library may have made an error of its own."""
    return _asked[-1] if code and _asked else code


def install() -> None:
    """Handle both signals, from here on, as described above. Call it once, in the main thread.

    What is ignored when the command starts stays so: a shell's jobs in the background are started that way.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_keep_time, args=[reader], name="interrupts", daemon=True).start()
    for number, handler in ((signal.SIGINT, _interrupt), (signal.SIGTERM, _terminate)):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _keep_time(signals: int) -> None:
    """Read the number of each signal as it comes, and see to it that the process ends in time."""
    interrupts = 0
    while True:
        number = os.read(signals, 1)[0]
        interrupts += number == signal.SIGINT
        if number == signal.SIGTERM:
            _leave_within(TERM_SECONDS, EXIT_TERMINATED)
        elif interrupts > 1:
            _leave_within(ABORT_SECONDS, EXIT_INTERRUPTED)
        else:
            threading.Thread(target=_leave_after_main, daemon=True).start()


def _leave_after_main() -> None:
    """End the process when the main thread is through: an interrupt may have hit another's start, which then hangs."""
    threading.main_thread().join()
    _leave_within(ABORT_SECONDS, EXIT_INTERRUPTED)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, _abort)
    _asked.append(EXIT_INTERRUPTED)
    raise KeyboardInterrupt


def _abort(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _asked.append(EXIT_TERMINATED)
    raise Terminated


def _leave_within(seconds: float, code: int) -> None:
    """End the process after a time, even if it is stuck in a library by then."""
    timer = threading.Timer(seconds, os._exit, [code])
    timer.daemon = True
    timer.start()
