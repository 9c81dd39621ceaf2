"""Reading files that someone else may have made, and showing what is in them."""

from __future__ import annotations

import errno
import json
import os
import re
import reprlib
import stat
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_DEEPEST = 64
"""Levels of a JSON document: what reads or prints one may call itself for each."""
_LONGEST_INTEGER = 20
"""Digits and sign of an integer of 64 bits."""
_LONGEST_VALUE = 200
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What acts on a terminal or turns text around, and halves of surrogate pairs, which UTF-8 cannot hold."""


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
