from __future__ import annotations

import pytest

from trt_vit.pipeline.timeline import Interval
from trt_vit.profile.diagnose import Workload, diagnose, queues


def busy(**seconds: float) -> list[Interval]:
    """One interval for each stage, of so many seconds."""
    return [Interval("track", 0, stage, 0.0, length) for stage, length in seconds.items()]


CPU = Workload(lanes=2, decode_threads=2, cores=2, on_gpu=False)
ALONE = Workload(lanes=2, decode_threads=0, cores=2, on_gpu=False)
GPU = Workload(lanes=2, decode_threads=8, cores=16, on_gpu=True)


@pytest.mark.parametrize(
    ("intervals", "cpu_seconds", "workload", "limit"),
    [
        (busy(infer=19.0), 19.0, ALONE, "engine"),
        (busy(infer=10.0), 10.0, ALONE, "nothing"),
        (busy(infer=19.0, decode=2.0), 19.9, CPU, "engine"),
        (busy(infer=4.0, decode=17.0, read=1.0), 19.9, CPU, "decode"),
        (busy(infer=15.0, decode=14.0), 19.9, CPU, "cores"),
        (busy(infer=9.0, decode=9.0), 19.9, CPU, "cores"),
        (busy(infer=5.0, decode=5.0), 9.0, CPU, "nothing"),
        (busy(infer=5.0, decode=5.0, write=9.5), 9.0, CPU, "write"),
        (busy(infer=18.0, decode=20.0), 25.0, GPU, "engine"),
        (busy(infer=9.0, decode=70.0, stage=9.0), 80.0, GPU, "decode"),
        (busy(infer=9.0, copy=18.0), 10.0, GPU, "copy"),
        (busy(infer=9.0, enqueue=18.0), 10.0, GPU, "enqueue"),
        (busy(infer=18.0, enqueue=18.0), 10.0, GPU, "engine"),
        (busy(infer=9.0, decode=9.0), 10.0, GPU, "nothing"),
        (busy(infer=9.0, decode=9.0), 150.0, GPU, "cores"),
    ],
)
def test_who_limits(intervals: list[Interval], cpu_seconds: float, workload: Workload, limit: str) -> None:
    found = diagnose(intervals, 10.0, cpu_seconds, workload, "fp32")
    assert found.limit == limit
    assert found.words
    assert "{" not in found.advice
    assert all(0 <= share <= 1 for share in found.busy.values())


@pytest.mark.parametrize(
    ("precision", "advice"), [("fp32", "int8 (or bf16"), ("int8", "a smaller checkpoint"), ("fp16", "fp8")]
)
def test_advice_follows_the_precision(precision: str, advice: str) -> None:
    assert advice in diagnose(busy(infer=20.0), 10.0, 20.0, ALONE, precision).advice


def test_shares() -> None:
    found = diagnose(
        busy(infer=10.0, read=1.0, decode=3.0, preprocess=2.0, write=1.0, copy=4.0), 10.0, 8.0, GPU, "fp16"
    )
    assert found.busy == pytest.approx(
        {"engine": 0.5, "cores": 0.05, "write": 0.1, "decode": 6 / 80, "copy": 0.2, "enqueue": 0.0}
    )


def test_how_many_batches_waited() -> None:
    intervals = [
        Interval("d", 0, "read", 0, 1),
        Interval("d", 0, "decode", 1, 2),
        Interval("l", 0, "infer", 4, 5),
        Interval("l", 0, "top_k", 5, 6),
        Interval("m", 0, "write", 9, 10),
        Interval("d", 1, "decode", 2, 3),
        Interval("l", 1, "infer", 5, 6),
        Interval("l", 1, "top_k", 6, 7),
        Interval("m", 1, "write", 10, 11),
    ]
    assert queues(intervals, 12.0) == pytest.approx({"for the engine": 4 / 12, "to be written": 6 / 12})
    assert queues(busy(infer=1.0), 12.0) == {}
