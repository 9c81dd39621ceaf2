"""What the workers of a cluster do: decode the images of a shard, and run engines on what others have decoded.

Nothing here knows what brings the work: trt_vit/distributed/ray.py does.
"""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.distributed.site import Fault
from trt_vit.errors import TrtVitError
from trt_vit.images.preprocess import Preprocessor
from trt_vit.pipeline.classify import load_classifier
from trt_vit.pipeline.cpu_lanes import FreeLanes
from trt_vit.pipeline.run import batched
from trt_vit.pipeline.stages import CPU_STAGES, StageSeconds, load_image, open_opener
from trt_vit.sources.item import FileItem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from trt_vit.distributed.site import Site
    from trt_vit.pipeline.rows import Row
    from trt_vit.pipeline.stages import Decoding, LoadedImage
    from trt_vit.runtime.protocol import RuntimeOptions
    from trt_vit.sources.shard import Shard

    Pixels = NDArray[np.uint8]

PIECE_IMAGES = 64
"""Images that an engine is given at once, or a batch of them where that is larger: less costs more to bring."""


@dataclass
class Piece:
    """Some images of a shard, on their way from one stage to the next.

    Attributes:
        shard: The shard's number.
        first: Number of the first image within the shard.
        names: What the rows call the images.
        errors: Why an image cannot be used, or None.
        last: Whether the shard has no more images.
        seconds: How long each stage was busy.
        rows: The rows, once there are any.
        fault: What has ended the shard instead.
    """

    shard: int
    first: int
    names: list[str] = field(default_factory=list)
    errors: list[str | None] = field(default_factory=list)
    last: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CPU_STAGES, 0.0))
    rows: list[Row] = field(default_factory=list)
    fault: Fault | None = None


@lru_cache(maxsize=1)
def _preprocessor(site: Site) -> Preprocessor:
    """Return a bundle's preprocessing; kept for the next shard."""
    site.stand()
    bundle = site.open_bundle()
    model = bundle.manifest.model
    return Preprocessor(bundle.preprocessing(), (model.height, model.width))


def piece_size(batch_size: int) -> int:
    """Return how many images a piece has: whole batches."""
    return batch_size * max(1, PIECE_IMAGES // batch_size)


def decode_shard(
    site: Site, numbered: tuple[int, Shard], size: int, threads: int, decoding: Decoding
) -> Iterator[tuple[Piece, Pixels]]:
    """Read, decode, resize and crop the images of a shard, a piece ahead of who takes them.

    Normalising is left to the engine's side: pixels of 8 bits are a quarter of what it makes of them.

    The last piece is marked; it may be empty. An error that is no image's ends the shard with a piece that has it.

    Args:
        site: Where the preprocessing comes from.
        numbered: The shard's number, and its images.
        size: Images a piece.
        threads: Threads to decode on.
        decoding: How they decode.

    Returns:
        Pieces, and their pixels, uint8 [images, height, width, 3].
    """
    number, shard = numbered
    under_way: _Decoding | None = None
    first = 0
    try:
        preprocessor = _preprocessor(site)
        shape = (*preprocessor.output_size, 3)
        with ThreadPoolExecutor(threads) as pool, open_opener(decoding) as opener:
            for items in batched(shard.items(), size):
                pixels = np.empty((len(items), *shape), dtype=np.uint8)
                loads = [
                    pool.submit(load_image, item, opener, preprocessor.fit, out)
                    for item, out in zip(items, pixels, strict=True)
                ]
                if under_way is not None:
                    yield under_way.finish(last=False)
                under_way = _Decoding(Piece(number, first, [item.name for item in items]), pixels, loads)
                first += len(items)
            if under_way is None:
                under_way = _Decoding(Piece(number, 0), np.empty((0, *shape), dtype=np.uint8), [])
            yield under_way.finish(last=True)
    except TrtVitError as error:
        yield Piece(number, first, fault=Fault.of(error)), np.empty(0, dtype=np.uint8)


@dataclass(frozen=True)
class _Decoding:
    """A piece whose images are being decoded."""

    piece: Piece
    pixels: Pixels
    loads: Sequence[Future[LoadedImage]]

    def finish(self, *, last: bool) -> tuple[Piece, Pixels]:
        """Wait for its images."""
        for load in self.loads:
            image = load.result()
            self.piece.errors.append(image.error)
            for stage, seconds in image.seconds.seconds.items():
                self.piece.seconds[stage] += seconds
        self.piece.last = last
        return self.piece, self.pixels


class Engine:
    """A bundle's engine, loaded once for all pieces that come to this worker. Several may come at once.

    What cannot be loaded is the fault of every piece, so that the driver hears of it as of any other.

    Args:
        site: Where the bundle is.
        options: How it is loaded.
        k: Predictions an image.
    """

    def __init__(self, site: Site, options: RuntimeOptions, k: int) -> None:
        self.fault: Fault | None = None
        try:
            site.stand()
            self._classifier = load_classifier(site.open_bundle(), options, k=k, gpus=1)
        except TrtVitError as error:
            self.fault = Fault.of(error)
            return
        self._lanes = FreeLanes(self._classifier)
        lanes = len(self._classifier.runtimes[0].lanes)
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="lane")
        self._slots: queue.SimpleQueue[NDArray[np.float32]] = queue.SimpleQueue()
        for _ in range(lanes):
            self._slots.put(np.zeros((self._classifier.batch_size, *self._classifier.image_shape), dtype=np.float32))

    def classify(self, piece: Piece, pixels: Pixels) -> Piece:
        """Give a piece its rows.

        Args:
            piece: Decoded images.
            pixels: uint8 [images, height, width, 3], resized and cropped.
        """
        piece.fault = piece.fault or self.fault
        if piece.fault is not None:
            return piece
        size = self._classifier.batch_size
        try:
            running = [
                self._threads.submit(self._run_batch, piece, slice(first, first + size), pixels)
                for first in range(0, len(piece.names), size)
            ]
            for batch in running:
                rows, seconds = batch.result()
                piece.rows += rows
                for stage, value in seconds.seconds.items():
                    piece.seconds[stage] += value
        except TrtVitError as error:
            piece.fault = Fault.of(error)
        return piece

    def _run_batch(self, piece: Piece, part: slice, pixels: Pixels) -> tuple[list[Row], StageSeconds]:
        """Normalise a batch, infer it and make rows of the logits."""
        seconds = StageSeconds(CPU_STAGES)
        items = [FileItem(name) for name in piece.names[part]]
        slot = self._slots.get()
        try:
            inputs = slot[: len(items)]
            with seconds.timing("preprocess"):
                for image, out in zip(pixels[part], inputs, strict=True):
                    self._classifier.preprocessor.normalize(image, out)
            return self._lanes.classify(items, piece.errors[part], inputs, seconds), seconds
        finally:
            self._slots.put(slot)
