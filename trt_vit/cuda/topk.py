"""Top-k on the GPU: what the host tells the kernel of topk.cu, and what it reads of its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST_K = 1024
"""Most classes of an image that the kernel finds, as in topk.cu."""

KERNELS: dict[Literal["fp32", "fp16", "bf16"], str] = {
    "fp32": "top_k_of_float32",
    "fp16": "top_k_of_float16",
    "bf16": "top_k_of_bfloat16",
}
"""The kernel for each type of logits. One block does one image."""

ARGUMENTS = np.dtype([("logits", np.uint64), ("output", np.uint64), ("classes", np.int32), ("k", np.int32)])
"""``TopK`` of topk.cu."""


def words(k: int) -> int:
    """Return the uint32 words of one image's answer."""
    return 1 + 2 * k


def arguments(*, logits: int, output: int, classes: int, k: int) -> bytes:
    """Return the kernel's argument.

    Args:
        logits: Address of the logits, [images, classes].
        output: Address of the answer, uint32 [images, words(k)].
        classes: Number of classes.
        k: 1 <= k <= classes, LARGEST_K.
    """
    return np.array((logits, output, classes, k), ARGUMENTS).tobytes()


def read(answer: NDArray[np.uint32]) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float32]]:
    """Take an answer apart.

    Args:
        answer: uint32 [images, words(k)].

    Returns:
        Whether an image's logits are all finite [images]; of those that are, the class indices [images, k], best first,
        and their softmax probabilities [images, k].
    """
    k = answer.shape[1] // 2
    probabilities = np.ascontiguousarray(answer[:, 1 + k :]).view(np.float32)
    return answer[:, 0] == 1, answer[:, 1 : 1 + k].astype(np.int64), probabilities
