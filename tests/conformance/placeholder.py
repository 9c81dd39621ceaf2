"""A shared library that only has names, for a loader that must find them before it loads what links against them.

TensorRT's bindings can be imported, and asked what they hold, without TensorRT's own libraries, since nothing of those
is called. Written byte by byte, it needs no compiler. Layout and constants are those of the System V ABI (ELF-64).
"""

from __future__ import annotations

import platform
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_MACHINES = {"x86_64": 62, "aarch64": 183}
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_ENTRY = struct.Struct("<QQ")
_LOAD, _DYNAMIC, _STACK = 1, 2, 0x6474E551
_HASH, _STRINGS, _SYMBOLS, _STRINGS_SIZE, _SYMBOL_SIZE = 4, 5, 6, 10, 11
_READ_WRITE = 6
_GLOBAL_FUNCTION = 0x12
_ABSOLUTE = 0xFFF1  # a symbol that belongs to no section; its address is never used
_PAGE = 0x10000


def shared_library(names: Sequence[str]) -> bytes:
    """Return a shared library for this machine that defines functions of these names, none of which can be called.

    Raises:
        KeyError: This machine's processor is not among those that TensorRT has Python bindings for.
    """
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    parts = _Parts(_HEADER.size + 3 * _SEGMENT.size)
    strings_at = parts.add(strings)
    symbols_at = parts.add(_symbols(names, strings))
    # One hash bucket: a chain through all symbols, that each look-up walks.
    chain = [1, len(names) + 1, 1, 0, *range(2, len(names) + 1), 0]
    hash_at = parts.add(struct.pack(f"<{len(chain)}I", *chain))
    table = [
        (_HASH, hash_at),
        (_STRINGS, strings_at),
        (_SYMBOLS, symbols_at),
        (_STRINGS_SIZE, len(strings)),
        (_SYMBOL_SIZE, _SYMBOL.size),
        (0, 0),
    ]
    dynamic = b"".join(_ENTRY.pack(*entry) for entry in table)
    dynamic_at = parts.add(dynamic)
    return _headers(parts.end, dynamic_at, len(dynamic)) + parts.content


@dataclass
class _Parts:
    """What follows the headers, each part at a multiple of eight bytes from the start of the file."""

    end: int
    content: bytes = b""

    def add(self, part: bytes) -> int:
        start = self.end
        padded = part + bytes(-len(part) % 8)
        self.content += padded
        self.end += len(padded)
        return start


def _symbols(names: Sequence[str], strings: bytes) -> bytes:
    entries = [
        _SYMBOL.pack(strings.index(b"\0" + name.encode() + b"\0") + 1, _GLOBAL_FUNCTION, 0, _ABSOLUTE, 1, 0)
        for name in names
    ]
    return bytes(_SYMBOL.size) + b"".join(entries)


def _headers(size: int, dynamic_at: int, dynamic_size: int) -> bytes:
    identity = b"\x7fELF\x02\x01\x01"  # 64 bits, little-endian, version 1
    machine = _MACHINES[platform.machine()]
    shared = 3
    return b"".join(
        (
            _HEADER.pack(identity, shared, machine, 1, 0, _HEADER.size, 0, 0, _HEADER.size, _SEGMENT.size, 3, 0, 0, 0),
            _SEGMENT.pack(_LOAD, _READ_WRITE, 0, 0, 0, size, size, _PAGE),
            _SEGMENT.pack(_DYNAMIC, _READ_WRITE, dynamic_at, dynamic_at, dynamic_at, dynamic_size, dynamic_size, 8),
            _SEGMENT.pack(_STACK, _READ_WRITE, 0, 0, 0, 0, 0, 16),  # or the loader asks for an executable stack
        )
    )
