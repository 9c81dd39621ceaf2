"""What limits a run, in words, and what follows from it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_vit.pipeline.timeline import ENQUEUE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trt_vit.pipeline.timeline import Interval

BUSY = 0.85
"""Share of the time at work from which on somebody counts as the one that all others wait for."""

IDLE = 0.5
"""Share below which somebody counts as waiting for the others."""

LOADING = ("read", "decode", "preprocess", "stage")
"""What decode threads do."""


@dataclass(frozen=True)
class Workload:
    """How a run was laid out.

    Attributes:
        lanes: Batches in flight.
        decode_threads: Threads that read, decode and preprocess; 0 where there was nothing to decode.
        cores: CPU cores of the process.
        on_gpu: Whether the engine was on a GPU.
    """

    lanes: int
    decode_threads: int
    cores: int
    on_gpu: bool


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        limit: What limits throughput: ``engine``, ``decode``, ``cores``, ``copy``, ``enqueue``, ``write`` or
            ``nothing``.
        words: What that means.
        advice: What follows from it.
        busy: Share of the time in which each of those was at work, 0 to 1.
        queues: Mean number of batches that waited, by what for.
    """

    limit: str
    words: str
    advice: str
    busy: dict[str, float]
    queues: dict[str, float]


_TEXTS = {
    "engine": ("the lanes are hardly ever without a batch: the engine limits", "{precision}, or another device"),
    "decode": (
        "decode threads are busy and lanes wait for images: decoding limits",
        "more cores or --decode-threads, smaller images, or --decode fast on a GPU",
    ),
    "cores": (
        "all cores are at work, the engine's and the decoder's share them: the CPU limits",
        "{precision}, smaller images, or more cores",
    ),
    "enqueue": (
        "the host takes all the time to tell the GPU what to do: enqueueing limits",
        "a larger --batch-size, or a TensorRT engine, which is enqueued as a CUDA graph",
    ),
    "copy": ("copies to the GPU fill the time: the transfer limits", "--decode fast copies files in place of pixels"),
    "write": ("the rows are written one after the other, and that fills the time", "a faster disk, or Parquet"),
    "nothing": (
        "nobody is at work all the time: batches are too few or too small, or lanes too few",
        "try more --lanes or a larger --batch-size",
    ),
}
_NARROWER = {
    "fp32": "int8 (or bf16, fp16 where the hardware has it)",
    "bf16": "int8",
    "fp16": "int8 or fp8",
    "fp8": "a smaller checkpoint",
    "int8": "a smaller checkpoint",
}


def diagnose(
    intervals: Sequence[Interval], seconds: float, cpu_seconds: float, workload: Workload, precision: str
) -> Diagnosis:
    """Tell what limits a run.

    Args:
        intervals: What was at work when.
        seconds: How long the run was.
        cpu_seconds: Seconds of CPU that it used.
        workload: How it was laid out.
        precision: Of the engine.
    """
    totals: dict[str, float] = defaultdict(float)
    for interval in intervals:
        totals[interval.stage] += interval.end - interval.start
    busy = {
        "engine": totals["infer"] / (seconds * workload.lanes),
        "cores": cpu_seconds / (seconds * workload.cores),
        "write": totals["write"] / seconds,
    }
    if workload.decode_threads:
        busy["decode"] = sum(totals[stage] for stage in LOADING) / (seconds * workload.decode_threads)
    if workload.on_gpu:
        busy["copy"] = totals["copy"] / (seconds * workload.lanes)
        busy["enqueue"] = totals[ENQUEUE] / (seconds * workload.lanes)
    busy = {name: min(1.0, share) for name, share in busy.items()}
    limit = _limit(busy, workload)
    words, advice = (text.format(precision=_NARROWER.get(precision, "a narrower precision")) for text in _TEXTS[limit])
    return Diagnosis(limit, words, advice, busy, queues(intervals, seconds))


def _limit(busy: dict[str, float], workload: Workload) -> str:
    """Return who is at work all the time. On a CPU the lanes and the decode threads have the same cores."""
    if not workload.on_gpu and workload.decode_threads and busy["cores"] >= BUSY:
        idle = [name for name in ("engine", "decode") if busy[name] < IDLE]
        return {"engine": "decode", "decode": "engine"}[idle[0]] if len(idle) == 1 else "cores"
    for name in ("engine", "decode", "copy", "enqueue", "write"):
        if busy.get(name, 0.0) >= BUSY:
            return name
    return "cores" if busy["cores"] >= BUSY else "nothing"


def queues(intervals: Sequence[Interval], seconds: float) -> dict[str, float]:
    """Return how many batches waited on average, for the engine and to be written.

    By Little's law that is the time that all of them waited, over the time of the run.
    """
    loaded, begun, done, written = (dict[int, float]() for _ in range(4))
    for interval in intervals:
        batch = interval.batch
        if interval.stage in LOADING:
            loaded[batch] = max(loaded.get(batch, 0.0), interval.end)
        elif interval.stage == "infer":
            begun[batch] = interval.start
        elif interval.stage == "top_k":
            done[batch] = interval.end
        elif interval.stage == "write":
            written[batch] = interval.start
    waits = {
        "for the engine": sum(max(0.0, begun[batch] - loaded[batch]) for batch in begun.keys() & loaded.keys()),
        "to be written": sum(max(0.0, written[batch] - done[batch]) for batch in written.keys() & done.keys()),
    }
    return {name: wait / seconds for name, wait in waits.items()} if written else {}
