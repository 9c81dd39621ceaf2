"""From decoded pixels to the model's input, bit for bit as the transformers Pillow processors compute it.

Rescaling and normalising depend only on the channel and on the value 0..255, so both are one table of 3 x 256 floats,
computed once with the very operations of transformers' ``image_transforms`` and then looked up. The geometry is in
small functions of its own because every implementation of the same preprocessing must agree on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from trt_vit.errors import ArtifactError, ImageError
from trt_vit.images.decode import MAX_PIXELS
from trt_vit.images.preprocessing import Squash

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trt_vit.images.preprocessing import Filter, Preprocessing, Size

_RESAMPLING: dict[Filter, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class Span(NamedTuple):
    """Along one axis: ``length`` pixels from ``source`` of the resized image lie at ``target`` of the crop.

    The crop's other pixels are zeros before normalisation.
    """

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """What becomes of an image's pixels, by position.

    Attributes:
        resized: Height and width after the resize.
        rows: Which rows of the resized image lie where in the output.
        columns: Which columns.
    """

    resized: Size
    rows: Span
    columns: Span


def normalization_table(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """What each pixel value becomes: float32 [3, 256], by channel and value.

    Follows ``rescale`` (a product in float64, rounded to float32) and ``normalize`` (float32 throughout) of
    transformers 5's ``image_transforms``.
    """
    values = np.arange(256, dtype=np.float32)
    if preprocessing.rescale is not None:
        values = (values.astype(np.float64) * preprocessing.rescale).astype(np.float32)
    table = np.stack([values] * 3)
    if preprocessing.mean is not None and preprocessing.std is not None:
        mean = np.array(preprocessing.mean, dtype=np.float32)
        std = np.array(preprocessing.std, dtype=np.float32)
        table = (table - mean[:, np.newaxis]) / std[:, np.newaxis]
    return table


def resized_size(preprocessing: Preprocessing, height: int, width: int) -> Size:
    """Height and width after the resize of an image of ``height`` x ``width`` pixels.

    The rounding is that of ``get_resize_output_image_size`` in transformers: the longer side is cut to an integer.
    """
    resize = preprocessing.resize
    if resize is None:
        return height, width
    if isinstance(resize, Squash):
        return resize.size
    if width <= height:
        return int(resize.edge * height / width), resize.edge
    return resize.edge, int(resize.edge * width / height)


def crop_span(length: int, crop: int) -> Span:
    """Where the central ``crop`` pixels of an axis of ``length`` pixels come from.

    Odd differences follow ``center_crop`` in transformers: a crop starts half a pixel early, padding half a pixel late.
    """
    if length >= crop:
        return Span(source=(length - crop) // 2, target=0, length=crop)
    return Span(source=0, target=(crop - length + 1) // 2, length=length)


class Preprocessor:
    """Resizes, crops and normalises one image at a time; safe to share between threads.

    Args:
        preprocessing: What the checkpoint was trained with.
        output_size: Height and width of the model's input.

    Attributes:
        table: float32 [3, 256], see :func:`normalization_table`.

    Raises:
        ArtifactError: Every image would come out with another size than ``output_size``.
    """

    def __init__(self, preprocessing: Preprocessing, output_size: Size) -> None:
        if preprocessing.output_size not in (None, output_size):
            raise ArtifactError(
                f"preprocessing gives {_size_text(preprocessing.output_size)} pixels, "
                f"the model takes {_size_text(output_size)}",
                hint="use the preprocessor_config.json that belongs to the model",
            )
        self.preprocessing = preprocessing
        self.output_size = output_size
        self.table = normalization_table(preprocessing)

    def __call__(self, pixels: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        """Write the model's input for ``pixels`` into ``out``.

        Args:
            pixels: uint8 [height, width, 3], RGB, contiguous.
            out: float32 [3, output height, output width], one slot of a batch; overwritten.

        Raises:
            ImageError: The image resizes to more than ``MAX_PIXELS`` pixels, or not to ``output_size``.
        """
        geometry = self.geometry(*pixels.shape[:2])
        if not self._is_full(geometry):
            out[:] = self.table[:, :1, np.newaxis]
        self.normalize(self.resized(pixels, geometry), out[:, *_target(geometry)])

    def fit(self, pixels: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Resize and crop an image, and leave it to ``normalize`` to make the model's input of it.

        Args:
            pixels: uint8 [height, width, 3], RGB, contiguous.
            out: uint8 [output height, output width, 3]; overwritten. A quarter of the size of the model's input.

        Raises:
            ImageError: The image resizes to more than ``MAX_PIXELS`` pixels, or not to ``output_size``.
        """
        geometry = self.geometry(*pixels.shape[:2])
        if not self._is_full(geometry):
            out[:] = 0
        out[_target(geometry)] = self.resized(pixels, geometry)

    def normalize(self, pixels: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        """Rescale and normalise pixels that have their place.

        Args:
            pixels: uint8 [height, width, 3].
            out: float32 [3, height, width]; overwritten.
        """
        for channel in range(3):
            # Values of 8 bits never leave the table; mode "clip" only spares np.take a second copy of its result.
            np.take(self.table[channel], pixels[:, :, channel], out=out[channel], mode="clip")

    def _is_full(self, geometry: Geometry) -> bool:
        return (geometry.rows.length, geometry.columns.length) == self.output_size

    def geometry(self, height: int, width: int) -> Geometry:
        """Return where the pixels of an image of a size go.

        Raises:
            ImageError: The image resizes to more than ``MAX_PIXELS`` pixels, or not to ``output_size``.
        """
        resized = resized_size(self.preprocessing, height, width)
        if resized != (height, width) and resized[0] * resized[1] > MAX_PIXELS:
            raise ImageError(
                f"image of {_size_text((height, width))} pixels resizes to {_size_text(resized)}, "
                f"more than the limit of {MAX_PIXELS} pixels"
            )
        if self.preprocessing.crop is None and resized != self.output_size:
            raise ImageError(
                f"image is {_size_text(resized)} pixels after preprocessing, "
                f"the model takes {_size_text(self.output_size)}"
            )
        rows, columns = (crop_span(*lengths) for lengths in zip(resized, self.output_size, strict=True))
        return Geometry(resized, rows, columns)

    def resized(self, pixels: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
        """Resize an image with Pillow and crop it.

        Args:
            pixels: uint8 [height, width, 3].
            geometry: Of that size.

        Returns:
            uint8 [rows, columns, 3]; an image that has its size already is not copied.
        """
        if geometry.resized != pixels.shape[:2]:
            height, width = geometry.resized
            filter_ = _RESAMPLING[self.preprocessing.filter]
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), filter_))
        rows, columns = geometry.rows, geometry.columns
        return pixels[_slice(rows.source, rows.length), _slice(columns.source, columns.length)]


def _target(geometry: Geometry) -> tuple[slice, slice]:
    rows, columns = geometry.rows, geometry.columns
    return _slice(rows.target, rows.length), _slice(columns.target, columns.length)


def _slice(start: int, length: int) -> slice:
    return slice(start, start + length)


def _size_text(size: tuple[int, ...] | None) -> str:
    return "x".join(map(str, reversed(size or ())))
