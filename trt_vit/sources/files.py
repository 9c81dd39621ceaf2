"""Files, on a disk or behind a URL, as the shards see them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from trt_vit.errors import EnvironmentFault, ImageError
from trt_vit.images.decode import check_file_size, open_regular
from trt_vit.images.source import SUFFIXES
from trt_vit.sources import remote
from trt_vit.sources.faults import RemoteError, RemoteMissingError, RemoteOutageError
from trt_vit.sources.urls import public_url

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trt_vit.images.limits import DecodeLimits
    from trt_vit.outputs import Output


class File(Protocol):
    """One file."""

    @property
    def name(self) -> str:
        """What rows and messages call it."""
        ...

    def stamp(self) -> str:
        """Return what changes when it is written."""
        ...

    def size(self) -> int | None:
        """Return how many bytes it has, or None where nothing tells.

        Raises:
            OSError: It is not there.
        """
        ...

    def open(self) -> IO[bytes]:
        """Open it to be read from its beginning to its end, by one thread.

        Raises:
            OSError: It cannot be opened; reading raises it too.
        """
        ...

    def read_part(self, start: int, count: int) -> bytes:
        """Read ``count`` bytes from ``start`` on, or as many as there are. Several threads may.

        Raises:
            OSError: They cannot be read.
        """
        ...

    def is_output(self, output: Output) -> bool:
        """Tell whether it is the file that an output is to replace."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on a disk.

    Attributes:
        name: Its path.
    """

    name: str

    def stamp(self) -> str:
        """See ``File.stamp``; a dash where there is no such file."""
        try:
            status = os.stat(self.name)  # noqa: PTH116 - a Path for each of a million files costs more than the call
        except (OSError, ValueError):
            return "-"
        return f"{status.st_size} {status.st_mtime_ns}"

    def size(self) -> int:
        """See ``File.size``."""
        return Path(self.name).stat().st_size

    def open(self) -> IO[bytes]:
        """See ``File.open``. A FIFO or a device is never waited for."""
        descriptor = self._open()
        return os.fdopen(descriptor, "rb")

    def read_part(self, start: int, count: int) -> bytes:
        """See ``File.read_part``."""
        descriptor = self._open()
        try:
            return os.pread(descriptor, count, start)
        finally:
            os.close(descriptor)

    def is_output(self, output: Output) -> bool:
        """See ``File.is_output``."""
        return replaces_any(output, (self.name,))

    def _open(self) -> int:
        try:
            return open_regular(self.name)
        except ImageError as error:  # here it is no image's
            raise OSError(str(error)) from error


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind a URL, which is also an ``Item``.

    Attributes:
        url: Its URL, with whatever it takes to read it.
        length: Bytes it has, or None where nothing tells.
        mark: What changes when it is written; empty where it was not asked for yet, a dash where nothing tells.
    """

    url: str = field(repr=False)
    length: int | None = None
    mark: str = ""

    @property
    def name(self) -> str:
        """See ``Item.name``: its URL without secrets."""
        return public_url(self.url)

    def read(self, limits: DecodeLimits) -> bytes:
        """See ``Item.read``.

        Raises:
            ImageError: It cannot be read.
            EnvironmentFault: Its server fails.
        """
        check_file_size(self.length or 0, limits)
        try:
            data = remote.read_whole(self.url, self.length, limits.file_bytes)
        except OSError as error:
            refuse_outage(self, error)
            raise ImageError(f"cannot read the file: {error}") from error
        if len(data) > limits.file_bytes:
            raise ImageError(f"file has more bytes than the limit of {limits.file_bytes}")
        return data

    def stamp(self) -> str:
        """See ``File.stamp``."""
        return self.mark

    def size(self) -> int | None:
        """See ``File.size``."""
        return self.length

    def open(self) -> IO[bytes]:
        """See ``File.open``."""
        return remote.open_reading(self.url)

    def read_part(self, start: int, count: int) -> bytes:
        """See ``File.read_part``."""
        return remote.read_part(self.url, start, count)

    def is_output(self, output: Output) -> bool:
        """See ``File.is_output``."""
        return not isinstance(output, Path) and output.name == self.name


def replaces_any(output: Output, paths: Iterable[str]) -> bool:
    """Tell whether an output that is there is one of these files, whatever it is called: either may be a link.

    A million paths are asked about, and each call costs. So where the output is a file of its own, with one name that
    is none of an image's, only paths that end like it are looked at.
    """
    if not isinstance(output, Path) or (place := _identity(str(output))) is None:
        return False
    suffix = output.suffix
    if suffix and suffix.lower() not in SUFFIXES and not output.is_symlink() and output.stat().st_nlink == 1:
        paths = (path for path in paths if path.endswith(suffix))
    return any(_identity(path) == place for path in paths)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - as above
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def refuse_outage(file: File, error: OSError) -> None:
    """End the run where a server fails, or the way to it: nothing is known of the file then, and a row would stay.

    What says something about that one file, such as that it is not there or may not be read, stays as it is: that is an
    error row. So does what a disk says.

    Raises:
        EnvironmentFault: It is such an error.
    """
    if isinstance(error, RemoteOutageError):
        raise _unreadable(file, error) from error


def refuse_to_guess(file: File, error: OSError) -> None:
    """End the run where a connection breaks in a file of many images, of whose others nothing is known.

    Without them the shard must not be taken for done. What a disk says of a file, and that a file is not there, stays
    as it is: that is an error row.

    Raises:
        EnvironmentFault: It is such an error.
    """
    if isinstance(error, RemoteError) and not isinstance(error, RemoteMissingError):
        raise _unreadable(file, error) from error


def _unreadable(file: File, error: OSError) -> EnvironmentFault:
    message = f"cannot read {file.name}: {reason_of(error)}"
    return EnvironmentFault(message, hint="run the command again: it goes on where it ended")


def reason_of(error: OSError) -> str:
    """Return why a file cannot be read, on one line."""
    return " ".join((error.strerror or str(error) or type(error).__name__).split())[:200]
