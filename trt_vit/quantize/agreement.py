"""How often logits still say what their reference says: counted, and expected of images that were not seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def agreement(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the share of images with the same top-1, of logits [images, classes]."""
    return float(np.mean(logits.argmax(axis=1) == reference.argmax(axis=1)))


def expected_agreement(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the share of images with the same top-1 that other images of the same kind are to be expected to have.

    A few dozen images tell a share of 0.98 from one of 0.95 only by luck. But each comes with an error of its logits,
    and what the error of one image would have done to another is as good a trial: every image is given the error of
    every image, n * n trials of n images. That holds as far as errors do not depend on how sure an image is.

    Args:
        logits: Float32 [images, classes].
        reference: Those they should be, float32 [images, classes].
    """
    errors, best = logits - reference, reference.argmax(axis=1)
    shares = [
        np.mean((reference + np.roll(errors, step, axis=0)).argmax(axis=1) == best) for step in range(len(errors))
    ]
    return float(np.mean(shares))


def squared_error(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the mean over the images of the squared error of the logits, what is common to all classes left out.

    A softmax takes no notice of the same number added to all of its inputs.
    """
    errors = (logits - reference).astype(np.float64)
    errors -= errors.mean(axis=1, keepdims=True)
    return float(np.mean(np.sum(np.square(errors), axis=1)))
