from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_vit.quantize.codes import activation_scale, rounded
from trt_vit.quantize.equalize import Methods, Numbers, Operand, exact_scales, find_operand, row_weights
from trt_vit.quantize.statistics import TensorStatistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from trt_vit.engine.manifest import RangeMethod
    from trt_vit.quantize.codes import Code

    Draw = Callable[[int], NDArray[np.float32]]

INT8 = Numbers("int8", "int8")
CHANNELS = 32
LOUD = 3
"""The channel that is 50 times as large as the others, where one is."""


def seen(rows: NDArray[np.float32]) -> TensorStatistics:
    return TensorStatistics(rows.min(axis=0), rows.max(axis=0), rows)


def even(seed: int = 0) -> Draw:
    rng = np.random.default_rng(seed)
    return lambda count: rng.standard_normal((count, CHANNELS), dtype=np.float32)


def loud(seed: int = 0) -> Draw:
    draw = even(seed)
    return lambda count: draw(count) * np.where(np.arange(CHANNELS) == LOUD, 50, 1).astype(np.float32)


def gelu(seed: int = 0) -> Draw:
    inner, erf = even(seed), np.vectorize(math.erf)

    def draw(count: int) -> NDArray[np.float32]:
        x = 2 * inner(count)
        return np.asarray(x * (1 + erf(x / 2**0.5)) / 2, dtype=np.float32)

    return draw


