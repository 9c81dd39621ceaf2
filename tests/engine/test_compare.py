from __future__ import annotations

import numpy as np

from trt_vit.engine.compare import compare_logits


def test_known_values() -> None:
    reference = np.array([[3, 4], [1, 0]], dtype=np.float32)
    logits = np.array([[6, 8], [0, 2]], dtype=np.float32)
    comparison = compare_logits(logits, reference)
    assert comparison.agreement == 0.5
    assert comparison.cosine == 0.5  # 1 for the first image, 0 for the second
    assert comparison.max_abs_difference == 4.0


def test_nothing_agrees_with_zeros_in_cosine() -> None:
    zeros = np.zeros((1, 3), dtype=np.float32)
    assert compare_logits(zeros, zeros + 1).cosine == 0.0
