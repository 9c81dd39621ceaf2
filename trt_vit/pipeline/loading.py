"""From items to images that a GPU lane can be given: read, decoded here or on the GPU, and placed in its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.cuda.decode import gpu_can_decode, open_decoder
from trt_vit.cuda.nvtx import stage
from trt_vit.cuda.preprocess import ImagePlan, PlacedImage, plan_image, plan_resized
from trt_vit.errors import ImageError
from trt_vit.pipeline.stages import StageSeconds, image_errors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future, ThreadPoolExecutor

    from numpy.typing import NDArray

    from trt_vit.cuda.arena import Arena
    from trt_vit.cuda.decode import DecodedImage
    from trt_vit.cuda.device import Stream
    from trt_vit.cuda.lane import Flight
    from trt_vit.images.preprocess import Preprocessor
    from trt_vit.images.preprocessing import Decode
    from trt_vit.pipeline.stages import Opener
    from trt_vit.sources.item import Item

STAGES = ("read", "decode", "stage")


@dataclass(slots=True)
class Loaded:
    """What became of one image on its way to the GPU.

    Attributes:
        seconds: How long each stage was busy with it.
        error: Why it cannot be used, or None.
        placed: Where it is, once it is there.
        data: Its file, as long as the GPU is to decode it.
        decoded: What the GPU has decoded of it, which lives as long as this: whether it is used or not, it must not be
            given back before the GPU has written it.
        gpu_decoded: Whether that is used.
    """

    seconds: StageSeconds
    error: str | None = None
    placed: PlacedImage | None = None
    data: bytes | None = None
    decoded: DecodedImage | None = None
    gpu_decoded: bool = False


class Loader:
    """Loads images for one lane.

    Args:
        preprocessor: The checkpoint's preprocessing.
        threads: Threads that read and decode, shared by all lanes.
        opener: What reads images, and decodes those that the GPU does not.
        gpu: Number of the GPU.
        contract: Where JPEGs are decoded.

    Raises:
        EnvironmentFault: The decoder of the GPU is missing or does not load.
    """

    def __init__(
        self, preprocessor: Preprocessor, threads: ThreadPoolExecutor, opener: Opener, gpu: int, contract: Decode
    ) -> None:
        self._preprocessor = preprocessor
        self._threads = threads
        self._opener = opener
        self._decoder = open_decoder(gpu) if contract == "fast" else None

    def start(self, items: Sequence[Item], arena: Arena) -> list[Future[Loaded]]:
        """Start loading a batch into an arena."""
        return [self._threads.submit(self._load, item, arena) for item in items]

    def finish(self, loads: Sequence[Future[Loaded]], arena: Arena, flight: Flight, stream: Stream) -> list[Loaded]:
        """Wait for a batch, and have decoded on the GPU what it is to decode.

        What it cannot decode is decoded on the CPU, which also says what is wrong with it.

        Args:
            loads: What ``start`` returned.
            arena: Where the batch lies.
            flight: Its events of decoding are recorded if the GPU decodes.
            stream: Where the GPU decodes; its device is current in the calling thread.

        Raises:
            EnvironmentFault: The decoder fails as a whole.
        """
        images = [load.result() for load in loads]
        waiting = [image for image in images if image.data is not None]
        flight.has_decoded = bool(waiting)
        if self._decoder is None or not waiting:
            return images
        with stage("gpu_decode"):
            stream.record(flight.decoding)
            pixels = self._decoder.decode([image.data or b"" for image in waiting], stream.handle)
            stream.record(flight.decoded)
        for image, decoded in zip(waiting, pixels, strict=True):
            self._place_decoded(image, decoded, arena)
        left = [self._threads.submit(self._decode, image, arena) for image in waiting if image.data is not None]
        for load in left:
            load.result()
        return images

    def _load(self, item: Item, arena: Arena) -> Loaded:
        image = Loaded(StageSeconds(STAGES))
        with image_errors(image), image.seconds.timing("read"):
            image.data = item.read(self._opener.limits)
        if image.error is None and not self._is_for_the_gpu(image.data or b""):
            self._decode(image, arena)
        return image

    def _is_for_the_gpu(self, data: bytes) -> bool:
        return self._decoder is not None and "jpeg" in self._opener.limits.formats and gpu_can_decode(data)

    def _decode(self, image: Loaded, arena: Arena) -> Loaded:
        """Decode an image's file on the CPU, and place its pixels."""
        data, image.data = image.data or b"", None
        with image_errors(image):
            with stage("decode"), image.seconds.timing("decode"):
                pixels = self._opener.decode(data)
            with stage("stage"), image.seconds.timing("stage"):
                image.placed = self._place(pixels, arena)
        return image

    def _place(self, pixels: NDArray[np.uint8], arena: Arena) -> PlacedImage:
        """Put pixels and tables where the GPU copies them from; resized already, if they would take too much room."""
        height, width, _ = pixels.shape
        plan = plan_image(self._preprocessor, height, width)
        place = None if plan is None else arena.reserve(4 * plan.words + pixels.nbytes)
        if plan is None or place is None:
            geometry = self._preprocessor.geometry(height, width)
            plan, pixels = plan_resized(geometry), self._preprocessor.resized(pixels, geometry)
            place = arena.reserve(4 * plan.words + pixels.nbytes)
            if place is None:
                raise ImageError("no room for this image on its way to the GPU")
        begin = _write_tables(plan, arena, place)
        arena.host[begin : begin + pixels.nbytes].reshape(pixels.shape)[...] = pixels
        return PlacedImage(plan, arena.memory.address + begin, 3 * pixels.shape[1], place // 4)

    def _place_decoded(self, image: Loaded, decoded: DecodedImage | None, arena: Arena) -> None:
        """Put the tables of an image there whose pixels are on the GPU; if that cannot be, it keeps its file."""
        image.decoded = decoded
        if decoded is None or decoded.height * decoded.width > self._opener.limits.pixels:
            return
        with image_errors(image):
            plan = plan_image(self._preprocessor, decoded.height, decoded.width)
            place = None if plan is None else arena.reserve(4 * plan.words)
            if plan is None or place is None:
                return
            _write_tables(plan, arena, place)
            image.placed = PlacedImage(plan, decoded.address, decoded.pitch, place // 4)
            image.gpu_decoded = True
        image.data = None


def _write_tables(plan: ImagePlan, arena: Arena, place: int) -> int:
    """Write an image's tables, and return where they end."""
    end = place + 4 * plan.words
    words = arena.host[place:end].view(np.int32)
    words[: plan.rows.words.size] = plan.rows.words
    words[plan.rows.words.size :] = plan.columns.words
    return end
