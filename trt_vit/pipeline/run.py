"""The hot loop: images go in, result rows come out in the same order.

Batches are started as fast as the lanes have places for them, and the caller's thread writes the rows of the oldest one
meanwhile. How many are under way bounds the memory, never the number of images.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from trt_vit.interrupts import Terminated
from trt_vit.pipeline.cpu_lanes import open_cpu_lanes
from trt_vit.pipeline.rows import count_failed
from trt_vit.pipeline.stages import StageSeconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from trt_vit.pipeline.classifier import Classifier
    from trt_vit.pipeline.lanes import BatchResult, Lanes
    from trt_vit.pipeline.rows import Row
    from trt_vit.pipeline.sinks import Sink
    from trt_vit.pipeline.timeline import Timeline
    from trt_vit.sources.item import Item

T = TypeVar("T")


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        images: Rows written.
        failed: How many of them are errors.
        seconds: Wall-clock time from the first image to the last row.
        stages: Seconds each stage was busy, summed over its threads.
        gpu_decoded: Images that were decoded on a GPU.
    """

    images: int
    failed: int
    seconds: float
    stages: dict[str, float]
    gpu_decoded: int = 0

    @property
    def images_per_second(self) -> float:
        """Throughput over the whole run."""
        return self.images / self.seconds if self.seconds > 0 else 0.0


def classify(
    items: Iterable[Item],
    classifier: Classifier,
    sink: Sink,
    on_rows: Callable[[Sequence[Row]], None],
    timeline: Timeline | None = None,
) -> Summary:
    """Classify images and write one row for each, in their order.

    An interrupt drains the run: no batch is started any more, the rows of those under way are written, and then it is
    raised. A second one is raised at once.

    Args:
        items: The images.
        classifier: What to do to them.
        sink: Where the rows go.
        on_rows: Called with the rows of each batch after they are written.
        timeline: Told when each stage of each image and batch ran, where it is given.

    Raises:
        EnvironmentFault: The runtime failed on a batch.
        OSError: The sink cannot be written.
    """
    with open_lanes(classifier, timeline) as lanes:
        tally = _Tally(sink, on_rows, StageSeconds(lanes.stages), timeline)
        under_way: deque[Future[BatchResult]] = deque()
        started = time.perf_counter()
        try:
            for number, batch in enumerate(batched(items, classifier.batch_size)):
                if len(under_way) == lanes.depth:
                    tally.write_oldest(under_way)
                under_way.append(lanes.start(number, batch))
        except (KeyboardInterrupt, Terminated):
            tally.write_all(under_way)
            raise
        tally.write_all(under_way)
        seconds = time.perf_counter() - started
    return Summary(tally.images, tally.failed, seconds, tally.seconds.seconds, tally.gpu_decoded)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Give items a batch at a time; the last one may be smaller."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


@contextmanager
def open_lanes(classifier: Classifier, timeline: Timeline | None = None) -> Iterator[Lanes]:
    """Open the lanes of a classifier's engine, on the GPUs or the CPU that it was loaded for."""
    if classifier.on_gpu:
        # Only where there is a GPU: what drives it is not loaded elsewhere.
        from trt_vit.pipeline.gpu_lanes import open_gpu_lanes  # noqa: PLC0415

        with open_gpu_lanes(classifier, timeline) as gpu_lanes:
            yield gpu_lanes
    else:
        with open_cpu_lanes(classifier, timeline) as cpu_lanes:
            yield cpu_lanes


@dataclass
class _Tally:
    """Writes results, and counts them."""

    sink: Sink
    on_rows: Callable[[Sequence[Row]], None]
    seconds: StageSeconds
    timeline: Timeline | None
    images: int = 0
    failed: int = 0
    gpu_decoded: int = 0
    batches: int = 0

    def write_all(self, under_way: deque[Future[BatchResult]]) -> None:
        while under_way:
            self.write_oldest(under_way)

    def write_oldest(self, under_way: deque[Future[BatchResult]]) -> None:
        result = under_way[0].result()  # an interrupt of this wait leaves the batch where it is
        under_way.popleft()
        with self.seconds.timing("write"):
            self.sink.write(result.rows)
        if self.timeline is not None:
            self.timeline.add_spans(self.batches, self.seconds)
        self.seconds.spans.clear()
        self.seconds.add(result.seconds)
        self.batches += 1
        self.images += len(result.rows)
        self.failed += count_failed(result.rows)
        self.gpu_decoded += result.gpu_decoded
        self.on_rows(result.rows)
