"""The members of a tar archive, in one pass, in bounded memory, and with all that is wrong with it.

``tarfile`` reads single headers here, and no more. Its streams end without a word at a damaged header, keep every
member they have passed, read extended headers of any length into memory, and recurse for each one that precedes
another. None of that is fit for archives from anywhere, of millions of images.
"""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENSION = 1 << 20
"""Largest extended header that is read, in bytes. One holds a name and a few numbers."""
_PIECE = 1 << 20
_ZEROS = bytes(BLOCK)
_LONG_NAME, _LONG_LINK, _PAX, _GLOBAL_PAX = b"L", b"K", (b"x", b"X"), b"g"
_KEYWORDS = frozenset((b"path", b"size", b"GNU.sparse.name"))
_SPARSE = "GNU.sparse."
_DIGITS = 20
_NO_SIZE = 1 << 60
"""Bytes that no archive has; a header can claim more than a file can be long."""
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a directory",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_WITHOUT_DATA = frozenset(_KINDS) - {tarfile.GNUTYPE_SPARSE}
_IS_EXTENDED = 482
_EXTENDED_AGAIN = 504
"""Where a sparse file's header, and what continues it, says that more of it follows."""


class TarError(Exception):
    """What is wrong with an archive, on one line. What was read before it stands."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive.

    Attributes:
        name: Its name, which is never used as a path.
        start: Where its data begins in the archive, in bytes.
        size: Bytes of data it has.
        kind: What it is, if it is not a plain file.
    """

    name: str
    start: int
    size: int
    kind: str | None


class TarReader:
    """Goes through an archive once, from its beginning to its end.

    Args:
        stream: The archive.
        size: Bytes it has, or None where nothing tells.
    """

    def __init__(self, stream: IO[bytes], size: int | None) -> None:
        self._stream = stream
        self._size = size
        self._seekable = stream.seekable()
        self._position = 0
        self._defaults: dict[str, str] = {}

    def members(self) -> Iterator[Member]:
        """Give the members, in their order.

        Raises:
            TarError: The archive is damaged or truncated, or is none; what was given before is whole.
            OSError: The stream cannot be read.
        """
        while (found := self._next()) is not None:
            member, end = found
            yield member
            self._skip_to(end)
        self._refuse_more()

    def read(self, member: Member) -> bytes:
        """Read the data of the member that was given last.

        Raises:
            TarError: The archive ends before it does.
            OSError: The stream cannot be read.
        """
        data = self._read(member.size)
        if len(data) < member.size:
            raise _truncated(member.name)
        return data

    def _next(self) -> tuple[Member, int] | None:
        """Read a member's header, with those that extend it; return it and where the next one begins."""
        records = dict(self._defaults)
        long_name = None
        while True:
            at = self._position
            header = self._header()
            if header is None:
                return None
            block, info = header
            if info.type == _LONG_NAME:
                long_name = os.fsdecode(self._extension(info).partition(b"\0")[0])
            elif info.type == _LONG_LINK:
                self._extension(info)
            elif info.type in _PAX:
                records.update(_pax_records(self._extension(info), at))
            elif info.type == _GLOBAL_PAX:
                self._defaults.update(_pax_records(self._extension(info), at))
                records = {**self._defaults, **records}
            else:
                name = records.get("path", info.name if long_name is None else long_name)
                return self._member(block, info, name, records)

    def _member(self, block: bytes, info: tarfile.TarInfo, name: str, records: dict[str, str]) -> tuple[Member, int]:
        size = _number(records["size"], name) if "size" in records else info.size
        if not 0 <= size < _NO_SIZE:
            raise TarError(f"damaged tar: the size of {name!r} is {size}")
        more = info.type == tarfile.GNUTYPE_SPARSE and block[_IS_EXTENDED]
        while more:
            more = self._block(name)[_EXTENDED_AGAIN]
        kind = _KINDS.get(info.type)
        if kind is None and _SPARSE in records:
            name, kind = records.get("GNU.sparse.name", name), "a sparse file"
        start = self._position
        end = start if info.type in _WITHOUT_DATA else start + size + -size % BLOCK
        if self._size is not None and start + size > self._size and info.type not in _WITHOUT_DATA:
            raise _truncated(name)
        return Member(name, start, size, kind), end

    def _header(self) -> tuple[bytes, tarfile.TarInfo] | None:
        """Read a header, or None at the end of the archive."""
        at = self._position
        block = self._read(BLOCK)
        if block == _ZEROS:
            return None
        if len(block) < BLOCK:
            if at == 0:
                raise TarError("not a tar archive" if block else "empty file")
            raise TarError("truncated tar: its end is missing, and whatever preceded that")
        try:
            return block, tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            if at == 0:
                raise TarError("not a tar archive") from error
            raise TarError(f"damaged tar: no header at byte {at}, and what follows was not read") from error

    def _extension(self, info: tarfile.TarInfo) -> bytes:
        if not 0 <= info.size <= MAX_EXTENSION:
            raise TarError(f"damaged tar: a header of {info.size} bytes at byte {self._position}")
        data = self._read(info.size + -info.size % BLOCK)
        if len(data) < info.size:
            raise _truncated(info.name)
        return data[: info.size]

    def _block(self, name: str) -> bytes:
        block = self._read(BLOCK)
        if len(block) < BLOCK:
            raise _truncated(name)
        return block

    def _refuse_more(self) -> None:
        """Go to the end of the stream: an archive that was appended to another would be lost without a word."""
        while piece := self._stream.read(_PIECE):
            if piece.count(0) < len(piece):
                raise TarError("more data follows the end of the tar, and was not read")

    def _read(self, count: int) -> bytes:
        """Read ``count`` bytes, or as many as there are: a stream may give less at a time."""
        pieces, left = [], count
        while left and (piece := self._stream.read(left)):
            pieces.append(piece)
            left -= len(piece)
        self._position += count - left
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _skip_to(self, position: int) -> None:
        """Pass over what was not read; if the stream ends before, the next header is found missing."""
        if self._seekable and position != self._position:
            self._stream.seek(position)
            self._position = position
        while self._position < position and self._read(min(_PIECE, position - self._position)):
            pass


def _pax_records(data: bytes, at: int) -> dict[str, str]:
    """Return of a pax header's records those that say where the data is or what it is called.

    A record is its own length in bytes, a space, a keyword, an equals sign, a value and a line break (POSIX.1-2001).
    """
    found: dict[str, str] = {}
    begin, last = 0, len(data.rstrip(b"\0"))
    while begin < last:
        length, space, _ = data[begin : begin + _DIGITS].partition(b" ")
        end = begin + int(length) if space and length.isdigit() else begin
        keyword, equals, value = data[begin + len(length) + 1 : max(begin, end - 1)].partition(b"=")
        if not equals or end > len(data) or data[end - 1 : end] != b"\n":
            raise TarError(f"damaged tar: the pax header at byte {at} is none")
        if keyword in _KEYWORDS:
            found[keyword.decode()] = os.fsdecode(value)
        if keyword.startswith(b"GNU.sparse."):
            found[_SPARSE] = ""
        begin = end
    return found


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < _DIGITS):
        raise TarError(f"damaged tar: the size of {name!r} is {text!r}")
    return int(text)


def _truncated(name: str) -> TarError:
    return TarError(f"truncated tar: it ends in {name!r}")
