from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from trt_vit.profile.latency import latency_of, throughput_of


def test_percentiles_are_latencies_that_there_were() -> None:
    spans = [(10.0, 10.0 + number / 1000) for number in range(1, 101)]
    found = latency_of(spans[::-1])
    figures = [found.count, found.min, found.p50, found.p90, found.p95, found.p99, found.max, found.mean]
    np.testing.assert_allclose(figures, [100, 1, 50, 90, 95, 99, 100, 50.5])


def test_one_batch() -> None:
    found = latency_of([(1.0, 1.5)])
    assert {found.min, found.mean, found.p50, found.p99, found.max} == {500.0}


def steady(batches: int, size: int, seconds: float) -> tuple[list[tuple[float, float]], list[int], float]:
    edges = np.linspace(0, seconds, batches + 1).tolist()
    return list(pairwise(edges)), [size] * batches, seconds


@pytest.mark.parametrize("batches", [20, 33, 1000])
def test_an_even_run_is_stable_however_its_batches_fall(batches: int) -> None:
    found = throughput_of(*steady(batches, 8, 4.0))
    assert found.mean == pytest.approx(2 * batches)
    assert found.spread < 1e-9
    assert (found.stable, found.doubt) == (True, None)


def test_too_few_batches() -> None:
    found = throughput_of(*steady(19, 8, 4.0))
    assert (found.stable, found.doubt) == (False, "only 19 batches: measure for longer")


def test_an_uneven_run() -> None:
    """The second half at half the speed."""
    first, images, _ = steady(40, 4, 2.0)
    second, more, _ = steady(20, 4, 2.0)
    found = throughput_of([*first, *((a + 2, b + 2) for a, b in second)], images + more, 4.0)
    assert found.mean == pytest.approx(60)
    assert found.spread == pytest.approx(np.std([80] * 5 + [40] * 5, ddof=1) / 60)
    assert found.noise == pytest.approx(found.spread / np.sqrt(10))
    assert found.doubt == "throughput varied by 35%: something else ran, or clocks changed"


def test_what_lies_outside_of_the_run_does_not_count() -> None:
    found = throughput_of([(-1.0, 1.0), (3.0, 5.0)], [100, 100], 4.0)
    assert found.mean == pytest.approx(25)


def test_lanes_side_by_side_add_up() -> None:
    spans, images, seconds = steady(40, 8, 4.0)
    assert throughput_of(spans * 2, images * 2, seconds).mean == pytest.approx(160)
