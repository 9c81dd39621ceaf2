"""The weights of Pillow's resampling, for the kernel that applies them.

What is computed here, and in which order, is what ``precompute_coeffs`` and ``normalize_coeffs_8bpc`` of Pillow's
Resample.c compute, in float64: the same operations on the same numbers give the same bits. For nearest it is the
positions of ``ImagingScaleAffine`` in Geometry.c, as one weight of 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import PIL

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from trt_vit.images.preprocessing import Filter

FRACTION_BITS = 22
"""Bits behind the point of a weight: 32, without 8 for a pixel and 2 for weights that are negative or above 1."""

MAX_WORDS = 1 << 16
"""Largest table in int32 words: for 224 pixels enough to shrink 48 times with lanczos, or 144 times with bilinear."""

_CACHED = 1024
_HAMMING_MEAN, _HAMMING_SWING = float(np.float32(0.54)), float(np.float32(0.46))
"""The window's constants, which are float32 in Pillow."""
_COLUMNS_FIRST_SINCE = ((13, 0), (12, 2))
"""Versions of Pillow since which the vertical pass may come first, and since which it may for extreme sizes only."""


@dataclass(frozen=True, eq=False)
class AxisTable:
    """Where the pixels of one axis come from.

    Attributes:
        words: int32 ``start[length]``, ``count[length]``, ``weights[taps][length]``: pixel ``i`` is the sum of
            ``source[start[i] + t] * weights[t][i]`` over ``t < count[i]``.
        length: Pixels.
    """

    words: NDArray[np.int32]
    length: int


@lru_cache(maxsize=_CACHED)
def resize_table(source: int, target: int, name: Filter, first: int, length: int) -> AxisTable | None:
    """Return the table of pixels ``first`` to ``first + length`` of an axis resized from ``source`` to ``target``.

    None if it would be larger than ``MAX_WORDS``: such an image is better resized on the CPU.
    """
    if source == target:
        return identity_table(length, first)
    if name == "nearest":
        return _nearest(source, target, first, length)
    support_of, weigh = _FILTERS[name]
    scale = source / target
    stretch = max(scale, 1.0)
    support = support_of * stretch
    if (2 + 2 * math.ceil(support) + 1) * length > MAX_WORDS:
        return None
    centers = (np.arange(first, first + length) + 0.5) * scale
    starts = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    counts = np.minimum((centers + support + 0.5).astype(np.int64), source) - starts
    weights = np.zeros((int(counts.max()), length))
    total = np.zeros(length)
    for tap, row in enumerate(weights):  # a sum in Pillow's order: the last bit of a weight depends on it
        inside = tap < counts
        row[inside] = weigh((tap + starts[inside] - centers[inside] + 0.5) * (1.0 / stretch))
        total += row
    weights /= np.where(total == 0.0, 1.0, total)
    return _table(starts, weights, counts)


def identity_table(length: int, first: int = 0) -> AxisTable:
    """Return the table of pixels ``first`` to ``first + length`` of an axis that is not resized."""
    return _table(np.arange(first, first + length), np.full((1, length), 1.0))


def vertical_first(height: int, width: int, target_height: int, target_width: int) -> bool:
    """Tell whether the installed Pillow resizes columns before rows, which changes what is rounded in between."""
    version = tuple(int(part) for part in PIL.__version__.split(".")[:2])
    always, extremes = _COLUMNS_FIRST_SINCE
    if version >= always:
        return height > target_height and height - target_height > 2 * (width - target_width)
    return version >= extremes and height > 100 * width and height > target_height


def _table(
    starts: NDArray[np.int64], weights: NDArray[np.float64], counts: NDArray[np.int64] | None = None
) -> AxisTable:
    """Round the weights to integers, half away from zero, and lay the table out."""
    scaled = weights * (1 << FRACTION_BITS)
    rounded = np.where(scaled < 0, scaled - 0.5, scaled + 0.5).astype(np.int32)
    taps, length = weights.shape
    if counts is None:
        counts = np.full(length, taps)
    words = np.concatenate([starts, counts, rounded.reshape(-1)]).astype(np.int32)
    words.flags.writeable = False
    return AxisTable(words, length)


def _nearest(source: int, target: int, first: int, length: int) -> AxisTable:
    scale = source / target
    # Each position is the one before plus the scale, as Pillow has it; what ends up behind the image stays black.
    positions = np.add.accumulate(np.r_[scale * 0.5, np.full(first + length - 1, scale)])[first:].astype(np.int64)
    return _table(np.minimum(positions, source), np.full((1, length), 1.0), (positions < source).astype(np.int64))


def _box(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)  # noqa: PLR2004 - Pillow's own figures


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    return np.where(x < 1.0, 1.0 - x, 0.0)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))  # noqa: PLR2004 - Pillow's own figures


def _one_by_one(function: Callable[[float], float]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Apply a function to each number: numpy's own sine differs from the C library's, and Pillow uses that one."""
    return lambda values: np.array([function(value) for value in values.tolist()], dtype=np.float64)


def _hamming(x: float) -> float:
    x = abs(x)
    if x == 0.0:
        return 1.0
    if x >= 1.0:
        return 0.0
    x *= math.pi
    return math.sin(x) / x * (_HAMMING_MEAN + _HAMMING_SWING * math.cos(x))


def _sinc(x: float) -> float:
    if x == 0.0:
        return 1.0
    x *= math.pi
    return math.sin(x) / x


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0  # noqa: PLR2004 - Pillow's own figures


_FILTERS: dict[Filter, tuple[float, Callable[[NDArray[np.float64]], NDArray[np.float64]]]] = {
    "box": (0.5, _box),
    "bilinear": (1.0, _bilinear),
    "hamming": (1.0, _one_by_one(_hamming)),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _one_by_one(_lanczos)),
}
"""Half of each filter's width, in pixels of the longer scale, and its shape."""
