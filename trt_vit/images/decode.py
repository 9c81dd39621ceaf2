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
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile, DibImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from trt_vit.errors import ImageError
from trt_vit.images.limits import MAX_BYTES, MAX_PIXELS, NO_FURTHER_LIMITS
from trt_vit.images.orientation import jpeg_orientation, orientation_of, upright

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

    from trt_vit.images.limits import DecodeLimits, ImageFormat

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "NOT_ENOUGH_MEMORY",
    "check_file_size",
    "decode",
    "jpeg_orientation",
    "open_regular",
    "read_image",
]

NOT_ENOUGH_MEMORY = "not enough memory for this image"
"""The whole message of the error of an image for which the system gave no memory."""

_SIGNATURES: tuple[tuple[bytes, ImageFormat, type[ImageFile]], ...] = (
    (b"\xff\xd8\xff", "jpeg", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", "png", PngImageFile),
    (b"GIF87a", "gif", GifImageFile),
    (b"GIF89a", "gif", GifImageFile),
    (b"BM", "bmp", BmpImageFile),
    *((mark, "tiff", TiffImageFile) for mark in (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"II+\0", b"MM\0+")),
    *((size.to_bytes(4, "little"), "bmp", DibImageFile) for size in (12, 40, 52, 56, 64, 108, 124)),
)

_ANY_TILE = 2**20  # pixels of a TIFF's tile, which may be larger than a small image

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

# How libjpeg and Pillow's codecs put it; elsewhere it is a MemoryError.
_OUT_OF_MEMORY = ("insufficient memory", "out of memory", "memory allocation failure")

# Pillow warns about odd metadata and large images; neither is worth a line per image. The filter is installed once, for
# the whole process, because warnings.catch_warnings() swaps global state and so is not safe between decoding threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def read_image(path: str, limits: DecodeLimits = NO_FURTHER_LIMITS) -> bytes:
    """The bytes of the regular file ``path``, never waiting for a FIFO or a device.

    Raises:
        ImageError: The file is missing, not readable, not a regular file, or larger than ``limits`` allow.
    """
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise ImageError(f"cannot read the file: {error.strerror}") from error
    try:
        check_file_size(os.fstat(descriptor).st_size, limits)
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.readall()
    except OSError as error:
        raise ImageError(f"cannot read the file: {error.strerror}") from error
    finally:
        os.close(descriptor)


def open_regular(path: str) -> int:
    """Open a regular file to be read and return its descriptor, never waiting for a FIFO or a device.

    Raises:
        OSError: It cannot be opened.
        ImageError: It is no regular file, or no file can have that name.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except ValueError as error:
        raise ImageError(f"not a file name: {error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ImageError("not a regular file")
    return descriptor


def decode(data: bytes, limits: DecodeLimits = NO_FURTHER_LIMITS) -> NDArray[np.uint8]:
    """The pixels of the first image in ``data``, upright and in RGB.

    The format is decided by the content: JPEG, PNG, WebP, BMP, DIB, TIFF or GIF.

    Returns:
        uint8 [height, width, 3], contiguous, possibly read-only.

    Raises:
        ImageError: ``data`` is not an image, is damaged or incomplete, has samples of 32 bits, needs more memory than
            there is, or goes beyond ``limits``: in bytes, by its format, or in pixels (found from the header, before
            memory for the pixels is taken). The limit in seconds is not kept here.
    """
    if not data:
        raise ImageError("empty file")
    check_file_size(len(data), limits)
    image_format, plugin = _format(data)
    if image_format not in limits.formats:
        raise ImageError(f"format {image_format} is not allowed")
    try:
        match image_format:
            case "jpeg":
                return _decode_jpeg(data, limits)
            case "webp":
                return _decode_webp(data, limits)
        return _decode_with_pillow(data, plugin, limits)
    except ImageError:
        raise
    except Exception as error:  # the per-image boundary: a damaged file makes Pillow raise nearly anything
        raise ImageError(_describe(plugin, error)) from error


def _format(data: bytes) -> tuple[ImageFormat, type[ImageFile]]:
    """The format whose signature ``data`` starts with, and Pillow's class for it."""
    for signature, image_format, plugin in _SIGNATURES:
        if data.startswith(signature):
            return image_format, plugin
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp", WebPImageFile
    raise ImageError("not an image: no known signature of JPEG, PNG, WebP, BMP, TIFF or GIF")


def _decode_jpeg(data: bytes, limits: DecodeLimits) -> NDArray[np.uint8]:
    """Decode with simplejpeg, or with Pillow what simplejpeg refuses for reasons that cost no pixel."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, limits)
        if colorspace in ("CMYK", "YCCK"):
            pixels = _rgb_from_cmyk(simplejpeg.decode_jpeg(data, colorspace="CMYK"))
        else:
            pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        if any(reason in str(error) for reason in _PILLOW_DECIDES):
            return _decode_with_pillow(data, JpegImageFile, limits)
        raise
    return upright(pixels, jpeg_orientation(data))


def _rgb_from_cmyk(inks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert [height, width, 4] to RGB as Pillow does, which takes every CMYK JPEG for an inverted one."""
    height, width, _ = inks.shape
    return np.asarray(Image.frombuffer("CMYK", (width, height), inks, "raw", "CMYK;I", 0, 1).convert("RGB"))


def _decode_webp(data: bytes, limits: DecodeLimits) -> NDArray[np.uint8]:
    """Decode with Pillow, which takes memory for the canvas before it says how large it is."""
    width, height = _webp_size(data)
    _check_size(width, height, limits)
    try:
        return _decode_with_pillow(data, WebPImageFile, limits)
    except OSError:
        _check_memory(data, width * height)
        raise


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas by the header (RFC 9649); 0 where there is none."""
    field = int.from_bytes(data[20:30], "little")
    match data[12:16]:
        case b"VP8X":
            return (field >> 32 & 0xFFFFFF) + 1, (field >> 56) + 1
        case b"VP8L":
            return (field >> 8 & 0x3FFF) + 1, (field >> 22 & 0x3FFF) + 1
        case b"VP8 ":
            return field >> 48 & 0x3FFF, field >> 64 & 0x3FFF
    return 0, 0


def _decode_with_pillow(data: bytes, plugin: type[ImageFile], limits: DecodeLimits) -> NDArray[np.uint8]:
    """Decode the first frame or page with the plugin itself: Image.open() would only add a search for it."""
    image = plugin(io.BytesIO(data))
    _check_size(*image.size, limits)
    if isinstance(image, TiffImageFile):
        _check_tiles(image, limits)
    try:
        image.load()
    except OSError as error:
        if plugin is TiffImageFile and str(error).startswith("decoder error"):
            _check_memory(data, image.width * image.height)
        raise
    orientation = orientation_of(image)  # after load(): a PNG may carry its EXIF behind the pixels
    return upright(_rgb(image), orientation)


def check_file_size(size: int, limits: DecodeLimits) -> None:
    """Raise ImageError for a file of more than ``limits.file_bytes``."""
    if size > limits.file_bytes:
        raise ImageError(f"file has {size} bytes, more than the limit of {limits.file_bytes}")


def _check_size(width: int, height: int, limits: DecodeLimits) -> None:
    if width * height > limits.pixels:
        raise ImageError(f"image has {width * height} pixels, more than the limit of {limits.pixels}")


def _check_memory(data: bytes, pixels: int) -> None:
    """Raise MemoryError if what libwebp or libtiff takes is more than there is: they call it damage, like any other."""
    np.empty(12 * pixels + 2 * len(data), np.uint8)


def _check_tiles(image: TiffImageFile, limits: DecodeLimits) -> None:
    """A tile is decoded whole, however little of it lies in the image."""
    width, height = image.tag_v2.get(TILEWIDTH), image.tag_v2.get(TILELENGTH)
    if not isinstance(width, int) or not isinstance(height, int):
        return  # libtiff takes nothing else for a size
    if width * height > max(limits.pixels, _ANY_TILE):
        raise ImageError(f"image has tiles of {width * height} pixels, more than the limit of {limits.pixels}")


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


def _describe(plugin: type[ImageFile], error: Exception) -> str:
    """One line for the error column, without the path or address that some of Pillow's messages hold."""
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY):
        return NOT_ENOUGH_MEMORY
    reason = " ".join(str(error).split())[:200].removeprefix("Corrupt JPEG data: ") or type(error).__name__
    lost = any(word in reason.lower() for word in ("truncated", "premature end of jpeg file"))
    return f"{'truncated' if lost else 'broken'} {plugin.format}: {reason}"
