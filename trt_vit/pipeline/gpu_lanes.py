"""Lanes on GPUs: while the engine runs one batch, the next are decoded, copied and enqueued, and the last is read.

Each lane has two threads. One enqueues: it waits until a batch's images are decoded, and then gives the GPU all of its
stages at once. The other follows: it waits for what the GPU has done, frees the batch's memory when its pixels have
been read, and makes rows of its top-k. Neither waits for the other but where memory is short, so the GPU is given a
batch before it has finished the one before.
"""

from __future__ import annotations

import queue
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from trt_vit.cuda import topk
from trt_vit.cuda.lane import GPU_STAGES, BatchShape, Flight, PipelineLane
from trt_vit.cuda.preprocess import preprocess_kernel
from trt_vit.errors import EnvironmentFault, UsageError
from trt_vit.pipeline.lanes import BatchResult, failed_rows, make_rows
from trt_vit.pipeline.loading import Loaded, Loader
from trt_vit.pipeline.stages import StageSeconds, open_opener
from trt_vit.pipeline.timeline import ENQUEUE, Interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trt_vit.cuda.arena import Arena
    from trt_vit.pipeline.classifier import Classifier
    from trt_vit.pipeline.rows import Row
    from trt_vit.pipeline.timeline import Timeline
    from trt_vit.sources.item import Item

STAGES = ("read", "decode", "stage", *GPU_STAGES, "write")
"""``decode`` is on the CPU; ``stage`` is the copy of pixels to where the GPU copies them from."""


@contextmanager
def open_gpu_lanes(classifier: Classifier, timeline: Timeline | None = None) -> Iterator[GpuLanes]:
    """Give every lane of every GPU its memory, and start the threads of a run.

    When the block ends, what has not begun is dropped, and what is under way is waited for.

    Args:
        classifier: The engine, and all that goes around it.
        timeline: Told when each stage of each batch ran, where it is given.

    Raises:
        UsageError: More classes are asked for than the GPU finds.
        OutOfDeviceMemory: There is not enough memory for the lanes.
        EnvironmentFault: A package is missing, or the GPU fails.
    """
    if classifier.k > topk.LARGEST_K:
        message = f"--top-k {classifier.k} is more than a GPU finds"
        raise UsageError(message, hint=f"ask for {topk.LARGEST_K} at most")
    kernel = preprocess_kernel(classifier.preprocessor)
    shape = BatchShape(classifier.batch_size, kernel, len(classifier.labels), classifier.k)
    decoders = ThreadPoolExecutor(classifier.decode_threads, thread_name_prefix="decode")
    lanes: list[_GpuLane] = []
    try:
        with open_opener(classifier.decoding) as opener:
            for runtime in classifier.runtimes:
                for number, lane in enumerate(runtime.gpu_lanes):
                    with lane.device.current():
                        contract = classifier.decode
                        loader = Loader(classifier.preprocessor, decoders, opener, lane.device.index, contract)
                        lanes.append(_GpuLane(PipelineLane(lane, shape), loader, classifier, timeline, number))
            yield GpuLanes(lanes)
    finally:
        decoders.shutdown(wait=True, cancel_futures=True)
        for opened in lanes:
            opened.close()


class GpuLanes:
    """The lanes of all GPUs; see ``Lanes``. A batch goes to whichever has a free slot first."""

    stages = STAGES

    def __init__(self, lanes: Sequence[_GpuLane]) -> None:
        self._free: queue.SimpleQueue[tuple[_GpuLane, Arena]] = queue.SimpleQueue()
        for arenas in zip(*(lane.pipeline.arenas for lane in lanes), strict=True):
            for lane, arena in zip(lanes, arenas, strict=True):
                self._free.put((lane, arena))
        self.depth = self._free.qsize() + len(lanes)

    def start(self, number: int, items: Sequence[Item]) -> Future[BatchResult]:
        """See ``Lanes.start``."""
        lane, arena = self._free.get()

        def release() -> None:
            arena.clear()
            self._free.put((lane, arena))

        return lane.start(_Batch(number, items, arena), release)


@dataclass(frozen=True)
class _Batch:
    number: int
    items: Sequence[Item]
    arena: Arena


class _Enqueued(NamedTuple):
    """A batch that the GPU has been given, unless none of its images can be used."""

    flight: Flight
    images: Sequence[Loaded]


