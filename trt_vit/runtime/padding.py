"""A fixed batch: what a lane does whose engine takes exactly one batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class FixedBatch:
    """Gives every batch the same number of images.

    It belongs to one lane: the padded copy is used again for the next small batch.

    Args:
        size: Number of images.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._padded: NDArray[np.float32] | None = None

    def fill(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a full batch that starts with ``pixels``: they themselves where they are as many as it takes.

        Args:
            pixels: float32 [n, 3, height, width], 1 <= n <= the size.
        """
        if len(pixels) == self._size:
            return pixels
        if self._padded is None:
            self._padded = np.zeros((self._size, *pixels.shape[1:]), dtype=np.float32)
        self._padded[: len(pixels)] = pixels
        return self._padded
