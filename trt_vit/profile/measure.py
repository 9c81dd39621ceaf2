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

from trt_vit.pipeline.rows import count_failed
from trt_vit.pipeline.run import classify
from trt_vit.pipeline.sinks import open_sink
from trt_vit.pipeline.timeline import Interval, Timeline
from trt_vit.profile.latency import throughput_of
from trt_vit.sources.item import FileItem, file_items

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from trt_vit.pipeline.classifier import Classifier
    from trt_vit.pipeline.rows import Row
    from trt_vit.runtime.protocol import Lane

WARM_UP_SHARE = 0.2
"""Warm-up, as a share of the time that is measured; at least ``_WARM_UP_BATCHES`` on each lane."""
_WARM_UP_BATCHES = 3
LONGEST = 3
"""How many times the duration that was asked for a figure may take to become stable."""

Span = tuple[float, float]
"""Start and end of a batch, in seconds."""


@dataclass(frozen=True)
class Measurement:
    """What was noted.

    Attributes:
        spans: Start and end of each batch, in seconds since the run began to count. The last may end after the run.
        images: Images of each batch.
        began: When the first began, by ``time.perf_counter``.
        seconds: How long it was measured.
        cpu_seconds: Seconds of CPU that the process used meanwhile.
        intervals: What was at work when; of an engine alone, its batches.
        failed: Images that could not be used.
        stopped: Whether a person ended it early.
    """

    spans: list[Span]
    images: list[int]
    began: float
    seconds: float
    cpu_seconds: float
    intervals: list[Interval]
    failed: int = 0
    stopped: bool = False


