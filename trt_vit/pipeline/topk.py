"""Top-k: the post-processing of a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TopK:
    """The best classes of each image of a batch, best first.

    Attributes:
        indices: Class indices, int64 [images, k].
        probabilities: Softmax probabilities over all classes, float32 [images, k].
    """

    indices: NDArray[np.int64]
    probabilities: NDArray[np.float32]


def top_k(logits: NDArray[np.float32], k: int) -> TopK:
    """Return the ``k`` classes with the largest logits of each image, and their softmax probabilities.

    Of equal logits the lower index comes first, so that the answer does not depend on a sorting algorithm. The softmax
    is computed in float64 after subtracting the row's maximum, which leaves it unchanged and keeps exp from
    overflowing.

    Args:
        logits: [images, classes], finite.
        k: 1 <= k <= classes.
    """
    indices = np.stack([_largest(row, k) for row in logits]) if len(logits) else np.empty((0, k), dtype=np.int64)
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities = np.take_along_axis(exponentials, indices, axis=1) / exponentials.sum(axis=1, keepdims=True)
    return TopK(indices, probabilities.astype(np.float32))


def _largest(row: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the indices of the ``k`` largest values of one row, without sorting the rest."""
    threshold = np.partition(row, len(row) - k)[len(row) - k]
    candidates = np.flatnonzero(row >= threshold)
    return candidates[np.argsort(-row[candidates], kind="stable")][:k]
