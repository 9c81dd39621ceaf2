"""Small files that say they are large, or become large in a decoder's hands."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from PIL import Image

from tests.images.samples import encoded, exif, picture

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MIB = 2**20
BYTE, SHORT, LONG, UNDEFINED = 1, 3, 4, 7
_UNITS = {BYTE: "B", SHORT: "H", LONG: "I", UNDEFINED: "B"}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks: bytes, size: tuple[int, int] = (8, 8), pixels: bytes = zlib.compress(bytes(8 * (1 + 3 * 8)))) -> bytes:
    """A PNG of RGB, with further chunks before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def inflating(mib: int) -> bytes:
    """So many MiB of zeros as zlib data, in a thousandth of that: the same block again and again."""
    deflate = zlib.compressobj(9)
    head = deflate.compress(b"") + deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(bytes(MIB)) + deflate.flush(zlib.Z_FULL_FLUSH)
    checksum = ((mib * MIB) % 65_521) << 16 | 1  # Adler-32 of zeros
    return head + block * mib + b"\x03\0" + struct.pack(">I", checksum)


def ifd(entries: Sequence[tuple[int, int, int, int]], following: int = 0) -> bytes:
    """A directory of TIFF entries: tag, type, count, and the value or where it lies."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


def tiff(
    size: tuple[int, int], *more: tuple[int, int, int, int], data: bytes = b"\0" * 64, following: int = 0
) -> bytes:
    """A TIFF of one strip of 8-bit grey; ``more`` entries come instead of those with the same tag.

    Its data lie at 8, and its directory behind them.
    """
    tags = {256: size[0], 257: size[1], 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: size[1], 279: len(data)}
    entries = {tag: (tag, LONG, 1, value) for tag, value in tags.items()} | {entry[0]: entry for entry in more}
    at = 8 + len(data)
    return b"II*\0" + struct.pack("<I", at) + data + ifd(sorted(entries.values()), following)


def jpeg_with(*segments: bytes) -> bytes:
    whole = encoded(picture(13, 22), "JPEG")
    parts = [b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment for segment in segments]
    return whole[:2] + b"".join(parts) + whole[2:]


def jpeg_of_size(width: int, height: int, **options: bool) -> bytes:
    whole = encoded(Image.new("RGB", (8, 8)), "JPEG", **options)
    at = whole.index(b"\xff\xc2" if options else b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    whole = encoded(Image.new("L", (8, 8)), "GIF")
    at = whole.index(b"\x2c\0\0\0\0\x08\0\x08\0") + 5
    return whole[:6] + struct.pack("<HH", *screen) + whole[10:at] + struct.pack("<HH", *frame) + whole[at + 4 :]


def bmp(width: int, height: int, bits: int = 24) -> bytes:
    whole = encoded(Image.new("RGB", (8, 8)), "BMP")
    return whole[:18] + struct.pack("<iiHH", width, height, 1, bits) + whole[30:]


def webp_canvas(width: int, height: int) -> bytes:
    whole = encoded(Image.new("RGBA", (8, 8)), "WEBP", exif=exif(1))
    return whole[:24] + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + whole[30:]


def webp_lossless(width: int, height: int) -> bytes:
    whole = encoded(Image.new("RGB", (8, 8)), "WEBP", lossless=True)
    at = whole.index(b"VP8L") + 9
    return whole[:at] + struct.pack("<I", (width - 1) | (height - 1) << 14) + whole[at + 4 :]


def webp_lossy(width: int, height: int) -> bytes:
    whole = encoded(Image.new("RGB", (8, 8)), "WEBP")
    at = whole.index(b"\x9d\x01\x2a") + 3
    return whole[:at] + struct.pack("<HH", width, height) + whole[at + 4 :]


def exif_of(entries: Iterable[tuple[int, int, int, int]], data: bytes = b"", following: int = 0) -> bytes:
    """EXIF metadata: a directory at 8, and ``data`` behind it."""
    return b"Exif\0\0II*\0\x08\0\0\0" + ifd(list(entries), following) + data


def repeating(count: int, size: int, data: bytes) -> list[tuple[int, int, int, int]]:
    """Entries of private tags that all have the same ``size`` bytes at 8."""
    assert len(data) >= size
    return [(tag, UNDEFINED, size, 8) for tag in range(40_000, 40_000 + count)]