def random_pixels(batch_size: int, image_shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return a batch of images that are preprocessed, as it were: float32 [batch_size, 3, height, width]."""
    pixels = np.random.default_rng(0).normal(size=(batch_size, *image_shape))
    return pixels.astype(np.float32)


def measure_engine(classifier: Classifier, duration: float) -> Measurement:
    """Run the engine alone on all of its lanes at once, on random pixels, each lane as fast as it goes.

    Args:
        classifier: The loaded engine.
        duration: Seconds to measure, after a warm-up; up to ``LONGEST`` times as many until the figure is stable.

    Raises:
        EnvironmentFault: The runtime failed.
        KeyboardInterrupt: Before a batch was measured; later it only ends the measurement.
    """
    lanes = [lane for runtime in classifier.runtimes for lane in runtime.lanes]
    pixels = random_pixels(classifier.batch_size, classifier.image_shape)
    stop, warm = threading.Event(), threading.Barrier(len(lanes) + 1)
    found: list[list[Span]] = [[] for _ in lanes]
    stopped = False
    with ThreadPoolExecutor(len(lanes), thread_name_prefix="lane") as pool:
        loops = [
            pool.submit(_loop, lane, pixels, duration * WARM_UP_SHARE, (warm, stop), spans)
            for lane, spans in zip(lanes, found, strict=True)
        ]
        try:
            warm.wait()
            cpu, begin = time.process_time(), time.perf_counter()
            stopped = _wait_until_stable(found, classifier.batch_size, begin, duration, stop)
            # The batches under way are waited for, but no longer measured: lanes finish them at different times.
            end, cpu = time.perf_counter(), time.process_time() - cpu
        except threading.BrokenBarrierError:
            pass  # a lane has failed, and says so below
        finally:
            stop.set()
            warm.abort()
        for loop in loops:
            loop.result()
    return _engine_measurement(found, classifier.batch_size, (begin, end), cpu, stopped=stopped)


def _wait_until_stable(
    found: Sequence[Sequence[Span]], size: int, begin: float, duration: float, stop: threading.Event
) -> bool:
    """Wait while lanes run; return whether a person ended it. A lane that fails sets ``stop``."""
    try:
        for _ in range(LONGEST):
            if stop.wait(duration):
                break
            spans = [(start - begin, end - begin) for lane in found for start, end in tuple(lane)]
            if spans and throughput_of(spans, [size] * len(spans), time.perf_counter() - begin).stable:
                break
    except KeyboardInterrupt:
        if not any(found):
            raise
        return True
    return False


def _loop(
    lane: Lane,
    pixels: NDArray[np.float32],
    warm_up: float,
    signals: tuple[threading.Barrier, threading.Event],
    spans: list[Span],
) -> None:
    """Run a lane until it is told to stop, and note when each batch began and ended after the warm-up."""
    warm, stop = signals
    started = time.perf_counter()
    try:
        for number in itertools.count():
            if number >= _WARM_UP_BATCHES and time.perf_counter() - started >= warm_up:
                break
            lane.infer(pixels)
        warm.wait()
        while not stop.is_set():
            begin = time.perf_counter()
            lane.infer(pixels)
            spans.append((begin, time.perf_counter()))
    except threading.BrokenBarrierError:
        return  # another lane has failed
    except BaseException:
        warm.abort()
        stop.set()
        raise


def _engine_measurement(
    found: Sequence[Sequence[Span]], size: int, ends: tuple[float, float], cpu: float, *, stopped: bool
) -> Measurement:
    begin, end = ends
    spans = [(start - begin, finish - begin) for lane in found for start, finish in lane]
    intervals = [
        Interval(f"lane {number}", batch, "infer", start - begin, finish - begin)
        for number, lane in enumerate(found)
        for batch, (start, finish) in enumerate(lane)
    ]
    return Measurement(spans, [size] * len(spans), begin, end - begin, cpu, intervals, stopped=stopped)


def measure_pipeline(classifier: Classifier, paths: Sequence[str], duration: float) -> Measurement:
    """Classify images, over and over, from files to rows on disk.

    Args:
        classifier: The loaded engine.
        paths: The images.
        duration: Seconds to measure, after a warm-up; up to ``LONGEST`` times as many until the figure is stable.

    Raises:
        EnvironmentFault: The runtime failed.
        KeyboardInterrupt: Before a batch was measured; later it only ends the measurement.
    """
    least = classifier.batch_size * sum(len(runtime.lanes) for runtime in classifier.runtimes) * _WARM_UP_BATCHES
    failed = 0

    def count(rows: Sequence[Row]) -> None:
        nonlocal failed
        failed += count_failed(rows)

    stopped = False
    with tempfile.TemporaryDirectory() as directory, open_sink(Path(directory, "rows.jsonl"), classifier.k) as sink:
        classify(file_items(itertools.islice(itertools.cycle(paths), least)), classifier, sink, lambda _rows: None)
        timeline = Timeline(capacity=1_000_000)
        cpu = time.process_time()
        try:
            classify(_until_stable(paths, least, duration, timeline), classifier, sink, count, timeline)
        except KeyboardInterrupt:
            stopped = True
        cpu = time.process_time() - cpu
    intervals = timeline.intervals
    spans, images = _batches(intervals)
    if stopped and not spans:
        raise KeyboardInterrupt
    began = timeline.origin + intervals[0].start
    seconds = max(end for _start, end in spans)
    return Measurement(spans, images, began, seconds, cpu, intervals, failed, stopped=stopped)


def _until_stable(paths: Sequence[str], least: int, duration: float, timeline: Timeline) -> Iterator[FileItem]:
    """Give images, over and over, until what the timeline has of them is a stable figure."""
    begin, checks = time.perf_counter(), 0
    for number, path in enumerate(itertools.cycle(paths)):
        seconds = time.perf_counter() - begin
        if number >= least and seconds >= duration * (checks + 1):
            checks += 1
            spans, images = _batches(timeline.intervals)
            if checks == LONGEST or (spans and throughput_of(spans, images, seconds).stable):
                return
        yield FileItem(path)


def _batches(intervals: Sequence[Interval]) -> tuple[list[Span], list[int]]:
    """Return when each batch began to be read and was written, since the first began, and how many images it had."""
    begins, ends, images = dict[int, float](), dict[int, float](), dict[int, int]()
    for interval in intervals:
        if interval.stage == "read":
            begins[interval.batch] = min(begins.get(interval.batch, interval.start), interval.start)
            images[interval.batch] = images.get(interval.batch, 0) + 1
        elif interval.stage == "write":
            ends[interval.batch] = interval.end
    origin = min(begins.values(), default=0.0)
    complete = sorted(begins.keys() & ends.keys())
    spans = [(begins[batch] - origin, ends[batch] - origin) for batch in complete]
    return spans, [images[batch] for batch in complete]
