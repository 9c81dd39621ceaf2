"""How a picture is to be turned upright: the orientation in its metadata (TIFF 6.0, tag 274), as Pillow reads it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MARKER, _START_OF_SCAN, _APP1 = 0xFF, 0xDA, 0xE1
_SEGMENTS_WITH_LENGTH = frozenset((*range(0xC0, 0xD0), *range(0xDA, 0xFF)))


def jpeg_orientation(data: bytes) -> int:
    """The EXIF or XMP orientation of a JPEG file, 1 to 8 (TIFF 6.0, tag 274); 1, upright, where there is none."""
    if not _may_hold_metadata(data):
        return 1
    try:
        image = JpegImageFile(io.BytesIO(data))
    except MemoryError:
        raise  # nothing is known of the metadata then
    except Exception:  # noqa: BLE001 - libjpeg has decoded the picture: a header only Pillow dislikes costs no more
        return 1
    return orientation_of(image)


def orientation_of(image: Image.Image) -> int:
    """The EXIF or XMP orientation, 1 to 8; 1 (upright) where the metadata is missing or cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - broken metadata raises nearly anything, and must not cost the picture
        return 1
    return value if isinstance(value, int) else 1


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation (TIFF 6.0, tag 274) on [height, width, 3]; unknown values change nothing."""
    match orientation:
        case 2:
            pixels = pixels[:, ::-1]
        case 3:
            pixels = pixels[::-1, ::-1]
        case 4:
            pixels = pixels[::-1]
        case 5:
            pixels = pixels.transpose(1, 0, 2)
        case 6:
            pixels = pixels[::-1].transpose(1, 0, 2)
        case 7:
            pixels = pixels[::-1, ::-1].transpose(1, 0, 2)
        case 8:
            pixels = pixels[:, ::-1].transpose(1, 0, 2)
    return np.ascontiguousarray(pixels)


def _may_hold_metadata(data: bytes) -> bool:
    """Whether a segment APP1 (EXIF, XMP) precedes the picture; the many photos without one are spared a full parse.

    Walks from segment to segment: 0xFF, marker, two bytes of length, content. On any other layout the answer is True.
    """
    position = 2
    while True:
        lead, marker, high, low = data[position : position + 4].ljust(4, b"\0")
        if marker == _START_OF_SCAN:
            return False
        if lead != _MARKER or marker == _APP1 or marker not in _SEGMENTS_WITH_LENGTH:
            return True
        position += 2 + (high << 8 | low)
