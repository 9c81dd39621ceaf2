"""Several engines over the same images, each image read and decoded once.

It keeps as many batches under way as ``classify`` does, with the same threads and slots; but it gives logits, for which
``classify`` has no use, and runs the engines of a batch one after the other in one lane of each.
"""

from __future__ import annotations

import queue
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from trt_vit.images.decode import decode, read_image
from trt_vit.images.preprocess import Preprocessor
from trt_vit.pipeline.stages import LoadedImage, StageSeconds, image_errors
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.runtime.registry import open_runtime

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from trt_vit.engine.bundle import Bundle
    from trt_vit.images.preprocessing import Preprocessing
    from trt_vit.runtime.protocol import Runtime


@dataclass(frozen=True)
class LoadedEngine:
    """An engine that is ready to run, and what it wants of images.

    Attributes:
        runtime: The engine.
        preprocessor: The checkpoint's preprocessing.
        image_shape: Channels, height and width of one preprocessed image.
    """

    runtime: Runtime
    preprocessor: Preprocessor
    image_shape: tuple[int, int, int]

    @property
    def wants(self) -> tuple[Preprocessing, tuple[int, int, int]]:
        """What tells whether two engines can be given the same pixels."""
        return self.preprocessor.preprocessing, self.image_shape


@dataclass(frozen=True)
class BatchLogits:
    """What became of a few images.

    Attributes:
        paths: The images.
        errors: Why an image could not be used, or None, one for each.
        logits: What each engine gives for those that could: float32 [images, classes].
    """

    paths: Sequence[str]
    errors: Sequence[str | None]
    logits: tuple[NDArray[np.float32], ...]


def load_engines(bundles: Sequence[Bundle]) -> list[LoadedEngine]:
    """Load the engines of some bundles, each with the batch it was tuned for and the lanes that its runtime chooses.

    Raises:
        ArtifactError: A file of a bundle is not what was built.
        EnvironmentFault: A bundle's runtime is missing or does not work.
    """
    return [_load(bundle) for bundle in bundles]


def _load(bundle: Bundle) -> LoadedEngine:
    manifest = bundle.manifest
    size = (manifest.model.height, manifest.model.width)
    options = RuntimeOptions(batch_size=manifest.batch.opt)
    runtime = open_runtime(manifest.runtime, bundle.engine_files(), options)
    return LoadedEngine(runtime, Preprocessor(bundle.preprocessing(), size), manifest.model.image_shape)


def run_engines(engines: Sequence[LoadedEngine], paths: Sequence[str]) -> Iterator[BatchLogits]:
    """Run every engine on every image, a batch at a time, in order.

    Args:
        engines: The engines.
        paths: The images.

    Raises:
        EnvironmentFault: A runtime failed.
    """
    size = min(engine.runtime.batch_size for engine in engines)
    with _Workers(engines, size) as workers:
        under_way: deque[Future[BatchLogits]] = deque()
        for number, first in enumerate(range(0, len(paths), size)):
            if len(under_way) == workers.depth:
                yield under_way.popleft().result()
            under_way.append(workers.start(number, paths[first : first + size]))
        while under_way:
            yield under_way.popleft().result()


class _Workers:
    """The threads of a run, and the slots that its images are preprocessed into, one for each way of preprocessing."""

    def __init__(self, engines: Sequence[LoadedEngine], size: int) -> None:
        lanes = min(len(engine.runtime.lanes) for engine in engines)
        self.depth = 2 * lanes + 1
        self._engines = engines
        wanted = {engine.wants: engine for engine in engines}
        self._preprocessors = [engine.preprocessor for engine in wanted.values()]
        self._slots = [
            np.zeros((self.depth, size, *engine.image_shape), dtype=np.float32) for engine in wanted.values()
        ]
        self._slot_of = [list(wanted).index(engine.wants) for engine in engines]
        self._free_lanes: queue.SimpleQueue[int] = queue.SimpleQueue()
        for lane in range(lanes):
            self._free_lanes.put(lane)
        self._decoders = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode")
        self._runners = ThreadPoolExecutor(lanes, thread_name_prefix="lane")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._decoders.shutdown(wait=True, cancel_futures=True)
        self._runners.shutdown(wait=True, cancel_futures=True)

    def start(self, number: int, paths: Sequence[str]) -> Future[BatchLogits]:
        """Start a batch; its slots are free because results are taken in order."""
        slots = [slot[number % self.depth] for slot in self._slots]
        outs = zip(*slots, strict=True)
        loads = [self._decoders.submit(self._load, path, places) for path, places in zip(paths, outs, strict=False)]
        return self._runners.submit(self._run, paths, slots, loads)

    def _load(self, path: str, outs: Sequence[NDArray[np.float32]]) -> str | None:
        """Preprocess one image in each way; return why it cannot be, or None."""
        image = LoadedImage(StageSeconds(()))
        with image_errors(image):
            pixels = decode(read_image(path))
            for preprocessor, out in zip(self._preprocessors, outs, strict=True):
                preprocessor(pixels, out)
        return image.error

    def _run(
        self, paths: Sequence[str], slots: Sequence[NDArray[np.float32]], loads: Sequence[Future[str | None]]
    ) -> BatchLogits:
        """Wait until a batch's images are in their slots, and run the engines on those that can be used."""
        errors = [load.result() for load in loads]
        good = [number for number, error in enumerate(errors) if error is None]
        if not good:
            empty = np.empty((0, 0), dtype=np.float32)
            return BatchLogits(paths, errors, (empty,) * len(self._engines))
        parts = [slot[: len(good)] if len(good) == len(paths) else slot[good] for slot in slots]
        lane = self._free_lanes.get()
        try:
            logits = tuple(
                engine.runtime.lanes[lane].infer(parts[slot])
                for engine, slot in zip(self._engines, self._slot_of, strict=True)
            )
        finally:
            self._free_lanes.put(lane)
        return BatchLogits(paths, errors, logits)
