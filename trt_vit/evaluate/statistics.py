"""What a share of so many images means: intervals, tests and calibration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Z95 = 1.959963984540054
"""The normal distribution's quantile of 0.975."""
BINS = 15
"""Bins of confidence, as in Guo et al., On Calibration of Modern Neural Networks (2017)."""
_EXACT = 1000


def wilson_interval(hits: int, count: int, z: float = Z95) -> tuple[float, float]:
    """Return the interval that a share lies in with 95 % confidence, 0 to 1.

    Wilson's score interval (1927), which unlike the normal one stays within 0 and 1 and is right for few images.
    """
    if count == 0:
        return 0.0, 1.0
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the probability of a difference at least as large if two engines were equally good, 0 to 1.

    McNemar's test (1947): images that both know, or neither, say nothing. Exact by the binomial distribution, and where
    the images are many by the normal one, corrected for continuity.

    Args:
        only_first: Images that only the first engine gets right.
        only_second: Images that only the second does.
    """
    count = only_first + only_second
    if count == 0:
        return 1.0
    if count > _EXACT:
        distance = max(0.0, abs(only_first - only_second) - 1) / math.sqrt(count)
        return math.erfc(distance / math.sqrt(2))
    tail = sum(math.comb(count, k) for k in range(min(only_first, only_second) + 1))
    doubled: float = 2 * tail / 2**count
    return min(1.0, doubled)


def calibration_bins(
    confidences: NDArray[np.float32], hits: NDArray[np.bool_], bins: int = BINS
) -> list[tuple[int, float, float]]:
    """Return, for each bin of equal width of confidence, how many images it has, their mean confidence and accuracy.

    Args:
        confidences: Softmax probability of the top-1, [images].
        hits: Whether the top-1 is right, [images].
        bins: How many.
    """
    places = np.minimum((confidences * bins).astype(int), bins - 1)
    rows = []
    for place in range(bins):
        inside = places == place
        count = int(inside.sum())
        rows.append((count, float(confidences[inside].mean()), float(hits[inside].mean())) if count else (0, 0.0, 0.0))
    return rows


def calibration_error(bins: list[tuple[int, float, float]]) -> float:
    """Return the expected calibration error: how far confidence and accuracy are apart, over all images, 0 to 1."""
    images = sum(count for count, _, _ in bins)
    return sum(count * abs(confidence - accuracy) for count, confidence, accuracy in bins) / images if images else 0.0
