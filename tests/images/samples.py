"""Small pictures and encoded files that the tests of this folder share."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


def picture(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth picture with every value in it, so that a wrong pixel anywhere shows and JPEG keeps its detail."""
    channels = len(mode) if mode in ("L", "LA", "RGB", "RGBA", "CMYK") else 3
    rng = np.random.default_rng([seed, height, width])
    coarse = rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, channels), dtype=np.uint8)
    planes = [
        Image.fromarray(coarse[:, :, channel]).resize((width, height), Image.Resampling.BICUBIC)
        for channel in range(channels)
    ]
    if channels == 1:
        return planes[0].convert(mode)
    return Image.merge({2: "LA", 3: "RGB", 4: "RGBA"}[channels] if mode != "CMYK" else "CMYK", planes).convert(mode)


def pixels(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.asarray(picture(height, width, seed=seed))


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def exif(orientation: object) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def one_of_each() -> dict[str, bytes]:
    """A small whole file of every format and of the variants whose damage shows differently."""
    image = picture(29, 33)
    frames = [picture(29, 33, seed=seed) for seed in (1, 2)]
    return {
        "jpeg": encoded(image, "JPEG", exif=exif(6)),
        "jpeg-progressive": encoded(image, "JPEG", progressive=True),
        "jpeg-restarts": encoded(image, "JPEG", restart_marker_blocks=2),
        "jpeg-grey": encoded(image.convert("L"), "JPEG"),
        "jpeg-cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "png": encoded(image, "PNG", exif=exif(3)),
        "png-palette": encoded(image.quantize(16), "PNG", transparency=3),
        "apng": encoded(image, "PNG", save_all=True, append_images=frames),
        "webp": encoded(image, "WEBP"),
        "webp-lossless": encoded(image, "WEBP", lossless=True),
        "bmp": encoded(image, "BMP"),
        "dib": encoded(image, "DIB"),
        "gif": encoded(image, "GIF", save_all=True, append_images=frames),
        "tiff": encoded(image, "TIFF"),
        "tiff-lzw": encoded(image, "TIFF", compression="tiff_lzw"),
    }
