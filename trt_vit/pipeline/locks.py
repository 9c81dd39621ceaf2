"""One run at a time on one output, or several that have agreed to share it."""

from __future__ import annotations

import errno
import fcntl
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING

from trt_vit.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trt_vit.outputs import Output
    from trt_vit.parts import Part

_RUN = "run.lock"
_PLAN = "plan.lock"
_PART = "part-{}-of-{}.lock"
_HELD = (errno.EACCES, errno.EAGAIN)


@contextmanager
def hold(directory: Path, part: Part, output: Output) -> Iterator[None]:
    """Hold an output for one part of a run, so that no other process does the same shards.

    The locks are the kernel's (``flock``): they end with the process, however it ends.

    Args:
        directory: The run's journal.
        part: Which part; a run that is not divided holds all.
        output: Its output, for messages.

    Raises:
        OutputError: Another run is at work on it, or the file system has no locks.
    """
    with ExitStack() as stack:
        alone = part.count == 1
        if not stack.enter_context(_lock(directory / _RUN, shared=not alone, wait=False)):
            raise _busy(output, "another run is at work on it")
        if not alone:
            with planning(directory):  # so that of two that begin at once, the second sees the first
                _refuse_other_division(directory, part, output)
                own = directory / _PART.format(part.number, part.count)
                if not stack.enter_context(_lock(own, shared=False, wait=False)):
                    raise _busy(output, f"part {part} of it is being done already")
        yield


@contextmanager
def planning(directory: Path) -> Iterator[None]:
    """Wait until no other process reads or changes what all parts of a run share, and hold that.

    Raises:
        OutputError: The file system has no locks.
    """
    with _lock(directory / _PLAN, shared=False, wait=True):
        yield


def _refuse_other_division(directory: Path, part: Part, output: Output) -> None:
    for file in directory.glob(_PART.format("*", "*")):
        if file.name.endswith(f"-of-{part.count}.lock"):
            continue
        with _lock(file, shared=False, wait=False) as free:
            if not free:
                raise _busy(output, f"it is being done in {file.stem.rpartition('-')[2]} parts, not in {part.count}")


@contextmanager
def _lock(file: Path, *, shared: bool, wait: bool) -> Iterator[bool]:
    """Take a lock, and give whether it could be taken.

    The file is an object, not a descriptor: one that an interrupt makes nobody's is closed, and so is not locked.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe may block, and a directory stays in the way
            raise OutputError(f"cannot lock {file}: it is not a file", hint="remove it")
        stream = file.open("a+b")
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror}", hint="choose another place with -o") from error
    with stream:
        yield _take(stream, file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def _take(stream: IO[bytes], file: Path, operation: int) -> bool:
    try:
        fcntl.flock(stream, operation)
    except OSError as error:
        if error.errno in _HELD:
            return False
        message = f"cannot lock {file}: {error.strerror}"
        raise OutputError(message, hint="choose a file system that has locks with -o") from error
    return True


def _busy(output: Output, why: str) -> OutputError:
    return OutputError(f"cannot write {output}: {why}", hint="wait for it, or choose another file with -o")
