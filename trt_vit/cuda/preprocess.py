"""Resize, crop and normalise on the GPU: what the host tells the kernel of preprocess.cu."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.cuda.resample import AxisTable, identity_table, resize_table, vertical_first

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trt_vit.images.preprocess import Geometry, Preprocessor

TILE = 32
"""Pixels of a side of what one block makes, as in preprocess.cu."""

_AXIS = [("table", np.int32), ("target", np.int32), ("length", np.int32)]
SOURCE = np.dtype(
    [
        ("pixels", np.uint64),
        ("pitch", np.int64),
        ("x", _AXIS),
        ("y", _AXIS),
        ("vertical_first", np.int32),
        ("unused", np.int32),
    ]
)
"""``Source`` of preprocess.cu."""
ARGUMENTS = np.dtype(
    [
        ("sources", np.uint64),
        ("tables", np.uint64),
        ("values", np.uint64),
        ("output", np.uint64),
        ("height", np.int32),
        ("width", np.int32),
    ]
)
"""``Preprocess`` of preprocess.cu."""


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """How one image is resized and cropped.

    Attributes:
        rows: The weights of its rows.
        columns: The weights of its columns.
        top: Rows of padding above it.
        left: Columns of padding before it.
        vertical_first: Whether the columns are resized before the rows.
    """

    rows: AxisTable
    columns: AxisTable
    top: int
    left: int
    vertical_first: bool

    @property
    def words(self) -> int:
        """Words of both tables."""
        return self.rows.words.size + self.columns.words.size


def plan_image(preprocessor: Preprocessor, height: int, width: int) -> ImagePlan | None:
    """Return how an image of a size is preprocessed, or None if its weights would take too much room.

    Raises:
        ImageError: As for ``Preprocessor.geometry``.
    """
    geometry = preprocessor.geometry(height, width)
    name = preprocessor.preprocessing.filter
    (new_height, new_width), rows, columns = geometry.resized, geometry.rows, geometry.columns
    down = resize_table(height, new_height, name, rows.source, rows.length)
    across = resize_table(width, new_width, name, columns.source, columns.length)
    if down is None or across is None:
        return None
    return ImagePlan(down, across, rows.target, columns.target, vertical_first(height, width, new_height, new_width))


def plan_resized(geometry: Geometry) -> ImagePlan:
    """Return how an image is preprocessed that has been resized and cropped already."""
    rows, columns = geometry.rows, geometry.columns
    return ImagePlan(identity_table(rows.length), identity_table(columns.length), rows.target, columns.target, False)


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """An image whose pixels and tables have their places.

    Attributes:
        plan: How it is preprocessed.
        pixels: Address of its pixels in the memory of the GPU: uint8 [height, width, 3].
        pitch: Bytes from row to row.
        table: Where its tables are among the batch's, in int32 words: of the rows, then of the columns.
    """

    plan: ImagePlan
    pixels: int
    pitch: int
    table: int


def describe(images: Sequence[PlacedImage | None], out: NDArray[np.void]) -> None:
    """Write what the kernel needs to know of a batch's images.

    Args:
        images: The images; None for one that there is not, which comes out as padding.
        out: ``SOURCE`` [images].
    """
    out[:] = 0
    for image, entry in zip(images, out, strict=True):
        if image is not None:
            plan = image.plan
            entry["pixels"], entry["pitch"], entry["vertical_first"] = image.pixels, image.pitch, plan.vertical_first
            entry["y"] = (image.table, plan.top, plan.rows.length)
            entry["x"] = (image.table + plan.rows.words.size, plan.left, plan.columns.length)


@dataclass(frozen=True)
class PreprocessKernel:
    """The kernel for one kind of output.

    Attributes:
        name: In preprocess.cu.
        values: What each 8-bit value becomes, by channel: [3, 256], of the output's type; bf16 as its bits, uint16.
        height: Of the output.
        width: Of the output.
    """

    name: str
    values: NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]
    height: int
    width: int

    def grid(self, images: int) -> tuple[int, int]:
        """Return the blocks for a number of images, in x and y."""
        return -(-self.height // TILE) * -(-self.width // TILE), images

    def arguments(self, *, sources: int, tables: int, values: int, output: int) -> bytes:
        """Return the kernel's argument.

        Args:
            sources: Address of what ``describe`` has written.
            tables: Address of the batch's tables.
            values: Address of ``values``.
            output: Address of the output, [images, 3, height, width].
        """
        return np.array((sources, tables, values, output, self.height, self.width), ARGUMENTS).tobytes()


def preprocess_kernel(preprocessor: Preprocessor, dtype: str = "fp32") -> PreprocessKernel:
    """Return the kernel that makes a model's input.

    Args:
        preprocessor: The checkpoint's preprocessing.
        dtype: ``fp32``, ``fp16`` or ``bf16``, each rounded to nearest, ties to even, from fp32.
    """
    table = preprocessor.table
    height, width = preprocessor.output_size
    if dtype == "fp32":
        return PreprocessKernel("preprocess_to_32_bits", table, height, width)
    if dtype == "fp16":
        return PreprocessKernel("preprocess_to_16_bits", table.astype(np.float16), height, width)
    bits = table.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    return PreprocessKernel("preprocess_to_16_bits", rounded.astype(np.uint16), height, width)
