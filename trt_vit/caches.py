"""The user's cache directory, which holds what can be made again: plans, measurements, compiled kernels."""

from __future__ import annotations

import errno
import functools
import glob
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trt_vit.errors import EnvironmentFault, OutputError
from trt_vit.reading import read_file

if TYPE_CHECKING:
    from collections.abc import Callable

_ABANDONED_SECONDS = 24 * 3600
"""Age of what a process that was killed has left half-written."""
_MARK = ".stored"
"""A file that every entry has: what lies beside the entries is none of ours."""
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile)
"""What reading a file can raise that is not what was stored."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class FileCache:
    """Files by key, each key's in a directory of its own.

    Attributes:
        directory: Where they lie; made when something is stored.
        limit_bytes: Bytes above which the longest unused are removed when something is stored.
    """

    directory: Path
    limit_bytes: int

    def get(self, key: str, load: Callable[[Path], _T | None]) -> _T | None:
        """Return what ``load`` makes of the files stored under ``key``.

        None if there are none, or if they are damaged, or where others than this user could have written them.
        """
        entry = self.directory / key
        try:
            if not (trusted(self.directory) and only_ours(entry)):
                return None
            found = load(entry)
        except _DAMAGED:
            return None
        with suppress(OSError):  # another user's cache is read all the same
            os.utime(entry)
        return found

    def put(self, key: str, save: Callable[[Path], None]) -> None:
        """Store the files that ``save`` writes to a directory, whole or not at all.

        A full or read-only disk, or a place that others can write to, is no error: they are made again then.
        """
        try:
            make_private(self.directory)
            with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=self.directory) as scratch:
                work = Path(scratch, key)
                work.mkdir(mode=0o700)
                save(work)
                (work / _MARK).touch()
                self._make_room(_size(work))
                shutil.rmtree(self.directory / key, ignore_errors=True)
                work.rename(self.directory / key)
        except OSError:
            return

    def _make_room(self, wanted: int) -> None:
        for entry in self.directory.glob(".*.partial"):
            if entry.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
        entries = [entry for entry in self.directory.iterdir() if (entry / _MARK).is_file()]
        sizes = {entry: _size(entry) for entry in entries}
        total = sum(sizes.values()) + wanted
        for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime):
            if total <= self.limit_bytes:
                return
            shutil.rmtree(entry, ignore_errors=True)
            total -= sizes[entry]


def _size(entry: Path) -> int:
    return sum(file.stat().st_size for file in entry.iterdir())


def digest_of(model: Path) -> str:
    """Return the SHA-256 of an ONNX file and of the external weights beside it."""
    digest = hashlib.sha256()
    for file in sorted(model.parent.glob(f"{glob.escape(model.name)}*")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def cache_directory() -> Path:
    """Return ``$XDG_CACHE_HOME/trt-vit``, or ``~/.cache/trt-vit``.

    Raises:
        EnvironmentFault: There is neither.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "trt-vit")
    except RuntimeError as error:  # a user whom the system does not know, and no HOME
        message = "there is no home directory for a cache"
        raise EnvironmentFault(message, hint="set XDG_CACHE_HOME or HOME") from error


def require_private(directory: Path) -> None:
    """Make a directory two levels below the cache directory that there is no doing without, for its owner alone.

    Raises:
        OutputError: It cannot be made, or others could write to it or to those above it.
    """
    hint = "set XDG_CACHE_HOME to a directory that only you can write to"
    try:
        _make_missing(directory)
        unsafe = [path for path in (directory.parent.parent, directory.parent, directory) if not only_ours(path)]
    except OSError as error:
        raise OutputError(
            f"cannot keep a journal in the cache {directory.parent}: {error.strerror}", hint=hint
        ) from error
    if unsafe:
        message = f"cannot keep a journal in the cache {unsafe[0]}: it is a link, another's, or others can write to it"
        raise OutputError(message, hint=f"make it a directory that only you can write to, or {hint}")


def make_private(directory: Path) -> None:
    """Make a directory, and those above it that are missing, for their owner alone: what is cached may be native code.

    Raises:
        OSError: It cannot be made, or is one that others can write to.
    """
    _make_missing(directory)
    if not trusted(directory):
        raise PermissionError(errno.EPERM, "others can write to it", str(directory))


def _make_missing(directory: Path) -> None:
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


def trusted(directory: Path) -> bool:
    """Tell whether what lies in a directory was put there by this user or root, and note it where it may not have been.

    The directory above counts too: whoever can write to it can put another in place. It may be one such as /tmp, where
    everyone can write but only move what is theirs.

    Raises:
        OSError: There is no such directory.
    """
    above = directory.absolute().parent
    if only_ours(directory) and (only_ours(above) or _is_shared(above)):
        return True
    _note(f"note: the cache {directory} is not used: it is a link, or others can write to it or to {above}")
    return False


@functools.cache
def _note(text: str) -> None:
    """Tell a person, once, what a process works without."""
    logging.getLogger(__name__).warning("%s", text)


def _is_shared(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid in {0, os.geteuid()} and bool(status.st_mode & stat.S_ISVTX)


def only_ours(path: Path) -> bool:
    """Tell whether a directory is one that nobody but its owner can write to, the owner being this user or root."""
    status = path.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    return stat.S_ISDIR(status.st_mode) and status.st_uid in {0, os.geteuid()} and not status.st_mode & others


def replace_file(path: Path, data: bytes) -> None:
    """Write a file in one step: whoever reads it finds the old one or the new one, and two writers do not mix.

    Raises:
        OSError: It cannot be written; the old one is still there.
    """
    make_private(path.parent)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_ours(path: Path, limit: int) -> bytes | None:
    """Return the bytes of a cached file; None where there is none, or where others could have written it."""
    try:
        return read_file(path, limit, follow=False) if trusted(path.parent) else None
    except OSError:
        return None
