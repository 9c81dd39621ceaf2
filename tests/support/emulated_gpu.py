"""An engine and a JPEG decoder on a recording device: a GPU's whole pipeline runs without a GPU, as late as it may."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tests.support.recording_device import Access, RecordingDevice, RecordingMemory, reads, writes
from trt_vit.cuda.decode import DecodedImage
from trt_vit.errors import EnvironmentFault, ImageError, OutOfDeviceMemory
from trt_vit.images.decode import decode
from trt_vit.runtime.protocol import EngineStatistics
from trt_vit.runtime.roundtrip import Roundtrip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from trt_vit.engine.manifest import Precision
    from trt_vit.runtime.protocol import GpuLane, LayerTime

    Engine = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass
class EmulatedRuntime:
    """An engine on a recording device.

    Attributes:
        engine: From pixels, float32 [n, 3, height, width], to logits, [n, classes].
        shape: Of an image.
        classes: Logits of an image.
        room: Batches above this are out of memory.
        fails_at: Number of the run that fails, counted over all lanes; the device fails at everything after it.
    """

    engine: Engine
    shape: tuple[int, int, int]
    classes: int
    batch_size: int = 4
    lane_count: int = 2
    room: int = 1 << 30
    smallest: int = 1
    fails_at: int = -1
    device: RecordingDevice = field(default_factory=RecordingDevice)
    inference_precision: Precision = "fp32"
    runs: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        with self.device.current():
            self.lanes = [EmulatedLane(self) for _ in range(self.lane_count)]
        self.gpu_lanes: Sequence[GpuLane] = self.lanes

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(layers=1, fused_attention=0, weights_bytes=0, kinds={}, precisions={}, reformats=0)

    def layer_times(self, pixels: NDArray[np.float32], seconds: float) -> list[LayerTime]:
        return []

    def admit(self, count: int) -> None:
        with self.lock:
            if count > self.room:
                raise OutOfDeviceMemory(f"no room for {count}", hint="try less")
            if 0 <= self.fails_at <= len(self.runs):
                raise EnvironmentFault("CUDA failed: unspecified launch failure", hint="run again")
            self.runs.append(count)


class EmulatedLane:
    """One lane of it: runs the engine on what the images' memory holds when the stream gets there."""

    def __init__(self, runtime: EmulatedRuntime) -> None:
        self._runtime = runtime
        self.device = runtime.device
        self.stream = runtime.device.stream()
        self.smallest = runtime.smallest
        floats = 4 * max(runtime.batch_size, runtime.smallest)
        self.images = runtime.device.allocate(floats * int(np.prod(runtime.shape)))
        self.logits = runtime.device.allocate(floats * runtime.classes)

    def infer(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with self.device.current():
            shape = (self._runtime.batch_size, *self._runtime.shape)
            return Roundtrip(self.device, shape, self._runtime.classes).run(self, pixels)

    def enqueue(self, count: int) -> None:
        runtime = self._runtime
        runtime.admit(count)
        rows = max(count, self.smallest)
        taken, given = 4 * rows * int(np.prod(runtime.shape)), 4 * rows * runtime.classes

        def run() -> list[Access]:
            pixels = self.images.data[:taken].view(np.float32).reshape(rows, *runtime.shape)
            logits = np.zeros((rows, runtime.classes), dtype=np.float32)
            logits[:count] = runtime.engine(pixels[:count].copy())
            self.logits.data[:given] = logits.view(np.uint8).reshape(-1)
            return [reads(self.images.address, taken), writes(self.logits.address, given)]

        self.stream.enqueue(f"infer {count}", run)


class EmulatedDecoder:
    """Decodes to the exact pixels, into memory whose rows have a gap, when its stream gets there.

    Attributes:
        refuses: Files that it cannot decode.
        decoded: How many it has decoded.
    """

    def __init__(self, device: RecordingDevice) -> None:
        self._device = device
        self.refuses: set[bytes] = set()
        self.decoded = 0

    def decode(self, files: Sequence[bytes], stream: int) -> list[DecodedImage | None]:
        return [None if file in self.refuses else self._decode(file, stream) for file in files]

    def _decode(self, file: bytes, stream: int) -> DecodedImage | None:
        try:
            pixels = decode(file)
        except ImageError:
            return None
        height, width, _ = pixels.shape
        pitch = 3 * width + 5
        memory = self._device.allocate(height * pitch)
        self.decoded += 1

        def run() -> list[Access]:
            memory.data.reshape(height, pitch)[:, : 3 * width] = pixels.reshape(height, -1)
            return [writes(memory.address, memory.nbytes)]

        self._device.stream_of(stream).enqueue("decode", run)
        return DecodedImage(memory.address, pitch, height, width, _Owner(self._device, memory))


class _Owner:
    """Memory that another image may get when nobody refers to this any more: that is as good as writing to it."""

    def __init__(self, device: RecordingDevice, memory: RecordingMemory) -> None:
        weakref.finalize(self, device.host_touches, memory.data, write=True)
