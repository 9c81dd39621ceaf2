"""How close one set of logits is to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Comparison:
    """Logits against their reference.

    Attributes:
        images: How many there are.
        agreement: Share of the images with the same top-1, 0 to 1.
        cosine: Mean over the images of the cosine similarity of the logits, -1 to 1.
        min_cosine: The least of them.
        max_abs_difference: Largest absolute difference of one logit.
    """

    images: int
    agreement: float
    cosine: float
    min_cosine: float
    max_abs_difference: float


def cosine_similarities(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine similarity of each image's logits in two sets, both [images, classes]; 0 where all are 0."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    similarities: NDArray[np.float64] = np.sum(a * b, axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return similarities


def compare_logits(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> Comparison:
    """Compare logits with their reference, both [images, classes]."""
    a, b = logits.astype(np.float64), reference.astype(np.float64)
    cosines = cosine_similarities(a, b)
    return Comparison(
        images=len(a),
        agreement=float(np.mean(a.argmax(axis=1) == b.argmax(axis=1))),
        cosine=float(np.mean(cosines)),
        min_cosine=float(np.min(cosines)),
        max_abs_difference=float(np.abs(a - b).max()),
    )