def weight(seed: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((CHANNELS, 24), dtype=np.float32)


def against_loud(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """A weight that takes no more of the loud channel than of the others."""
    return matrix / np.where(np.arange(CHANNELS) == LOUD, 50, 1).astype(np.float32)[:, None]


def halves(draw: Draw) -> tuple[TensorStatistics, TensorStatistics]:
    return seen(draw(300)), seen(draw(300))


def error(operand: Operand, rows: NDArray[np.float32], matrix: NDArray[np.float32], numbers: Numbers = INT8) -> float:
    """The error of a quantized product relative to the product, what a bias makes up for left out."""
    undone = operand.undo(matrix)
    codes = rounded(undone, exact_scales(undone, numbers.weights), numbers.weights)
    exact = rows.astype(np.float64) @ matrix
    errors = operand.codes(rows, numbers.activations) @ codes - exact
    return float(np.linalg.norm(errors - errors.mean(axis=0)) / np.linalg.norm(exact))


def assert_nothing_changes(operand: Operand, rows: NDArray[Any], matrix: NDArray[Any]) -> None:
    """Shift, scale and their undoing are the identity: ((x - shift) / scale) (scale W) + shift W = x W."""
    rows, matrix = rows.astype(np.float64), matrix.astype(np.float64)
    moved = 0 if operand.shift is None else operand.shift @ matrix
    np.testing.assert_allclose(operand.apply(rows) @ operand.undo(matrix) + moved, rows @ matrix, rtol=1e-6, atol=1e-6)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_in_exact_arithmetic_shift_and_scale_change_nothing(seed: int, shifted: bool, scaled: bool) -> None:  # noqa: FBT001
    rng = np.random.default_rng(seed)
    shift = rng.normal(size=5).astype(np.float32) if shifted else None
    scale = rng.uniform(0.01, 100, 5).astype(np.float32) if scaled else None
    assert_nothing_changes(Operand(1.0, shift, scale), rng.normal(size=(7, 5)), rng.normal(size=(5, 3)))


@pytest.mark.parametrize("draw", [even(), loud(), gelu()])
def test_what_is_found_changes_nothing_in_exact_arithmetic(draw: Draw) -> None:
    operand = find_operand(halves(draw), weight(), INT8, Methods())
    assert_nothing_changes(operand, draw(20), weight())


def test_a_repeated_operand_moves_every_copy_of_a_channel_alike() -> None:
    operand = Operand(2.0, np.array([1, 2], np.float32), np.array([4, 8], np.float32))
    three = operand.repeated(3)
    rows = np.array([[5, 9, 13, 10, 18, 26]], np.float32)
    assert three.apply(rows).tolist() == [[1, 2, 3, 1, 2, 3]]
    assert (three.amax, operand.amax) == (2, 2)
    assert Operand(2.0).repeated(3) == Operand(2.0)


def test_codes_are_what_quantization_leaves() -> None:
    operand = Operand(127.0, np.array([10, 0], np.float32), np.array([2, 1], np.float32))
    rows = np.array([[15.2, 1.5], [10, -300]], np.float32)
    # (15.2 - 10) / 2 = 2.6, halves go to the even neighbour, and what is beyond the range ends at the last code.
    assert operand.codes(rows, "int8").tolist() == [[3, 2], [0, -128]]


@pytest.mark.parametrize("numbers", [INT8, Numbers("int8", "int7")])
def test_a_loud_channel_is_brought_down_and_the_error_falls_by_much(numbers: Numbers) -> None:
    draw, matrix = loud(), against_loud(weight())
    both = halves(draw)
    plain = find_operand(both, matrix, numbers, Methods(equalize=False))
    found = find_operand(both, matrix, numbers, Methods())
    assert found.scale is not None
    assert np.argmax(found.scale) == LOUD
    assert found.scale[LOUD] > 5 * np.median(found.scale)
    fresh = draw(500)
    assert error(plain, fresh, matrix, numbers) > 0.1
    assert error(found, fresh, matrix, numbers) < error(plain, fresh, matrix, numbers) / 5


@pytest.mark.parametrize("number", ["int8", "fp8"])
def test_scales_lie_within_what_fp16_divides_and_multiplies(number: Code) -> None:
    rng = np.random.default_rng(0)
    spread = (10.0 ** rng.uniform(-3, 2, CHANNELS)).astype(np.float32)
    draw = even()
    operand = find_operand(
        halves(lambda count: draw(count) * spread), weight() / spread[:, None], Numbers(number, number), Methods()
    )
    assert operand.scale is not None
    assert operand.scale.max() / operand.scale.min() <= 256 * 1.001


def test_what_comes_from_a_gelu_is_centred_and_its_zeros_stay_zeros() -> None:
    draw, matrix = gelu(), weight()
    both = halves(draw)
    operand = find_operand(both, matrix, INT8, Methods())
    assert operand.shift is not None
    middle = (np.minimum(both[0].low, both[1].low) + np.maximum(both[0].high, both[1].high)) / 2
    np.testing.assert_allclose(operand.shift, middle, atol=0.1)
    assert np.all(middle > 1)
    step = float(activation_scale(operand.amax, "int8"))
    zero = operand.apply(np.zeros((1, CHANNELS), np.float32)) / step
    np.testing.assert_allclose(zero, np.rint(zero), atol=1e-4)
    assert np.any(np.rint(zero) != 0)
    left = operand.codes(np.zeros((1, CHANNELS), np.float32), "int8").astype(np.float64)
    back = left * (1 if operand.scale is None else operand.scale) + operand.shift
    np.testing.assert_allclose(back, 0, atol=1e-5)


@pytest.mark.parametrize("draw", [even(), loud(), gelu()])
@pytest.mark.parametrize("ranges", ["error", "max", "percentile", "mse"])
def test_nothing_is_moved_unless_that_is_allowed(draw: Draw, ranges: RangeMethod) -> None:
    operand = find_operand(halves(draw), weight(), INT8, Methods(equalize=False, ranges=ranges))
    assert operand.shift is None
    assert operand.scale is None


def test_without_equalization_the_largest_value_ends_the_range_of_max() -> None:
    both = halves(loud())
    operand = find_operand(both, weight(), INT8, Methods(equalize=False, ranges="max"))
    assert operand.amax == max(float(np.abs(half.rows).max()) for half in both)


def test_a_range_reaches_beyond_what_was_seen_where_images_differ() -> None:
    """What one half holds is beyond the range of the other: it will be so with images that nobody has seen."""
    rng = np.random.default_rng(0)
    small = rng.uniform(-1, 1, (300, CHANNELS)).astype(np.float32)
    large = np.where(rng.random((300, CHANNELS)) < 0.05, 1.4, small).astype(np.float32)
    methods = Methods(equalize=False)
    apart = find_operand((seen(small), seen(large)), weight(), INT8, methods)
    assert apart.amax > 1.4 * 1.05
    alike = find_operand((seen(large[:150]), seen(large[150:])), weight(), INT8, methods)
    assert alike.amax < 1.4 * 1.05
    rare = 10 * apart.amax * (np.arange(300) == 7)
    clipped = large + rare[:, None].astype(np.float32) * (np.arange(CHANNELS) == LOUD)
    far = find_operand((seen(clipped), seen(clipped)), weight(), INT8, methods)
    assert far.amax < np.abs(clipped).max()


@pytest.mark.parametrize("number", ["int8", "fp8"])
@pytest.mark.parametrize("draw", [loud(), gelu()])
def test_dead_channels_disturb_nothing(draw: Draw, number: Code) -> None:
    dead = np.arange(CHANNELS) % 4 == 0
    unread = np.arange(CHANNELS) % 4 == 1

    def sparse(count: int) -> NDArray[np.float32]:
        return np.where(dead, 0, draw(count)).astype(np.float32)

    matrix = np.where(unread[:, None], 0, against_loud(weight())).astype(np.float32)
    numbers = Numbers(number, number)
    operand = find_operand(halves(sparse), matrix, numbers, Methods())
    fresh = sparse(200)
    assert np.isfinite(operand.amax)
    assert operand.scale is None or (np.all(operand.scale > 0) and np.all(np.isfinite(operand.scale)))
    assert operand.shift is None or np.all(operand.shift[dead] == 0)
    assert error(operand, fresh, matrix, numbers) < (0.03 if number == "int8" else 0.06)


def test_a_tensor_of_zeros_has_an_operand() -> None:
    both = halves(lambda count: np.zeros((count, CHANNELS), np.float32))
    operand = find_operand(both, weight(), INT8, Methods())
    assert operand.amax == 0
    assert not operand.codes(np.zeros((2, CHANNELS), np.float32), "int8").any()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["int8", "fp8"]),
    st.booleans(),
    st.sampled_from([even, loud, gelu]),
)
def test_max_covers_every_value_of_both_halves(
    seed: int,
    number: Code,
    equalize: bool,  # noqa: FBT001
    kind: Callable[[int], Draw],
) -> None:
    draw = kind(seed)
    both = seen(draw(30)), seen(draw(20))
    operand = find_operand(both, weight(), Numbers(number, number), Methods(equalize=equalize, ranges="max"))
    largest = max(float(np.abs(operand.apply(half.rows.astype(np.float32))).max()) for half in both)
    assert largest <= operand.amax * 1.00001
    # And no more than that, but for a shift that is moved by half a step.
    assert operand.amax <= largest * (1.00001 if operand.shift is None or number == "fp8" else 127 / 126 * 1.01)


def test_errors_count_relative_to_their_rows() -> None:
    product = np.array([[3, 4], [0, 0], [6, 8]], np.float32)
    norms = np.array([25, 0, 100])
    np.testing.assert_allclose(row_weights(product), 1 / (norms + norms.mean()) / 3, rtol=1e-6)
    assert np.all(np.isfinite(row_weights(np.zeros((2, 2), np.float32))))


def test_scales_of_a_weight_are_one_for_each_column_in_int8_and_one_in_fp8() -> None:
    matrix = np.array([[127, -63.5, 0], [-3, 0.25, 0]], np.float32)
    assert exact_scales(matrix, "int8").tolist() == [1.0, 0.5, 1.0]
    assert exact_scales(np.array([[448, -63.5], [-3, 0.25]], np.float32), "fp8").tolist() == 1.0
    assert exact_scales(np.array([[64, -16.0]], np.float32), "int7").tolist() == [1.0, 0.25]
