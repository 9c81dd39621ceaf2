"""Files behind URLs, by fsspec: found, told apart from what they were, read and written.

Decode threads read at the same time. fsspec gives each of them a file system of its own where these are not made for
threads, and one for all where they are: these run on an event loop in a thread of fsspec's.
"""

from __future__ import annotations

import io
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, cast

from trt_vit.errors import EnvironmentFault, UsageError
from trt_vit.sources.faults import RemoteError, RemoteMissingError, failures, patiently
from trt_vit.sources.urls import is_web, public_url, refuse_chained, scheme_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from typing_extensions import Buffer

_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface-hub",
    "http": "aiohttp",
    "https": "aiohttp",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
}
"""What fsspec needs for a scheme."""

_MARKS = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "xet_hash", "blob_id", "generation"),
    *("LastModified", "last_modified", "Last-Modified", "mtime", "modified", "modify", "updated", "created"),
)
"""What file systems call that which changes when a file is written, the most certain first."""

_PIECE = 1 << 20


def connect(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and what it calls the file.

    Raises:
        EnvironmentFault: A package is missing.
        UsageError: The scheme is unknown, or the URL is chained.
        RemoteError: The file system cannot be reached.
    """
    refuse_chained(url)
    scheme = scheme_of(url)
    try:
        import fsspec  # noqa: PLC0415 - only URLs need it
    except ImportError as error:
        message = f"cannot open {public_url(url)!r}: fsspec is not installed"
        raise EnvironmentFault(message, hint="pip install 'trt-vit[remote]'") from error
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        hint = f"pip install {package}" if package else str(error)
        message = f"cannot open {public_url(url)!r}: a package for {scheme}:// is missing"
        raise EnvironmentFault(message, hint=hint) from error
    except ValueError as error:
        message = f"cannot open {public_url(url)!r}: the scheme {scheme}:// is unknown"
        raise UsageError(message, hint=f"known are {', '.join(_PACKAGES)} and what else fsspec has") from error
    with failures():
        filesystem, path = fsspec.core.url_to_fs(url)
        return filesystem, path


def stamp_of(info: Mapping[str, Any]) -> str:
    """Return what changes when a file is written, from what its file system tells of it; empty where that is little."""
    size = info.get("size")
    mark = next((str(info[key]) for key in _MARKS if info.get(key)), None)
    return "" if size is None and mark is None else f"{size} {mark}"


def read_whole(url: str, size: int | None, limit: int) -> bytes:
    """Read a file; of one whose size is not known, or behind a web server, a byte more than ``limit`` at most.

    Raises:
        RemoteError: It cannot be read.
    """
    if size == 0:
        return b""  # there is no range of bytes to ask for
    return patiently(url, lambda: _read_whole(url, size, limit))


def _read_whole(url: str, size: int | None, limit: int) -> bytes:
    filesystem, path = connect(url)
    with failures():
        if not is_web(url):
            data: bytes = filesystem.cat_file(path, *(() if size else (0, limit + 1)))
            return data
        # A web server may send more than it was asked for. The size given here only keeps it from being asked for.
        with filesystem.open(path, "rb", block_size=0, size=size or 1) as stream:
            pieces, left = [], limit + 1
            while piece := stream.read(min(left, _PIECE)):
                pieces.append(piece)
                left -= len(piece)
            return b"".join(pieces)


def read_part(url: str, start: int, count: int) -> bytes:
    """Read ``count`` bytes from ``start`` on, or as many as there are.

    Raises:
        RemoteError: They cannot be read.
    """
    return patiently(url, lambda: _read_part(url, start, count))


def _read_part(url: str, start: int, count: int) -> bytes:
    filesystem, path = connect(url)
    with failures():
        if not is_web(url):
            data: bytes = filesystem.cat_file(path, start, start + count)
            return data
        with filesystem.open(path, "rb") as stream:
            stream.seek(start)
            part: bytes = stream.read(count)
            return part


def open_reading(url: str) -> IO[bytes]:
    """Open a file to read it from its beginning to its end. Only the opening thread may.

    Raises:
        RemoteError: It cannot be opened; reading raises it too.
    """
    return patiently(url, lambda: _open_reading(url))


def _open_reading(url: str) -> IO[bytes]:
    filesystem, path = connect(url)
    with failures():
        stream = filesystem.open(path, "rb")
    return cast("IO[bytes]", _Reader(stream))


class _Reader(io.RawIOBase):
    """One of fsspec's files, whose errors are ours."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        # fsspec's stream of a web page says that it can, and cannot: what it has no size of, it has no ranges of.
        return getattr(self._stream, "size", 0) is not None and bool(self._stream.seekable())

    def read(self, size: int = -1, /) -> bytes:
        with failures():
            data: bytes = self._stream.read(size)
            return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        with failures():
            self._stream.seek(offset, whence)
            return self.tell()

    def tell(self) -> int:
        position: int = self._stream.tell()
        return position

    def close(self) -> None:
        if not self.closed:
            super().close()
            with failures():
                self._stream.close()


@contextmanager
def open_writing(url: str) -> Iterator[IO[bytes]]:
    """Open a file that is there when the block ends without an error, and not otherwise.

    A store of objects takes its parts meanwhile, and shows it when it is complete. What a process that is killed has
    sent stays there unseen, until the store's own rules remove it.

    Raises:
        RemoteError: It cannot be written.
    """
    filesystem, path = connect(url)
    with failures():
        transaction = filesystem.transaction
        transaction.start()
    try:
        with failures():
            stream = filesystem.open(path, "wb")
        try:
            yield cast("IO[bytes]", _Writer(stream))
            with failures():
                stream.close()
        except BaseException:
            _let_go(stream)
            raise
    except BaseException:
        with suppress(RemoteError), failures():  # what ended the block is what is to be told
            transaction.complete(commit=False)
        raise
    with failures():
        transaction.complete(commit=True)


def _let_go(stream: Any) -> None:
    """Keep a file that is not whole from being sent when Python frees it."""
    if hasattr(stream, "forced"):
        stream.closed = True


class _Writer(io.RawIOBase):
    """One of fsspec's files, whose errors are ours. Closing it is left to who opened it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        with failures():
            self._stream.write(data)
            return memoryview(data).nbytes


def size_of(url: str) -> int | None:
    """Return a file's size, or None where there is no such file.

    Raises:
        RemoteError: That cannot be told.
    """
    filesystem, path = connect(url)
    try:
        with failures():
            filesystem.invalidate_cache()
            info = filesystem.info(path)
            return int(info["size"] or 0) if info["type"] == "file" else None
    except RemoteMissingError:
        return None
