from __future__ import annotations

import math

import numpy as np
import pytest

from trt_vit.evaluate.statistics import calibration_bins, calibration_error, mcnemar, wilson_interval


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [  # Newcombe, Two-sided confidence intervals for the single proportion (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_s_interval(hits: int, count: int, low: float, high: float) -> None:
    np.testing.assert_allclose(wilson_interval(hits, count), (low, high), atol=5e-5)


def test_intervals_of_extremes() -> None:
    assert wilson_interval(0, 0) == (0, 1)
    np.testing.assert_allclose(wilson_interval(20, 20), (1 - 0.1611, 1), atol=5e-5)


@pytest.mark.parametrize(("b", "c", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (5, 0, 2 / 32), (1, 9, 22 / 1024)])
def test_mcnemar_is_a_sign_test(b: int, c: int, p: float) -> None:
    assert mcnemar(b, c) == pytest.approx(p)


def test_mcnemar_goes_over_to_the_normal_distribution_without_a_jump() -> None:
    exact = 2 * sum(math.comb(1001, k) for k in range(461)) / 2**1001
    assert mcnemar(460, 541) == pytest.approx(exact, rel=0.01)
    assert mcnemar(100_000, 101_000) == pytest.approx(math.erfc(999 / math.sqrt(201_000) / math.sqrt(2)))
    assert mcnemar(1000, 1000) == 1


def test_calibration() -> None:
    confidences = np.array([0.0, 0.05, 0.95, 1.0, 0.55], dtype=np.float32)
    hits = np.array([False, False, True, True, False])
    bins = calibration_bins(confidences, hits, 10)
    assert [count for count, _, _ in bins] == [2, 0, 0, 0, 0, 1, 0, 0, 0, 2]
    np.testing.assert_allclose(bins[9], (2, 0.975, 1.0), rtol=1e-6)
    assert calibration_error(bins) == pytest.approx((2 * 0.025 + 0.55 + 2 * 0.025) / 5)
    assert calibration_error([(0, 0.0, 0.0)]) == 0


def test_an_engine_that_is_as_sure_as_it_is_right_has_no_error() -> None:
    generator = np.random.default_rng(0)
    confidences = generator.random(200_000).astype(np.float32)
    hits = generator.random(200_000) < confidences
    assert calibration_error(calibration_bins(confidences, hits)) < 0.01
