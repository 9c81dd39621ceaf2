"""What a lane enqueues for a batch: copy, preprocess, infer, top-k, and the events between them.

A lane has a stream for copies, one for the decoder and the engine's own. On the last, preprocessing, the engine and
top-k of one batch follow each other, and those of the next batch follow them: so one buffer for the engine's input and
one for its output are enough, and what is copied and decoded for later batches runs beside them. Events guard what is
shared: ``copied`` and ``decoded`` hold up the kernel until its pixels are there, ``consumed`` tells when they have been
read, so that their memory takes the next batch while the engine is still at work on this one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_vit.cuda import topk
from trt_vit.cuda.arena import Arena
from trt_vit.cuda.nvtx import stage
from trt_vit.cuda.preprocess import SOURCE, PreprocessKernel, describe
from trt_vit.errors import OutOfDeviceMemory

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from trt_vit.cuda.device import Device, Event, Stream
    from trt_vit.cuda.preprocess import PlacedImage
    from trt_vit.runtime.protocol import GpuLane

GPU_STAGES = ("gpu_decode", "copy", "preprocess", "infer", "top_k")
"""Stages of a batch on the GPU, in order. ``top_k`` ends when its answer is on the host."""

SLOTS = 3
"""Batches that a lane holds images of: one whose images are being decoded, one being copied, one being consumed."""

SHARED_BYTES = 3 << 19
"""Bytes for each image of a batch that the images share: pixels of 720 x 720, or three times what ImageNet's take."""


@dataclass(frozen=True)
class BatchShape:
    """What all batches of a run have in common.

    Attributes:
        images: Largest number of images.
        kernel: How they are preprocessed.
        classes: Logits of an image.
        k: Classes that are wanted of each.
    """

    images: int
    kernel: PreprocessKernel
    classes: int
    k: int

    @property
    def sure_bytes(self) -> int:
        """Bytes of an image that has been resized already: its pixels, and two tables of one weight a pixel."""
        height, width = self.kernel.height, self.kernel.width
        return 3 * height * width + 4 * 3 * (height + width)


class Flight:
    """One batch from its copy to its answer.

    Attributes:
        answer: Where the answer comes: pinned uint32 [images, words].
    """

    def __init__(self, device: Device, shape: BatchShape) -> None:
        self.answer: NDArray[np.uint32] = device.pinned((shape.images, topk.words(shape.k)), "uint32")
        self.decoding, self.decoded = device.event(timed=True), device.event(timed=True)
        self.copying, self.copied = device.event(timed=True), device.event(timed=True)
        self.preprocessing, self.consumed = device.event(timed=True), device.event(timed=True)
        self.inferred, self.done = device.event(timed=True), device.event(timed=True)
        self.has_decoded = False

    def times(self, origin: Event) -> dict[str, tuple[float, float]]:
        """Return when each stage began and ended, in seconds since ``origin``. The batch is done."""
        begins = (self.decoding, self.copying, self.preprocessing, self.consumed, self.inferred)
        ends = (self.decoded, self.copied, self.consumed, self.inferred, self.done)
        return {
            name: (begin.seconds_since(origin), end.seconds_since(origin))
            for name, begin, end in zip(GPU_STAGES, begins, ends, strict=True)
            if self.has_decoded or name != GPU_STAGES[0]
        }


