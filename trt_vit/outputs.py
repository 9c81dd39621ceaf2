"""Files that a command leaves for its user: whole under their name, or not there at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from trt_vit.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def open_whole(output: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``output`` that takes its name when the block ends without an error.

    Whoever finds a file under that name finds all of it, on disk. Missing directories are made; a symbolic link stays,
    and what it points to is replaced.

    Raises:
        OutputError: The file cannot be written.
    """
    place = Path(os.path.realpath(output))
    partial, stream = _open_partial(place)
    try:
        yield stream
        with naming(output):
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
            partial.replace(place)
    finally:
        with contextlib.suppress(OSError):  # what could not be written here is on its way up already
            stream.close()
        partial.unlink(missing_ok=True)


@contextmanager
def naming(output: Path) -> Iterator[None]:
    """Say of a failure to write in a ``with`` block which output it was."""
    try:
        yield
    except OSError as error:
        raise _unwritable(output, error) from error


def _open_partial(output: Path) -> tuple[Path, IO[bytes]]:
    if output.is_dir():
        raise OutputError(f"cannot write {output}: it is a directory", hint="name a file in it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent)
    except (OSError, ValueError) as error:
        raise _unwritable(output, error) from error
    umask = os.umask(0)
    os.umask(umask)
    os.fchmod(handle, 0o666 & ~umask)
    return Path(name), os.fdopen(handle, "wb")


def _unwritable(output: Path, error: OSError | ValueError) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error)
    return OutputError(
        f"cannot write {output}: {reason}", hint="choose a place with room that you can write to with -o"
    )


def printable(path: str) -> str:
    r"""Return a path as text that UTF-8 can hold: a byte that is not text becomes ``\xNN``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
