from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_vit.quantize.codes import LARGEST, encode, round_up, rounded
from trt_vit.quantize.equalize import exact_scales
from trt_vit.quantize.rounding import round_together

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trt_vit.quantize.codes import Code

NUMBERS: tuple[Code, ...] = ("int8", "int7", "fp8")


def correlated(rows: int, channels: int, seed: int) -> NDArray[np.float32]:
    """Rows whose channels move together, as those of a transformer do; always the same directions."""
    directions = np.random.default_rng(99).standard_normal((channels // 4, channels)) / 2
    rng = np.random.default_rng(seed)
    noise = 0.1 * rng.standard_normal((rows, channels))
    return (rng.standard_normal((rows, channels // 4)) @ directions + noise).astype(np.float32)


def weight(channels: int, outputs: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((channels, outputs), dtype=np.float32)


def gptq(
    matrix: NDArray[np.float32], scales: NDArray[np.float32], inputs: NDArray[np.float32], number: Code
) -> NDArray[np.float32]:
    """GPTQ as it is derived: after each row the best update of all that are left, found from their own moments."""
    left = matrix.astype(np.float64)
    result = np.empty_like(matrix)
    moments = inputs.astype(np.float64).T @ inputs.astype(np.float64)
    diagonal = np.diagonal(moments)
    rest = sorted(range(len(matrix)), key=lambda row: -diagonal[row])
    moments = moments + 0.01 * diagonal.mean() * np.eye(len(moments))
    while rest:
        first_column = np.linalg.solve(moments[np.ix_(rest, rest)], np.eye(len(rest))[0])
        row = rest[0]
        result[row] = rounded(left[row].astype(np.float32), scales, number)
        error = (left[row] - result[row]) / first_column[0]
        left[rest[1:]] -= np.outer(first_column[1:], error)
        rest = rest[1:]
    return result


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("channels", "rows"), [(1, 5), (20, 60), (150, 400), (40, 10)])
def test_blocks_change_nothing(channels: int, rows: int, number: Code) -> None:
    """150 rows are a block and a part of one; of 40 channels and 10 rows, only damping makes moments invertible."""
    # With this seed nothing lies so near to a half that the last bits of an update would tell.
    matrix, inputs = weight(channels, 3, 15), correlated(rows, max(channels, 4), 1)[:, :channels]
    scales = exact_scales(matrix, number) * np.float32(4)  # coarse, so that every rounding matters
    result = round_together(matrix, scales, inputs, number)
    np.testing.assert_array_equal(result, gptq(matrix, scales, inputs, number))
    assert result.dtype == np.float32


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(NUMBERS), st.booleans())
def test_every_number_is_a_code_times_its_scale(seed: int, number: Code, scalar: bool) -> None:  # noqa: FBT001
    matrix, inputs = weight(24, 6, seed), correlated(50, 24, seed)
    scales = exact_scales(matrix, number)
    scales = round_up(np.array(np.abs(matrix).max() / LARGEST[number])) if scalar else scales
    assert scales.shape == (() if scalar or number == "fp8" else (6,))
    before = matrix.copy()
    result = round_together(matrix, scales, inputs, number)
    codes = result / scales
    np.testing.assert_array_equal(encode(codes, number).astype(np.float32) * scales, result)
    assert np.abs(codes).max() <= {"int8": 128, "int7": 64, "fp8": 448}[number]
    np.testing.assert_array_equal(matrix, before)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_output_is_nearer_than_with_the_nearest_codes(number: Code) -> None:
    matrix, inputs = weight(64, 16), correlated(500, 64, 1)
    scales = exact_scales(matrix, number)
    nearest, together = rounded(matrix, scales, number), round_together(matrix, scales, inputs, number)
    for rows in (inputs, correlated(500, 64, 2)):
        far, near = (np.linalg.norm(rows @ (result - matrix)) for result in (nearest, together))
        assert near < 0.8 * far


def test_independent_inputs_are_left_with_the_nearest_codes() -> None:
    """What one row has lost, no other can make up for."""
    matrix = weight(8, 4)
    scales = exact_scales(matrix, "int8")
    inputs = np.diag(np.arange(1, 9, dtype=np.float32))
    np.testing.assert_array_equal(round_together(matrix, scales, inputs, "int8"), rounded(matrix, scales, "int8"))


def test_a_copy_of_a_channel_makes_up_for_its_rounding() -> None:
    """Both channels are always the same, so that only the sum of their weights counts: 2 * 0.4 is 1 and 0, not 0."""
    inputs = np.ones((10, 2), np.float32)
    matrix = np.full((2, 1), 0.4, np.float32)
    scale = np.array(1, np.float32)
    assert rounded(matrix, scale, "int8").sum() == 0
    assert round_together(matrix, scale, inputs, "int8").sum() == 1


@pytest.mark.parametrize("inputs", [np.zeros((5, 8), np.float32), np.zeros((0, 8), np.float32)])
def test_inputs_of_zeros_say_nothing_and_the_nearest_codes_are_taken(inputs: NDArray[np.float32]) -> None:
    matrix = weight(8, 4)
    scales = exact_scales(matrix, "int8")
    np.testing.assert_array_equal(round_together(matrix, scales, inputs, "int8"), rounded(matrix, scales, "int8"))


def test_dead_channels_are_rounded_to_the_nearest() -> None:
    matrix, inputs = weight(8, 4), correlated(50, 8, 0)
    inputs[:, [2, 5]] = 0
    scales = exact_scales(matrix, "int8")
    result = round_together(matrix, scales, inputs, "int8")
    np.testing.assert_array_equal(result[[2, 5]], rounded(matrix, scales, "int8")[[2, 5]])
    assert np.all(np.isfinite(result))
