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
    finite, indices, probabilities = found
    expected = top_k(logits, k)
    assert finite.all()
    assert np.array_equal(indices, expected.indices)
    np.testing.assert_allclose(probabilities, expected.probabilities, rtol=3e-6, atol=1e-38)


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
    logits = np.random.default_rng(0).normal(size=(5, 999)).astype(np.float32)
    broken = logits.copy()
    broken[[1, 3], place] = wrong
    finite, indices, probabilities = best(broken, 5)
    assert finite.tolist() == [True, False, True, False, True]
    assert not indices[~finite].any()
    assert not probabilities[~finite].any()
    good = logits[finite]
    check(good, 5, (finite[finite], indices[finite], probabilities[finite]))


def test_every_number_of_16_bits_is_read_as_numpy_reads_it() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits.view(np.float16)
    numbers = bits[np.isfinite(values)]
    for first in range(0, len(numbers), 1000):
        part = numbers[np.newaxis, first : first + 1000]
        wide = part.view(np.float16).astype(np.float32)
        check(wide, part.shape[1], best(part, part.shape[1], "fp16"))
    assert best(bits[~np.isfinite(values)][:, np.newaxis], 1, "fp16")[0].tolist() == [False] * 2048


def test_bfloat16_is_the_upper_half_of_a_float() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
    bits = (logits.view(np.uint32) >> 16).astype(np.uint16)
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    check(wide, 100, best(bits, 100, "bf16"))


def test_what_the_kernel_is_told_and_answers() -> None:
    assert topk.words(5) == 11
    argument = np.frombuffer(topk.arguments(logits=1, output=2, classes=3, k=4), topk.ARGUMENTS)[0]
    assert argument.tolist() == (1, 2, 3, 4)
    answer = np.array([[1, 7, 9, *np.array([0.75, 0.25], np.float32).view(np.uint32)], [0] * 5], dtype=np.uint32)
    finite, indices, probabilities = topk.read(answer)
    assert finite.tolist() == [True, False]
    assert indices.tolist() == [[7, 9], [0, 0]]
    assert probabilities.tolist() == [[0.75, 0.25], [0, 0]]
