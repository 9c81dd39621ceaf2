from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest

from trt_vit.engine.manifest import RangeMethod
from trt_vit.quantize.ranges import largest_kept

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trt_vit.quantize.codes import Code


@pytest.fixture(scope="module")
def bell() -> NDArray[np.float32]:
    """Numbers of a normal distribution: [100, 1000]."""
    return np.random.default_rng(0).standard_normal((100, 1000), dtype=np.float32)


def _error(values: NDArray[np.float32], amax: float) -> float:
    """The mean squared error of INT8, with no rounding of its scale."""
    step = amax / 127
    return float(np.mean(np.square(np.clip(np.rint(values / step), -128, 127) * step - values)))


def test_max_clips_nothing(bell: NDArray[np.float32]) -> None:
    assert largest_kept(bell, 12.5, "max", "int8") == 12.5


def test_a_percentile_leaves_one_value_in_ten_thousand_out(bell: NDArray[np.float32]) -> None:
    kept = largest_kept(bell, float(np.abs(bell).max()), "percentile", "int8")
    assert np.count_nonzero(np.abs(bell) > kept) == 10
    assert kept == pytest.approx(3.89, rel=0.03)  # of a normal distribution


def test_a_percentile_counts_sizes_whatever_their_sign() -> None:
    values = -np.arange(10001, dtype=np.float32)
    assert largest_kept(values, 10000.0, "percentile", "int8") == 9999.0


def test_mse_is_the_best_of_many(bell: NDArray[np.float32]) -> None:
    amax = float(np.abs(bell).max())
    kept = largest_kept(bell, amax, "mse", "int8")
    assert kept < amax
    best = min(_error(bell, share * amax) for share in np.linspace(0.3, 1, 200))
    assert _error(bell, kept) < 1.02 * best
    assert _error(bell, kept) < 0.99 * _error(bell, amax)


def test_mse_keeps_all_of_what_is_spread_evenly() -> None:
    values = np.linspace(-3, 3, 10001, dtype=np.float32)
    assert largest_kept(values, 3.0, "mse", "int8") == pytest.approx(3.0, rel=0.03)


def test_mse_clips_one_value_far_out(bell: NDArray[np.float32]) -> None:
    values = np.append(bell, np.float32(12))
    kept = largest_kept(values, 12.0, "mse", "int8")
    assert 7 < kept < 9
    assert _error(values, kept) < 0.7 * _error(values, 12.0)


def test_mse_asks_what_fp8_loses_where_that_is_asked_for(bell: NDArray[np.float32]) -> None:
    """FP8's steps grow with the numbers, so that clipping one value far out saves it nothing, and costs as much."""
    values = np.append(bell, np.float32(12))
    kept: dict[Code, float] = {number: largest_kept(values, 12.0, "mse", number) for number in ("int8", "fp8")}
    assert kept["fp8"] > 1.3 * kept["int8"]


def test_entropy_clips_a_thin_tail_and_keeps_the_bulk(bell: NDArray[np.float32]) -> None:
    values = np.append(bell, np.array([40, -40], np.float32))
    kept = largest_kept(values, 40.0, "entropy", "int8")
    assert 2 < kept < 10
    assert np.mean(np.abs(values) > kept) < 0.05


def test_entropy_keeps_all_of_what_is_spread_evenly() -> None:
    values = np.random.default_rng(0).uniform(-3, 3, 100_000).astype(np.float32)
    assert largest_kept(values, 3.0, "entropy", "int8") > 2.9


@pytest.mark.parametrize("method", get_args(RangeMethod)[1:])
def test_no_range_is_beyond_the_largest_value(method: RangeMethod, bell: NDArray[np.float32]) -> None:
    amax = float(np.abs(bell).max())
    assert 1 < largest_kept(bell, amax, method, "int8") <= amax
