"""The top-k kernel, made for the CPU, against numpy's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.kernels import best
from trt_vit.cuda import topk
from trt_vit.pipeline.topk import top_k

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES = (1, 2, 10, 255, 256, 257, 1000, 21_843, 50_000, 70_000)
SHAPES = [(classes, k) for classes in CLASSES for k in sorted({1, 5, 100, 1024, classes}) if k <= min(classes, 1024)]


def check(logits: NDArray[np.float32], k: int, found: Any) -> None:
    """The indices are exact. A logit less the largest, d, is rounded to float32, which exp makes a relative error of
    up to d / 2^24 of; below float32's normal numbers there are fewer digits."""
    finite, indices, probabilities = found
    expected = top_k(logits, k)
    assert finite.all()
    assert np.array_equal(indices, expected.indices)
    wide = logits.astype(np.float64)
    behind = np.minimum(wide.max(axis=1, keepdims=True) - np.take_along_axis(wide, indices, axis=1), 200)
    wrong = np.abs(probabilities.astype(np.float64) - expected.probabilities)
    assert (wrong <= (1e-6 + behind / 2**24) * expected.probabilities + 1e-38).all()


@pytest.mark.parametrize(("classes", "k"), SHAPES)
@pytest.mark.parametrize("steps", [None, 2])  # logits all different, or mostly the same
def test_it_is_numpy_s(classes: int, k: int, steps: int | None) -> None:
    logits = 5 * np.random.default_rng(classes + k).normal(size=(3, classes))
    if steps is not None:
        logits = np.round(logits * steps) / steps
    check(logits.astype(np.float32), k, best(logits.astype(np.float32), k))


@given(st.integers(1, 40), st.data())
@settings(deadline=None, max_examples=200)
def test_of_equal_logits_the_lower_index_comes_first(classes: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.sampled_from([-1.0, -0.0, 0.0, 1.0, 2.0]), min_size=classes, max_size=classes))
    logits = np.array([values], dtype=np.float32)
    k = data.draw(st.integers(1, classes))
    check(logits, k, best(logits, k))


def test_all_equal() -> None:
    _, indices, probabilities = best(np.full((2, 3000), 7, dtype=np.float32), 100)
    assert indices.tolist() == [list(range(100))] * 2
    np.testing.assert_allclose(probabilities, 1 / 3000, rtol=1e-6)


@pytest.mark.parametrize("above", [0, 1, 999])
def test_the_tie_that_decides_is_far_into_the_image(above: int) -> None:
    """Of 70,000 classes the last thousands are equal, and some behind them better: indices of 17 bits decide."""
    logits = np.zeros((1, 70_000), dtype=np.float32)
    logits[0, 65_500:] = 1
    logits[0, 70_000 - above :] = 2
    check(logits, 1000, best(logits, 1000))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40), st.data())
@settings(deadline=None, max_examples=200)
def test_any_finite_numbers(values: list[float], data: st.DataObject) -> None:
    logits = np.array([values], dtype=np.float32)
    k = data.draw(st.integers(1, len(values)))
    check(logits, k, best(logits, k))


def test_zero_has_no_sign() -> None:
    assert best(np.array([[-0.0, 0.0, -0.0, 0.0]], dtype=np.float32), 4)[1].tolist() == [[0, 1, 2, 3]]


def test_a_wide_range() -> None:
    logits = np.array([[-1e30, 1e30, 3e38, 1e-45, -1e-45, 0.0, -3e38]], dtype=np.float32)
    finite, indices, probabilities = best(logits, 7)
    assert finite.all()
    assert indices.tolist() == [[2, 1, 3, 5, 4, 0, 6]]
    assert probabilities.tolist() == [[1, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 255, 256, 998])
def test_what_is_not_finite_is_reported_and_disturbs_no_other_image(wrong: float, place: int) -> None:
    broken = np.random.default_rng(0).normal(size=(5, 999)).astype(np.float32)
    broken[[1, 3], place] = wrong
    finite, indices, probabilities = best(broken, 5)
    assert finite.tolist() == [True, False, True, False, True]
    assert not indices[~finite].any()
    assert not probabilities[~finite].any()
    good = broken[finite]
    check(good, 5, (finite[finite], indices[finite], probabilities[finite]))


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFC00000, 0x7F800000, 0xFF800000])
def test_every_kind_of_nan_and_infinity_is_reported(bits: int) -> None:
    logits = np.array([[0, bits, 0], [0, 0x7F7FFFFF, 0xFF7FFFFF]], dtype=np.uint32).view(np.float32)
    assert best(logits, 3)[0].tolist() == [False, True]


EVERY = np.arange(1 << 16, dtype=np.uint16)
NARROW = {
    "fp16": EVERY.view(np.float16).astype(np.float32),
    "bf16": (EVERY.astype(np.uint32) << 16).view(np.float32),
}
"""The numbers that all patterns of 16 bits are."""


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shuffled", [False, True])
def test_every_number_of_16_bits_is_read_exactly(dtype: str, *, shuffled: bool) -> None:
    """What is found is, to the last bit, what is found of the same numbers as float32, near each other and far."""
    numbers = EVERY[np.isfinite(NARROW[dtype])]
    if shuffled:
        numbers = np.random.default_rng(0).permutation(numbers)
    bits = numbers.reshape(-1, 128)
    found, wide = best(bits, 128, dtype), NARROW[dtype][bits]
    check(wide, 128, found)
    assert np.array_equal(found[2], best(wide, 128)[2])


@pytest.mark.parametrize("dtype", NARROW)
def test_every_pattern_of_16_bits_that_is_no_number_is_reported(dtype: str) -> None:
    patterns = EVERY[~np.isfinite(NARROW[dtype])]
    assert len(patterns) == {"fp16": 2048, "bf16": 256}[dtype]
    assert not best(patterns[:, np.newaxis], 1, dtype)[0].any()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("classes", "k"), [(10, 10), (1000, 5), (21_843, 100)])
def test_narrow_logits(dtype: Any, classes: int, k: int) -> None:
    logits = 5 * np.random.default_rng(classes).normal(size=(3, classes)).astype(np.float32)
    bits = logits.astype(np.float16).view(np.uint16) if dtype == "fp16" else (logits.view(np.uint32) >> 16).astype("u2")
    check(NARROW[dtype][bits], k, best(bits, k, dtype))


def test_what_the_kernel_is_told_and_answers() -> None:
    assert topk.words(5) == 11
    argument = np.frombuffer(topk.arguments(logits=1, output=2, classes=3, k=4), topk.ARGUMENTS)[0]
    assert argument.tolist() == (1, 2, 3, 4)
    answer = np.array([[1, 7, 9, *np.array([0.75, 0.25], np.float32).view(np.uint32)], [0] * 5], dtype=np.uint32)
    finite, indices, probabilities = topk.read(answer)
    assert finite.tolist() == [True, False]
    assert indices.tolist() == [[7, 9], [0, 0]]
    assert probabilities.tolist() == [[0.75, 0.25], [0, 0]]
