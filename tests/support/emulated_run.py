"""PyCUDA and cuda-bindings, as they are, in a process with the emulated driver. See tests/cuda/test_bindings.py.

    python -m tests.support.emulated_run KERNELS PICTURES

KERNELS is a directory with the kernels as libraries, PICTURES one of images. What comes out is one JSON document.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from tests.pipeline.test_gpu_lanes import CLASSES, CROP, LABELS, SIZE, check, engine, expected
from tests.pipeline.test_run import ListSink
from trt_vit.cuda import pycuda_device
from trt_vit.cuda.device import open_device
from trt_vit.errors import OutOfDeviceMemory
from trt_vit.images.preprocess import Preprocessor
from trt_vit.pipeline.classifier import Classifier
from trt_vit.pipeline.run import classify
from trt_vit.runtime.protocol import EngineStatistics
from trt_vit.runtime.roundtrip import Roundtrip
from trt_vit.sources.item import file_items

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trt_vit.cuda.device import Device
    from trt_vit.engine.manifest import Precision
    from trt_vit.runtime.protocol import GpuLane, LayerTime

BATCH = 4


class HostLane:
    """A lane whose engine runs at once, on memory of the device that is memory of the process."""

    smallest = 1

    def __init__(self, device: Device) -> None:
        self.device = device
        self.stream = device.stream()
        self.images = device.allocate(4 * BATCH * 3 * SIZE * SIZE)
        self.logits = device.allocate(4 * BATCH * CLASSES)

    def infer(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with self.device.current():
            return Roundtrip(self.device, (BATCH, 3, SIZE, SIZE), CLASSES).run(self, pixels)

    def enqueue(self, count: int) -> None:
        floats = ctypes.c_float * (count * 3 * SIZE * SIZE)
        pixels = np.ctypeslib.as_array(floats.from_address(self.images.address)).reshape(count, 3, SIZE, SIZE)
        logits = engine(pixels.copy())
        ctypes.memmove(self.logits.address, logits.ctypes.data, logits.nbytes)


class HostRuntime:
    """An engine with a number of such lanes."""

    batch_size = BATCH
    inference_precision: Precision = "fp32"

    def __init__(self, device: Device, lanes: int) -> None:
        with device.current():
            self.lanes = [HostLane(device) for _ in range(lanes)]
        self.gpu_lanes: Sequence[GpuLane] = self.lanes

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(layers=1, fused_attention=0, weights_bytes=0, kinds={}, precisions={}, reformats=0)

    def layer_times(self, pixels: NDArray[np.float32], seconds: float) -> list[LayerTime]:
        return []


def device_facts(device: Device) -> dict[str, Any]:
    """Use everything of the device that a pipeline does not use, or not in this way. The device is current."""
    free, _ = device.memory()
    stream, begin, end = device.stream(), device.event(timed=True), device.event(timed=True)
    source, target = device.pinned((1000,), "float32"), device.pinned((1000,), "float32")
    zeros = not source.any()
    memory = device.allocate(source.nbytes)

    def there_and_back() -> None:
        stream.copy_to_device(memory, source)
        stream.copy_to_host(target, memory)

    graph = stream.capture(there_and_back)
    assert graph is not None
    source[:] = np.arange(1000)
    stream.record(begin)
    time.sleep(0.05)
    captured_runs_later = not target.any()
    graph.launch()
    stream.record(end)
    end.synchronize()
    stream.wait(end)
    refused = ""
    try:
        device.allocate(1 << 40)
    except OutOfDeviceMemory as error:
        refused = error.message
    return {
        "name": device.name,
        "compute_capability": device.compute_capability,
        "zeros": zeros,
        "aligned": memory.address % 256 == 0,
        "captured_runs_later": captured_runs_later,
        "copied": bool(np.array_equal(source, target)),
        "seconds": end.seconds_since(begin),
        "used": free - device.memory()[0],
        "refused": refused,
    }


def main(kernels: Path, pictures: Path) -> None:
    paths = sorted(str(path) for path in pictures.iterdir())
    with mock.patch.object(pycuda_device, "compiled", lambda source, _: f"{kernels / source}.so\0".encode()):
        device = open_device()
        with device.current():
            facts = device_facts(device)
            free, _ = device.memory()
        rows = {}
        for lanes in (1, 3):
            runtime = HostRuntime(device, lanes)
            preprocessor = Preprocessor(CROP, (SIZE, SIZE))
            classifier = Classifier(preprocessor, (runtime,), (3, SIZE, SIZE), LABELS, 3, 3)
            sink = ListSink()
            summary = classify(file_items(paths), classifier, sink, lambda _rows: None)
            check(sink.rows, expected(paths, CROP, 3))
            pixels = np.random.default_rng(0).normal(size=(3, 3, SIZE, SIZE)).astype(np.float32)
            assert np.array_equal(runtime.lanes[0].infer(pixels), engine(pixels))
            rows[lanes] = (summary.images, summary.failed, all(summary.stages[name] > 0 for name in ("copy", "infer")))
            del runtime, classifier
            gc.collect()
        with device.current():
            facts["lost"] = free - device.memory()[0]
    sys.stdout.write(json.dumps(facts | {"rows": rows}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
