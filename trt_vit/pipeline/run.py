"""The hot loop: paths go in, result rows come out in the same order.

Decode threads fill batches, lanes run them, and the caller's thread writes the rows, all at the same time. The number
of batches in flight bounds the memory: each has a slot, an array that its images are preprocessed into and that its
lane reads in place, and no slot is filled again before its rows are written.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.pipeline.rows import Prediction, Row, count_failed
from trt_vit.pipeline.stages import LoadedImage, StageSeconds, load_image
from trt_vit.pipeline.topk import top_k

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from trt_vit.images.preprocess import Preprocessor
    from trt_vit.pipeline.sinks import Sink
    from trt_vit.runtime.protocol import Lane, Runtime

NOT_FINITE = "the engine's logits are not finite"


@dataclass(frozen=True)
class Classifier:
    """Everything a run needs to turn images into rows.

    Attributes:
        preprocessor: The checkpoint's preprocessing.
        runtime: The loaded engine.
        image_shape: Channels, height and width of one preprocessed image.
        labels: Label of each class, by index.
        k: Predictions a row, at most the number of classes.
        decode_threads: Threads that read, decode and preprocess.
    """

    preprocessor: Preprocessor
    runtime: Runtime
    image_shape: tuple[int, int, int]
    labels: Sequence[str]
    k: int
    decode_threads: int


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        images: Rows written.
        failed: How many of them are errors.
        seconds: Wall-clock time from the first image to the last row.
        stages: Seconds each stage was busy, summed over its threads.
    """

    images: int
    failed: int
    seconds: float
    stages: dict[str, float]

    @property
    def images_per_second(self) -> float:
        """Throughput over the whole run."""
        return self.images / self.seconds if self.seconds > 0 else 0.0


def classify(
    paths: Sequence[str], classifier: Classifier, sink: Sink, on_rows: Callable[[Sequence[Row]], None]
) -> Summary:
    """Classify images and write one row for each, in their order.

    Args:
        paths: The images.
        classifier: What to do to them.
        sink: Where the rows go.
        on_rows: Called with the rows of each batch after they are written.

    Raises:
        EnvironmentFault: The runtime failed on a batch.
        OSError: The sink cannot be written.
    """
    seconds = StageSeconds()
    failed = 0

    def write(batch: Future[_BatchResult]) -> None:
        nonlocal failed
        result = batch.result()
        with seconds.timing("write"):
            sink.write(result.rows)
        seconds.add(result.seconds)
        failed += count_failed(result.rows)
        on_rows(result.rows)

    started = time.perf_counter()
    size = classifier.runtime.batch_size
    with _workers(classifier) as workers:
        in_flight: deque[Future[_BatchResult]] = deque()
        for first in range(0, len(paths), size):
            if len(in_flight) == len(workers.slots):
                write(in_flight.popleft())
            in_flight.append(workers.start(first // size, paths[first : first + size]))
        while in_flight:
            write(in_flight.popleft())
    return Summary(len(paths), failed, time.perf_counter() - started, seconds.seconds)


@dataclass(frozen=True)
class _BatchResult:
    rows: list[Row]
    seconds: StageSeconds


@dataclass(frozen=True)
class _Workers:
    """The threads of a run, and the slots its batches lie in."""

    classifier: Classifier
    slots: NDArray[np.float32]
    decoders: ThreadPoolExecutor
    lane_threads: ThreadPoolExecutor
    free_lanes: queue.SimpleQueue[Lane]

    def start(self, number: int, paths: Sequence[str]) -> Future[_BatchResult]:
        """Start batch ``number`` on its way; its slot is free because batches are written in order."""
        slot = self.slots[number % len(self.slots)]
        loads = [
            self.decoders.submit(load_image, path, self.classifier.preprocessor, out)
            for path, out in zip(paths, slot, strict=False)
        ]
        return self.lane_threads.submit(self._run_batch, paths, slot, loads)

    def _run_batch(
        self, paths: Sequence[str], slot: NDArray[np.float32], loads: Sequence[Future[LoadedImage]]
    ) -> _BatchResult:
        """Wait until the batch's images are in its slot, then infer and make rows of the logits."""
        seconds = StageSeconds()
        errors = []
        for load in loads:
            image = load.result()
            errors.append(image.error)
            seconds.add(image.seconds)
        if None not in errors:
            return _BatchResult([Row(path, error, ()) for path, error in zip(paths, errors, strict=True)], seconds)
        with seconds.timing("infer"):
            logits = self._infer(slot[: len(paths)])
        with seconds.timing("top_k"):
            return _BatchResult(self._rows(paths, errors, logits), seconds)

    def _infer(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        lane = self.free_lanes.get()
        try:
            return lane.infer(pixels)
        finally:
            self.free_lanes.put(lane)

    def _rows(self, paths: Sequence[str], errors: Sequence[str | None], logits: NDArray[np.float32]) -> list[Row]:
        finite = np.all(np.isfinite(logits), axis=1, keepdims=True)
        best = top_k(np.where(finite, logits, 0), self.classifier.k)
        rows = []
        for number, (path, error) in enumerate(zip(paths, errors, strict=True)):
            if error is None and not finite[number]:
                error = NOT_FINITE  # noqa: PLW2901 - the row's error from here on
            picked = zip(best.indices[number].tolist(), best.probabilities[number].tolist(), strict=True)
            predictions = (Prediction(index, self.classifier.labels[index], value) for index, value in picked)
            rows.append(Row(path, error, tuple(predictions) if error is None else ()))
        return rows


@contextmanager
def _workers(classifier: Classifier) -> Iterator[_Workers]:
    """Start the threads of a run, and stop them whatever happens: what has not begun is dropped."""
    lanes = classifier.runtime.lanes
    # While every lane runs a batch, as many more are being filled, and one is waiting to be written.
    slots = np.zeros((2 * len(lanes) + 1, classifier.runtime.batch_size, *classifier.image_shape), dtype=np.float32)
    free_lanes: queue.SimpleQueue[Lane] = queue.SimpleQueue()
    for lane in lanes:
        free_lanes.put(lane)
    decoders = ThreadPoolExecutor(classifier.decode_threads, thread_name_prefix="decode")
    lane_threads = ThreadPoolExecutor(len(lanes), thread_name_prefix="lane")
    try:
        yield _Workers(classifier, slots, decoders, lane_threads, free_lanes)
    finally:
        decoders.shutdown(wait=True, cancel_futures=True)
        lane_threads.shutdown(wait=True, cancel_futures=True)
