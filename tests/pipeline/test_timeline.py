from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from trt_vit.pipeline.timeline import Interval, Timeline, overlap


def interval(stage: str, start: float, end: float, batch: int = 0) -> Interval:
    return Interval("lane", batch, stage, start, end)


def test_nothing() -> None:
    found = overlap([])
    assert (found.seconds, found.busy, found.several, found.hidden) == (0, {}, 0, 0)


def test_one_after_the_other() -> None:
    found = overlap([interval("copy", 1, 2), interval("infer", 2, 5)])
    assert found.seconds == 4
    assert found.busy == {"copy": 0.25, "infer": 0.75}
    assert (found.several, found.hidden) == (0, 0)


def test_side_by_side() -> None:
    found = overlap([interval("infer", 0, 8), interval("copy", 2, 4, 1), interval("top_k", 3, 5, 2)])
    assert found.busy == {"infer": 1, "copy": 0.25, "top_k": 0.25}
    assert (found.several, found.hidden) == (3 / 8, 1)


def test_partly() -> None:
    found = overlap([interval("infer", 2, 8), interval("copy", 0, 4), interval("copy", 9, 10)])
    assert found.busy == {"infer": 0.6, "copy": 0.5}
    assert (found.several, found.hidden) == (0.2, 2 / 5)


def test_the_same_stage_twice_at_once_is_one_stage() -> None:
    found = overlap([interval("infer", 0, 4, 0), interval("infer", 2, 6, 1)])
    assert (found.busy, found.several) == ({"infer": 1}, 0)


@pytest.mark.parametrize("length", [0.0, 1.0])
def test_a_stage_that_takes_no_time(length: float) -> None:
    found = overlap([interval("copy", 1, 1), interval("infer", 1, 1 + length)])
    assert found.busy == {"copy": 0, "infer": 1 if length else 0}


def test_what_is_kept_is_the_latest_and_in_order() -> None:
    timeline = Timeline(capacity=3)
    timeline.add(interval("infer", start, start + 1) for start in (5, 1, 4, 2))
    assert [kept.start for kept in timeline.intervals] == [1, 2, 4]


def test_threads_add_at_once() -> None:
    timeline = Timeline()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda batch: timeline.add([interval("copy", batch, batch + 1, batch)]), range(500)))
    assert [kept.batch for kept in timeline.intervals] == list(range(500))
