"""How far decoding goes for one image, so that a file from anywhere cannot cost more than its row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from trt_vit.errors import UsageError

ImageFormat = Literal["jpeg", "png", "webp", "bmp", "tiff", "gif"]
"""What a file is by its content; a bmp may lack its file header (DIB)."""

FORMATS: frozenset[ImageFormat] = frozenset(get_args(ImageFormat))
"""Every format that can be decoded."""

MAX_PIXELS = 178_956_970
"""Largest number of pixels that is decoded: Pillow's own limit, above which it calls a file a decompression bomb."""

MAX_BYTES = 2**30
"""Largest file that is read: well above any image of ``MAX_PIXELS`` pixels in a compressed format."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What an image may be and take; what goes beyond is an error of that image alone.

    Attributes:
        formats: Formats that are decoded. Fewer formats are fewer native libraries that see hostile bytes.
        pixels: Largest number of pixels, of the whole canvas in an animation.
        file_bytes: Largest file, in bytes.
        seconds: How long decoding may take, in wall-clock time, or None for any time. Only worker processes can keep
            it: nothing stops a decoder in this one.

    Raises:
        UsageError: A format is unknown, none is left, or a number is not positive.
    """

    formats: frozenset[ImageFormat] = FORMATS
    pixels: int = MAX_PIXELS
    file_bytes: int = MAX_BYTES
    seconds: float | None = None

    def __post_init__(self) -> None:
        known = ", ".join(sorted(FORMATS))
        if unknown := sorted(self.formats - FORMATS):
            raise UsageError(f"no image format is called {unknown[0]!r}", hint=f"the formats are {known}")
        if not self.formats:
            raise UsageError("no image format is allowed", hint=f"name at least one of {known}")
        for name in ("pixels", "file_bytes", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"the limit of {name} is {value}", hint="it must be more than 0")


NO_FURTHER_LIMITS = DecodeLimits()
"""What holds where nothing else is said."""
