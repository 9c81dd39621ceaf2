"""Lanes on a CPU: decode threads fill batches, and each lane runs one at a time.

The number of batches under way bounds the memory: each has a slot, an array that its images are preprocessed into and
that its lane reads in place, and no slot is filled again before its rows are written.
"""

from __future__ import annotations

import queue
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.pipeline.lanes import BatchResult, failed_rows, make_rows
from trt_vit.pipeline.stages import CPU_STAGES, LoadedImage, Opener, StageSeconds, load_image, open_opener
from trt_vit.pipeline.topk import top_k

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from trt_vit.pipeline.classifier import Classifier
    from trt_vit.pipeline.rows import Row
    from trt_vit.pipeline.timeline import Timeline
    from trt_vit.runtime.protocol import Lane
    from trt_vit.sources.item import Item


class FreeLanes:
    """The lanes of an engine on a CPU; a batch is run in whichever is free. As many threads as there are may call.

    Args:
        classifier: The engine, and all that goes around it.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in classifier.runtimes[0].lanes:
            self._free.put(lane)

    def classify(
        self, items: Sequence[Item], errors: Sequence[str | None], pixels: NDArray[np.float32], seconds: StageSeconds
    ) -> list[Row]:
        """Infer a batch and make rows of its logits.

        Args:
            items: The images.
            errors: Why an image cannot be used, or None.
            pixels: The preprocessed images, float32 [images, 3, height, width].
            seconds: Is told how long each stage was busy.

        Raises:
            EnvironmentFault: The runtime failed.
        """
        if None not in errors:
            return failed_rows(items, errors)
        with seconds.timing("infer"):
            logits = self._infer(pixels)
        with seconds.timing("top_k"):
            finite = np.all(np.isfinite(logits), axis=1)
            best = top_k(np.where(finite[:, np.newaxis], logits, 0), self._classifier.k)
            return make_rows(items, errors, finite, (best.indices, best.probabilities), self._classifier.labels)

    def _infer(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        lane = self._free.get()
        try:
            return lane.infer(pixels)
        finally:
            self._free.put(lane)


@contextmanager
def open_cpu_lanes(classifier: Classifier, timeline: Timeline | None = None) -> Iterator[CpuLanes]:
    """Start the threads of a run, and stop them whatever happens: what has not begun is dropped.

    Args:
        classifier: The engine, and all that goes around it.
        timeline: Told when each stage of each image and batch ran, where it is given.
    """
    runtime = classifier.runtimes[0]
    # While every lane runs a batch, as many more are being filled, and one is waiting to be written.
    count = 2 * len(runtime.lanes) + 1
    slots = np.zeros((count, runtime.batch_size, *classifier.image_shape), dtype=np.float32)
    decoders = ThreadPoolExecutor(classifier.decode_threads, thread_name_prefix="decode")
    lane_threads = ThreadPoolExecutor(len(runtime.lanes), thread_name_prefix="lane")
    try:
        with open_opener(classifier.decoding) as opener:
            yield CpuLanes(classifier, opener, slots, decoders, lane_threads, FreeLanes(classifier), timeline)
    finally:
        decoders.shutdown(wait=True, cancel_futures=True)
        lane_threads.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class CpuLanes:
    """The threads of a run, and the slots its batches lie in; see ``Lanes``."""

    classifier: Classifier
    opener: Opener
    slots: NDArray[np.float32]
    decoders: ThreadPoolExecutor
    lane_threads: ThreadPoolExecutor
    free_lanes: FreeLanes
    timeline: Timeline | None

    @property
    def depth(self) -> int:
        """See ``Lanes.depth``."""
        return len(self.slots)

    @property
    def stages(self) -> Sequence[str]:
        """See ``Lanes.stages``."""
        return CPU_STAGES

    def start(self, number: int, items: Sequence[Item]) -> Future[BatchResult]:
        """See ``Lanes.start``. The batch's slot is free because batches are written in order."""
        slot = self.slots[number % len(self.slots)]
        loads = [
            self.decoders.submit(load_image, item, self.opener, self.classifier.preprocessor, out)
            for item, out in zip(items, slot, strict=False)
        ]
        return self.lane_threads.submit(self._run_batch, number, items, slot, loads)

    def _run_batch(
        self, number: int, items: Sequence[Item], slot: NDArray[np.float32], loads: Sequence[Future[LoadedImage]]
    ) -> BatchResult:
        """Wait until the batch's images are in its slot, then infer and make rows of the logits."""
        seconds = StageSeconds(CPU_STAGES)
        errors = []
        for load in loads:
            image = load.result()
            errors.append(image.error)
            seconds.add(image.seconds)
            if self.timeline is not None:
                self.timeline.add_spans(number, image.seconds)
        rows = self.free_lanes.classify(items, errors, slot[: len(items)], seconds)
        if self.timeline is not None:
            self.timeline.add_spans(number, seconds)
        return BatchResult(rows, seconds)
