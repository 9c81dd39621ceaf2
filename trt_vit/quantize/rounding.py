"""Weights rounded so that the errors of one make up for those of another.

GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323): the rows of a weight [in, out] are rounded one after the
other, and what one has lost is made up for in those that are not rounded yet, as far as the inputs let it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trt_vit.quantize.codes import Code, rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DAMPING = 0.01
"""Added to the diagonal of the inputs' second moments, as a share of its mean: GPTQ's own."""
_BLOCK = 128
"""Rows after which what was lost is passed on to all rows below, in one product."""


def round_together(
    matrix: NDArray[np.float32], scales: NDArray[np.float32], inputs: NDArray[np.float32], number: Code
) -> NDArray[np.float32]:
    """Round a weight for inputs like those given.

    Args:
        matrix: The weight, float32 [in, out].
        scales: The scale of its columns, float32 [out], or one for all of shape [].
        inputs: Rows that it is multiplied by, float32 [rows, in], as quantization leaves them.
        number: What it is rounded to.

    Returns:
        The rounded weight, float32 [in, out]: every number is a code times its column's scale.
    """
    moments = inputs.T.astype(np.float64) @ inputs
    diagonal = np.diagonal(moments).copy()
    damping = _DAMPING * diagonal.mean()
    if not damping > 0:
        return rounded(matrix, scales, number)
    order = np.argsort(-diagonal, kind="stable")
    moments = moments[np.ix_(order, order)]
    moments[np.diag_indices_from(moments)] += damping
    factor = np.linalg.cholesky(np.linalg.inv(moments)).T.astype(np.float32)
    left = matrix[order]
    result = np.empty_like(left)
    for start in range(0, len(left), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(left)))
        errors = np.empty_like(left[block])
        for row in range(block.start, block.stop):
            result[row] = rounded(left[row], scales, number)
            error = (left[row] - result[row]) / factor[row, row]
            left[row + 1 : block.stop] -= np.outer(factor[row, row + 1 : block.stop], error)
            errors[row - block.start] = error
        left[block.stop :] -= factor[block, block.stop :].T @ errors
    restored = np.empty_like(result)
    restored[order] = result
    return restored