class PipelineLane:
    """The streams, kernels and memory around one lane of an engine.

    All of its methods need the device to be current in the calling thread.

    Attributes:
        origin: The event that times are since.
        origin_time: When that was, by ``time.perf_counter``.

    Args:
        lane: The engine's lane.
        shape: What batches look like.

    Raises:
        OutOfDeviceMemory: There is not enough memory.
        EnvironmentFault: The kernels cannot be compiled.
    """

    def __init__(self, lane: GpuLane, shape: BatchShape) -> None:
        device = lane.device
        self.device = device
        self.decode_stream = device.stream()
        self._lane = lane
        self._shape = shape
        self._copy_stream = device.stream()
        self._preprocess = device.kernel("preprocess.cu", shape.kernel.name)
        self._top_k = device.kernel("topk.cu", topk.KERNELS["fp32"])
        values = device.pinned(shape.kernel.values.shape, shape.kernel.values.dtype)
        values[:] = shape.kernel.values
        self._values = device.allocate(values.nbytes)
        self._answer = device.allocate(4 * shape.images * topk.words(shape.k))
        shared = shape.images * SHARED_BYTES
        self.arenas = [Arena(device, shape.images, shape.sure_bytes, shared) for _ in range(SLOTS)]
        # One more than slots: an answer is read after the slot of its batch has been given to another.
        self.flights = [Flight(device, shape) for _ in range(SLOTS + 1)]
        self.largest = shape.images
        self.origin = device.event(timed=True)
        lane.stream.copy_to_device(self._values, values)
        lane.stream.record(self.origin)
        self.origin.synchronize()
        self.origin_time = time.perf_counter()

    def enqueue(self, arena: Arena, flight: Flight, images: Sequence[PlacedImage | None]) -> None:
        """Enqueue all stages of a batch.

        A batch that there is not enough memory for is run in halves, down to what the engine takes; later batches are
        then run in parts of that size.

        Args:
            arena: Where the images are.
            flight: What the batch is followed by.
            images: The images; None where there is none.

        Raises:
            OutOfDeviceMemory: There is not enough memory for the smallest batch.
            EnvironmentFault: The engine or the GPU failed.
        """
        describe(images, arena.sources[: len(images)])
        with stage("copy"):
            self._copy_stream.record(flight.copying)
            arena.copy_to_device(self._copy_stream)
            self._copy_stream.record(flight.copied)
        self._lane.stream.wait(flight.copied)
        if flight.has_decoded:
            self._lane.stream.wait(flight.decoded)
        self._lane.stream.record(flight.preprocessing)
        first = 0
        while first < len(images):
            count = min(self.largest, len(images) - first)
            try:
                self._run(arena, flight, first, count)
            except OutOfDeviceMemory:
                if count <= self._lane.smallest:
                    raise
                self._wait_for(self._lane.stream)  # what is under way gives back its memory
                self.largest = max(self._lane.smallest, count // 2)
            else:
                first += count
        self._lane.stream.record(flight.done)

    def _run(self, arena: Arena, flight: Flight, first: int, count: int) -> None:
        """Enqueue preprocessing, inference and top-k of a part of a batch."""
        stream = self._lane.stream
        with stage("preprocess"):
            self.preprocess(arena, first, count)
            stream.record(flight.consumed)
        with stage("infer"):
            self._lane.enqueue(count)
            stream.record(flight.inferred)
        with stage("top_k"):
            self.find_best(count)
            stream.copy_to_host(flight.answer[first : first + count], self._answer)

    def preprocess(self, arena: Arena, first: int, count: int) -> None:
        """Enqueue the kernel that makes the engine's input of ``count`` images of an arena."""
        address = arena.memory.address
        arguments = self._shape.kernel.arguments(
            sources=address + first * SOURCE.itemsize,
            tables=address,
            values=self._values.address,
            output=self._lane.images.address,
        )
        self._lane.stream.launch(self._preprocess, self._shape.kernel.grid(count), arguments)

    def find_best(self, count: int) -> None:
        """Enqueue the kernel that finds the best classes of ``count`` images in the engine's output."""
        arguments = topk.arguments(
            logits=self._lane.logits.address,
            output=self._answer.address,
            classes=self._shape.classes,
            k=self._shape.k,
        )
        self._lane.stream.launch(self._top_k, (count, 1), arguments)

    def drain(self) -> None:
        """Wait for all that has been enqueued: until then its memory must not be given back.

        Raises:
            EnvironmentFault: The GPU failed.
        """
        for stream in (self.decode_stream, self._copy_stream, self._lane.stream):
            self._wait_for(stream)

    def _wait_for(self, stream: Stream) -> None:
        everything = self.device.event()
        stream.record(everything)
        everything.synchronize()
