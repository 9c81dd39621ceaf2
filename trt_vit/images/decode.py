"""From the bytes of one image file to its RGB pixels, exactly as Pillow and the checkpoint's own processor see them.

The contract is bit for bit ``ImageOps.exif_transpose(Image.open(file))`` followed by the RGB conversion of the
transformers image processors, which composites transparency onto white. JPEG goes through simplejpeg, which gives the
same pixels in two thirds of the time and, unlike Pillow, says when part of the picture is missing. Two things are
stricter or better than Pillow on purpose: a JPEG whose picture data is damaged is refused instead of filled with grey,
and 16-bit grey keeps its high byte instead of being clipped to white.

Compressed TIFFs are decoded by libtiff, which prints what it finds wrong on standard error; Pillow cannot silence it.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile, DibImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from trt_vit.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 178_956_970
"""Largest number of pixels that is decoded: Pillow's own limit, above which it calls a file a decompression bomb."""

MAX_BYTES = 2**30
"""Largest file that is read: well above any image of ``MAX_PIXELS`` pixels in a compressed format."""

_SIGNATURES: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"GIF87a", GifImageFile),
    (b"GIF89a", GifImageFile),
    (b"BM", BmpImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"MM*\0", TiffImageFile),
    (b"II\0*", TiffImageFile),
    (b"II+\0", TiffImageFile),
    (b"MM\0+", TiffImageFile),
    *((size.to_bytes(4, "little"), DibImageFile) for size in (12, 40, 52, 56, 64, 108, 124)),
)

# What simplejpeg refuses although the picture may be whole, so that Pillow decides: libjpeg's warnings about anything
# but the picture data, and the layouts simplejpeg does not know (which it also says of a header it cannot read).
# libjpeg reports only its first warning, so damage behind one of these goes unseen, as in Pillow.
_PILLOW_DECIDES = (
    "extraneous bytes before marker",
    "unknown JFIF revision number",
    "Unknown Adobe color transform code",
    "bad ICC marker",
    "Invalid SOS parameters for sequential JPEG",
    "thumbnail image size does not match",
    "Could not determine subsampling level",
    "Could not determine colorspace",
)

_MARKER, _START_OF_SCAN, _APP1 = 0xFF, 0xDA, 0xE1
_SEGMENTS_WITH_LENGTH = frozenset((*range(0xC0, 0xD0), *range(0xDA, 0xFF)))

# Pillow warns about odd metadata and large images; neither is worth a line per image. The filter is installed once, for
# the whole process, because warnings.catch_warnings() swaps global state and so is not safe between decoding threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def read_image(path: str) -> bytes:
    """The bytes of the regular file ``path``, never waiting for a FIFO or a device.

    Raises:
        ImageError: The file is missing, not readable, not a regular file, or larger than ``MAX_BYTES``.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise ImageError(f"cannot read the file: {error.strerror}") from error
    except ValueError as error:
        raise ImageError(f"not a file name: {error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not a regular file")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"file has {status.st_size} bytes, more than the limit of {MAX_BYTES}")
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.readall()
    except OSError as error:
        raise ImageError(f"cannot read the file: {error.strerror}") from error
    finally:
        os.close(descriptor)


def decode(data: bytes) -> NDArray[np.uint8]:
    """The pixels of the first image in ``data``, upright and in RGB.

    The format is decided by the content: JPEG, PNG, WebP, BMP, DIB, TIFF or GIF.

    Returns:
        uint8 [height, width, 3], contiguous, possibly read-only.

    Raises:
        ImageError: ``data`` is not an image, is damaged or incomplete, has samples of 32 bits, or has more than
            ``MAX_PIXELS`` pixels (found from the header, before memory for the pixels is taken).
    """
    if not data:
        raise ImageError("empty file")
    plugin = _plugin(data)
    if plugin is None:
        raise ImageError("not an image: no known signature of JPEG, PNG, WebP, BMP, TIFF or GIF")
    try:
        return _decode_jpeg(data) if plugin is JpegImageFile else _decode_with_pillow(data, plugin)
    except ImageError:
        raise
    except Exception as error:  # the per-image boundary: a damaged file makes Pillow raise nearly anything
        raise ImageError(_describe(plugin, error)) from error


def _plugin(data: bytes) -> type[ImageFile] | None:
    """The Pillow class for the format whose signature ``data`` starts with."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    return next((plugin for signature, plugin in _SIGNATURES if data.startswith(signature)), None)


def _decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decode with simplejpeg, or with Pillow what simplejpeg refuses for reasons that cost no pixel."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height)
        if colorspace in ("CMYK", "YCCK"):
            pixels = _rgb_from_cmyk(simplejpeg.decode_jpeg(data, colorspace="CMYK"))
        else:
            pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        if any(reason in str(error) for reason in _PILLOW_DECIDES):
            return _decode_with_pillow(data, JpegImageFile)
        raise
    return _upright(pixels, jpeg_orientation(data))


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


def _rgb_from_cmyk(inks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert [height, width, 4] to RGB as Pillow does, which takes every CMYK JPEG for an inverted one."""
    height, width, _ = inks.shape
    return np.asarray(Image.frombuffer("CMYK", (width, height), inks, "raw", "CMYK;I", 0, 1).convert("RGB"))


def _decode_with_pillow(data: bytes, plugin: type[ImageFile]) -> NDArray[np.uint8]:
    """Decode the first frame or page with the plugin itself: Image.open() would only add a search for it."""
    image = plugin(io.BytesIO(data))
    _check_size(*image.size)
    image.load()
    orientation = _orientation(image)  # after load(): a PNG may carry its EXIF behind the pixels
    return _upright(_rgb(image), orientation)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"image has {width * height} pixels, more than the limit of {MAX_PIXELS}")


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert as transformers' ``image_transforms.convert_to_rgb`` does, but for 16-bit grey."""
    transparency = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        samples = np.asarray(image)
        grey = (samples >> 8).astype(np.uint8)
        if transparency is not None:
            grey[samples == transparency] = 255
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ImageError("samples are not of 8 or 16 unsigned bits, so nothing says which value is white")
    if "A" in image.getbands() or transparency is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def jpeg_orientation(data: bytes) -> int:
    """The EXIF or XMP orientation of a JPEG file, 1 to 8 (TIFF 6.0, tag 274); 1, upright, where there is none."""
    if not _may_hold_metadata(data):
        return 1
    try:
        image = JpegImageFile(io.BytesIO(data))
    except Exception:  # noqa: BLE001 - libjpeg has decoded the picture: a header only Pillow dislikes costs no more
        return 1
    return _orientation(image)


def _orientation(image: Image.Image) -> int:
    """The EXIF or XMP orientation, 1 to 8; 1 (upright) where the metadata is missing or cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - broken metadata raises nearly anything, and must not cost the picture
        return 1
    return orientation if isinstance(orientation, int) else 1


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
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


def _describe(plugin: type[ImageFile], error: Exception) -> str:
    """One line for the error column, without the path or address that some of Pillow's messages hold."""
    reason = " ".join(str(error).split())[:200].removeprefix("Corrupt JPEG data: ") or type(error).__name__
    lost = any(word in reason.lower() for word in ("truncated", "premature end of jpeg file"))
    return f"{'truncated' if lost else 'broken'} {plugin.format}: {reason}"
