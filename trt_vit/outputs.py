"""Files that a command leaves for its user: whole under their name, or not there at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, TypeAlias

from trt_vit.errors import OutputError
from trt_vit.sources import remote
from trt_vit.sources.urls import is_url, path_of, public_url, scheme_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class RemoteOutput:
    """An output behind a URL.

    Attributes:
        url: Its URL, with whatever it takes to write it.
    """

    url: str = field(repr=False)

    @property
    def name(self) -> str:
        """What messages call it: its URL without secrets."""
        return public_url(self.url)

    @property
    def suffix(self) -> str:
        """The suffix of its name, as a path has it."""
        return PurePosixPath(path_of(self.url)).suffix

    def __str__(self) -> str:
        return self.name


Output: TypeAlias = Path | RemoteOutput

_PARTIAL = ".partial"
_RANDOM = 8
"""Characters that tempfile puts into a name."""


def parse_output(text: str) -> Output:
    """Return what a path or URL names. A ``Path`` would make one slash of a URL's two."""
    if not is_url(text):
        return Path(text)
    return Path(text.partition("://")[2]) if scheme_of(text) in {"file", "local"} else RemoteOutput(text)


def size_of(output: Output) -> int | None:
    """Return an output's size, or None where it is not there.

    Raises:
        OutputError: That cannot be told.
    """
    with naming(output):
        if isinstance(output, RemoteOutput):
            return remote.size_of(output.url)
        try:
            return output.stat().st_size
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None


@contextmanager
def open_whole(output: Output) -> Iterator[IO[bytes]]:
    """Open a file that takes the name of ``output`` when the block ends without an error.

    Whoever finds a file under that name finds all of it, on disk. Missing directories are made; a symbolic link stays,
    and what it points to is replaced. Until then a file on a disk is a temporary one beside it, and one behind a URL is
    held back by its server.

    Raises:
        OutputError: The file cannot be written.
    """
    if isinstance(output, RemoteOutput):
        with naming(output), remote.open_writing(output.url) as stream:
            yield stream
        return
    place = Path(os.path.realpath(output))
    partial, stream = _open_partial(place)
    try:
        yield stream
        with naming(output):
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
            partial.replace(place)
            _sync_directory(place.parent)
    finally:
        with contextlib.suppress(OSError):  # what could not be written here is on its way up already
            stream.close()
        partial.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Have a name in a directory survive a power failure, where the file system can."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_long_name(output: Path) -> None:
    """Refuse an output whose name leaves no room for that of the temporary file beside it.

    Raises:
        OSError: It does not.
    """
    place = Path(os.path.realpath(output))
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        place.with_name(f".{place.name}.{'x' * _RANDOM}{_PARTIAL}").lstat()


@contextmanager
def naming(output: Output) -> Iterator[None]:
    """Say of a failure to write in a ``with`` block which output it was."""
    try:
        yield
    except OSError as error:
        raise _unwritable(output, error) from error


def _open_partial(output: Path) -> tuple[Path, IO[bytes]]:
    if output.is_dir():
        raise OutputError(f"cannot write {output}: it is a directory", hint="name a file in it")
    if output.exists() and not output.is_file():
        raise OutputError(f"cannot write {output}: it is not a file", hint="name another")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{output.name}.", suffix=_PARTIAL, dir=output.parent)
    except (OSError, ValueError) as error:
        raise _unwritable(output, error) from error
    umask = os.umask(0)
    os.umask(umask)
    os.fchmod(handle, 0o666 & ~umask)
    return Path(name), os.fdopen(handle, "wb")


def _unwritable(output: Output, error: OSError | ValueError) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error)
    return OutputError(
        f"cannot write {output}: {reason}", hint="choose a place with room that you can write to with -o"
    )


def printable(path: str) -> str:
    r"""Return a path as text that UTF-8 can hold: a byte that is not text becomes ``\xNN``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
