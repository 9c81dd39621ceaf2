"""The user's cache directory, which holds what can be made again, and reading files that someone else may have made."""

from __future__ import annotations

import errno
import functools
import glob
import hashlib
import json
import logging
import os
import re
import reprlib
import shutil
import stat
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ABANDONED_SECONDS = 24 * 3600
"""Age of what a process that was killed has left half-written."""
_MARK = ".stored"
"""A file that every entry has: what lies beside the entries is none of ours."""
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile)
"""What reading a file can raise that is not what was stored."""
_DEEPEST = 64
"""Levels of a JSON document: what reads or prints one may call itself for each."""
_LONGEST_INTEGER = 20
"""Digits and sign of an integer of 64 bits."""
_LONGEST_VALUE = 200
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What acts on a terminal or turns text around, and halves of surrogate pairs, which UTF-8 cannot hold."""
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
    """Return ``$XDG_CACHE_HOME/trt-vit``, or ``~/.cache/trt-vit``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "trt-vit")


def make_private(directory: Path) -> None:
    """Make a directory, and those above it that are missing, for their owner alone: what is cached may be native code.

    Raises:
        OSError: It cannot be made, or is one that others can write to.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    if not trusted(directory):
        raise PermissionError(errno.EPERM, "others can write to it", str(directory))


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


def read_file(path: Path, limit: int, *, follow: bool = True) -> bytes:
    """Return the bytes of a file that someone else may have made.

    A pipe or a device is refused before it is read, as it may block or never end.

    Args:
        path: The file.
        limit: Bytes it may have.
        follow: Whether it may be a symbolic link.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger than ``limit`` or the memory.
    """
    flags = os.O_NONBLOCK if follow else os.O_NONBLOCK | os.O_NOFOLLOW
    if not follow and path.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link", str(path))
    try:
        with open(path, "rb", opener=lambda name, usual: os.open(name, usual | flags)) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "is no regular file", str(path))
            if status.st_size > limit:
                raise OSError(errno.EFBIG, f"is larger than {limit} bytes", str(path))
            data = stream.read(status.st_size + 1)
            if len(data) != status.st_size:
                raise OSError(errno.EIO, "changes while it is read", str(path))
            return data
    except ValueError as error:
        raise OSError(errno.EINVAL, f"is no name of a file: {error}", str(path)) from error
    except MemoryError as error:
        raise OSError(errno.ENOMEM, "is larger than the memory", str(path)) from error


def parse_json(data: bytes | str) -> Any:
    """Return what a JSON document holds that someone else may have written.

    What readers differ on is refused: keys that are given twice, numbers that are not finite or longer than 64 bits,
    halves of surrogate pairs, and nesting that whoever handles the document may not come to the end of.

    Raises:
        ValueError: It is not such a document.
    """
    try:
        document = json.loads(
            data if isinstance(data, str) else data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_int=_integer,
            parse_constant=_no_number,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    waiting: list[tuple[Any, int]] = [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str) and not is_text(value):
            raise ValueError(f"{quoted(value)} is not text")
        if isinstance(value, dict | list):
            if depth == _DEEPEST:
                raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
            inner = value if isinstance(value, list) else (*value, *value.values())
            waiting.extend((item, depth + 1) for item in inner)
    return document


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {quoted(key)} is given twice")
        found[key] = value
    return found


def _finite(text: str) -> float:
    number = float(text)
    return number if abs(number) < float("inf") else _no_number(text)


def _integer(text: str) -> int:
    return int(text) if len(text) <= _LONGEST_INTEGER else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{quoted(text)} is not a number of 64 bits")


def is_text(text: str) -> bool:
    """Tell whether UTF-8 can hold a text: JSON can spell half of a surrogate pair, and a file's name be any bytes."""
    return text.isascii() or text == text.encode("utf-8", "ignore").decode()


def is_plain(text: str) -> bool:
    """Tell whether a text can be shown as it is: on one line, and without what acts on a terminal."""
    return not _CONTROL.search(text)


def plain(text: str) -> str:
    r"""Return a text with whatever ``is_plain`` refuses spelled out, as ``\x1b``."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = _LONGEST_VALUE
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 12


def quoted(value: object) -> str:
    """Return a value as a message names it: like ``repr``, but never long."""
    text = _SHORT.repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