class _GpuLane:
    """One lane, and its two threads."""

    def __init__(
        self, pipeline: PipelineLane, loader: Loader, classifier: Classifier, timeline: Timeline | None, number: int
    ) -> None:
        self.pipeline = pipeline
        self._loader = loader
        self._classifier = classifier
        self._timeline = timeline
        self._number = number
        self._flights: queue.SimpleQueue[Flight] = queue.SimpleQueue()
        for flight in pipeline.flights:
            self._flights.put(flight)
        self._enqueuer = ThreadPoolExecutor(1, thread_name_prefix=f"lane-{number}-enqueue")
        self._follower = ThreadPoolExecutor(1, thread_name_prefix=f"lane-{number}-follow")

    def start(self, batch: _Batch, release: Callable[[], None]) -> Future[BatchResult]:
        """Start a batch in a slot, which is released when its images have been read."""
        loads = self._loader.start(batch.items, batch.arena)
        enqueued = self._enqueuer.submit(self._enqueue, batch, loads)
        return self._follower.submit(self._follow, batch, enqueued, release)

    def close(self) -> None:
        """Wait for what is under way, and drop the rest."""
        self._enqueuer.shutdown(wait=True, cancel_futures=True)
        self._follower.shutdown(wait=True, cancel_futures=True)
        self._drain()  # whoever would have waited for a batch may have been dropped

    def _drain(self) -> None:
        # A GPU that has failed has nothing under way.
        with suppress(EnvironmentFault), self.pipeline.device.current():
            self.pipeline.drain()

    def _enqueue(self, batch: _Batch, loads: Sequence[Future[Loaded]]) -> _Enqueued:
        """Wait for a batch's images, and give them to the GPU."""
        flight = self._flights.get()
        try:
            with _naming(batch), self.pipeline.device.current():
                images = self._loader.finish(loads, batch.arena, flight, self.pipeline.decode_stream)
                placed = [image.placed for image in images]
                if any(placed):
                    begin = time.perf_counter()
                    self.pipeline.enqueue(batch.arena, flight, placed)
                    self._note_enqueue(batch.number, begin, time.perf_counter())
        except BaseException:
            self._drain()  # what the GPU was given reads the batch's memory, which the next one is about to get
            self._flights.put(flight)
            raise
        return _Enqueued(flight, images)

    def _note_enqueue(self, batch: int, begin: float, end: float) -> None:
        """Note how long this thread took to tell the GPU what to do: no stage of the images, but it may limit a run."""
        if self._timeline is not None:
            track = f"GPU {self.pipeline.device.index}, lane {self._number}, host"
            origin = self._timeline.origin
            self._timeline.add([Interval(track, batch, ENQUEUE, begin - origin, end - origin)])

    def _follow(self, batch: _Batch, enqueued: Future[_Enqueued], release: Callable[[], None]) -> BatchResult:
        """Wait for what the GPU has done with a batch, and make way for the next as soon as its images are read."""
        try:
            flight, images = enqueued.result()
        except BaseException:
            release()
            raise
        try:
            gpu_decoded = sum(image.gpu_decoded for image in images)
            try:
                self._wait_until_read(batch, flight, images)
            finally:
                release()
            seconds = StageSeconds(STAGES)
            for image in images:
                seconds.add(image.seconds)
                if self._timeline is not None:
                    self._timeline.add_spans(batch.number, image.seconds)
            return BatchResult(self._rows(batch, flight, images, seconds), seconds, gpu_decoded)
        finally:
            self._flights.put(flight)

    def _wait_until_read(self, batch: _Batch, flight: Flight, images: Sequence[Loaded]) -> None:
        with _naming(batch), self.pipeline.device.current():
            if any(image.placed for image in images):
                flight.consumed.synchronize()
            elif flight.has_decoded:
                flight.decoded.synchronize()
            for image in images:
                image.decoded = None  # gives its memory back to the decoder

    def _rows(self, batch: _Batch, flight: Flight, images: Sequence[Loaded], seconds: StageSeconds) -> list[Row]:
        """Wait for a batch's top-k, and make rows of it."""
        errors = [image.error for image in images]
        if not any(image.placed for image in images):
            return failed_rows(batch.items, errors)
        with _naming(batch), self.pipeline.device.current():
            flight.done.synchronize()
            times = flight.times(self.pipeline.origin)
        for name, (begin, end) in times.items():
            seconds.seconds[name] += end - begin
        if self._timeline is not None:
            track = f"GPU {self.pipeline.device.index}, lane {self._number}"
            ahead = self.pipeline.origin_time - self._timeline.origin
            self._timeline.add(
                Interval(track, batch.number, name, begin + ahead, end + ahead) for name, (begin, end) in times.items()
            )
        finite, indices, probabilities = topk.read(flight.answer[: len(batch.items)])
        return make_rows(batch.items, errors, finite, (indices, probabilities), self._classifier.labels)


@contextmanager
def _naming(batch: _Batch) -> Iterator[None]:
    """Name the batch in a failure of the engine or of the GPU."""
    try:
        yield
    except EnvironmentFault as error:
        message = f"batch {batch.number} ({batch.items[0].name} and {len(batch.items) - 1} more): {error.message}"
        raise type(error)(message, hint=error.hint) from error
