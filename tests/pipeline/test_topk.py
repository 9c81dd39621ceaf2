from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trt_vit.pipeline.topk import top_k


def test_the_largest_come_first_with_their_softmax() -> None:
    best = top_k(np.log(np.array([[1, 5, 2, 2]], dtype=np.float32)), 3)
    assert best.indices.tolist() == [[1, 2, 3]]
    np.testing.assert_allclose(best.probabilities, [[0.5, 0.2, 0.2]], rtol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    best = top_k(np.array([[1e30, 0.0], [-1e30, 0.0]], dtype=np.float32), 1)
    assert best.probabilities.tolist() == [[1.0], [1.0]]


@given(
    logits=arrays.arrays(
        np.float32,
        st.tuples(st.integers(0, 4), st.integers(1, 40)),
        elements=st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, 7.0]),
    ),
    data=st.data(),
)
def test_equal_to_a_stable_sort_of_everything(logits: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, logits.shape[1]))
    best = top_k(logits, k)
    assert best.indices.tolist() == np.argsort(-logits, axis=1, kind="stable")[:, :k].tolist()
    softmax = np.exp(logits.astype(np.float64))
    softmax /= softmax.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(best.probabilities, np.take_along_axis(softmax, best.indices, axis=1), rtol=1e-6)
