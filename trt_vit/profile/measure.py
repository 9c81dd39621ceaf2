"""Running an engine, or the whole pipeline around it, for so long, and noting when everything happened."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.pipeline.run import classify
from trt_vit.pipeline.sinks import open_sink
from trt_vit.pipeline.timeline import Interval, Timeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trt_vit.pipeline.classifier import Classifier
    from trt_vit.runtime.protocol import Lane

WARM_UP_SHARE = 0.2
"""Warm-up, as a share of the time that is measured; at least ``_WARM_UP_BATCHES`` on each lane."""
_WARM_UP_BATCHES = 3


@dataclass(frozen=True)
class Measurement:
    """What was noted.

    Attributes:
        spans: Start and end of each batch, in seconds since the run began to count. The last may end after the run.
        images: Images of each batch.
        seconds: How long it was measured.
        cpu_seconds: Seconds of CPU that the process used meanwhile.
        intervals: What was at work when; of an engine alone, its batches.
        failed: Images that could not be used.
    """

    spans: list[tuple[float, float]]
    images: list[int]
    seconds: float
    cpu_seconds: float
    intervals: list[Interval]
    failed: int = 0


def measure_engine(classifier: Classifier, duration: float) -> Measurement:
    """Run the engine alone on all of its lanes at once, on random pixels, each lane as fast as it goes.

    Args:
        classifier: The loaded engine.
        duration: Seconds to measure, after a warm-up.

    Raises:
        EnvironmentFault: The runtime failed.
    """
    lanes = [lane for runtime in classifier.runtimes for lane in runtime.lanes]
    shape = (classifier.batch_size, *classifier.image_shape)
    pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    stop, warm = threading.Event(), threading.Barrier(len(lanes) + 1)
    with ThreadPoolExecutor(len(lanes), thread_name_prefix="lane") as pool:
        runs = [pool.submit(_loop, lane, pixels, duration * WARM_UP_SHARE, warm, stop) for lane in lanes]
        try:
            warm.wait()
            cpu, begin = time.process_time(), time.perf_counter()
            stop.wait(duration)
            # The batches under way are waited for, but no longer measured: lanes finish them at different times.
            end, cpu = time.perf_counter(), time.process_time() - cpu
        except threading.BrokenBarrierError:
            pass  # a lane has failed, and says so below
        finally:
            stop.set()
            warm.abort()
        found = [run.result() for run in runs]
    return _engine_measurement(found, classifier.batch_size, begin, end, cpu)


def _loop(
    lane: Lane, pixels: np.ndarray, warm_up: float, warm: threading.Barrier, stop: threading.Event
) -> list[tuple[float, float]]:
    """Run a lane until it is told to stop; return when each batch began and ended, after the warm-up."""
    started, spans = time.perf_counter(), list[tuple[float, float]]()
    try:
        for number in itertools.count():
            if number >= _WARM_UP_BATCHES and time.perf_counter() - started >= warm_up:
                break
            lane.infer(pixels)
        warm.wait()
    except threading.BrokenBarrierError:
        return []  # another lane has failed
    except BaseException:
        warm.abort()
        raise
    while not stop.is_set():
        begin = time.perf_counter()
        lane.infer(pixels)
        spans.append((begin, time.perf_counter()))
    return spans


def _engine_measurement(
    found: Sequence[Sequence[tuple[float, float]]], size: int, begin: float, end: float, cpu: float
) -> Measurement:
    spans = [(start - begin, finish - begin) for lane in found for start, finish in lane]
    intervals = [
        Interval(f"lane {number}", batch, "infer", start - begin, finish - begin)
        for number, lane in enumerate(found)
        for batch, (start, finish) in enumerate(lane)
    ]
    return Measurement(spans, [size] * len(spans), end - begin, cpu, intervals)


def measure_pipeline(classifier: Classifier, paths: Sequence[str], duration: float) -> Measurement:
    """Classify images, over and over, from files to rows on disk.

    Args:
        classifier: The loaded engine.
        paths: The images.
        duration: Seconds to measure, after a warm-up.

    Raises:
        EnvironmentFault: The runtime failed.
    """
    least = classifier.batch_size * len(classifier.runtimes[0].lanes) * _WARM_UP_BATCHES
    with tempfile.TemporaryDirectory() as directory:
        rows = Path(directory, "rows.jsonl")
        warm_up = _repeated(paths, least)
        seconds = _classify(classifier, warm_up, rows, None)[0]
        rate = len(warm_up) / seconds
        timeline = Timeline(capacity=1_000_000)
        cpu = time.process_time()
        seconds, failed = _classify(classifier, _repeated(paths, max(least, int(rate * duration))), rows, timeline)
        cpu = time.process_time() - cpu
    intervals = timeline.intervals
    spans, images = _batches(intervals)
    return Measurement(spans, images, seconds, cpu, intervals, failed)


def _repeated(paths: Sequence[str], count: int) -> list[str]:
    return list(itertools.islice(itertools.cycle(paths), count))


def _classify(classifier: Classifier, paths: Sequence[str], rows: Path, timeline: Timeline | None) -> tuple[float, int]:
    with open_sink(rows, classifier.k) as sink:
        summary = classify(paths, classifier, sink, lambda _rows: None, timeline)
    return summary.seconds, summary.failed


def _batches(intervals: Sequence[Interval]) -> tuple[list[tuple[float, float]], list[int]]:
    """Return when each batch began to be read and was written, and how many images it had."""
    begins, ends, images = dict[int, float](), dict[int, float](), dict[int, int]()
    for interval in intervals:
        if interval.stage == "read":
            begins[interval.batch] = min(begins.get(interval.batch, interval.start), interval.start)
            images[interval.batch] = images.get(interval.batch, 0) + 1
        elif interval.stage == "write":
            ends[interval.batch] = interval.end
    complete = sorted(begins.keys() & ends.keys())
    return [(begins[batch], ends[batch]) for batch in complete], [images[batch] for batch in complete]
