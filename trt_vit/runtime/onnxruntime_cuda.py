"""ONNX Runtime on an NVIDIA GPU whose memory and streams are ours: batches stay on the GPU from decoding to top-k."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_vit.cuda.device import open_device
from trt_vit.errors import ArtifactError, EnvironmentFault, OutOfDeviceMemory, TrtVitError
from trt_vit.runtime.onnxruntime import (
    CUDA,
    ENGINE,
    failures_as,
    fixed_batch,
    import_onnxruntime,
    node_times,
    open_session,
    optimized_statistics,
)
from trt_vit.runtime.roundtrip import Roundtrip

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from trt_vit.cuda.device import Device
    from trt_vit.engine.manifest import Precision
    from trt_vit.runtime.protocol import EngineFiles, EngineStatistics, LayerTime, RuntimeOptions

_HINT = "try a smaller --batch-size or fewer --lanes"
_LACKS_MEMORY = ("allocate memory", "out of memory")
LANES = 2
"""Lanes where their number is not given: copies and top-k of one batch run while the other computes."""


class OnnxRuntimeCudaRuntime:
    """A session for each lane: a session belongs to the stream that it was opened on."""

    def __init__(self, engine: EngineFiles, options: RuntimeOptions) -> None:
        """Load the engine once for each lane.

        Raises:
            EnvironmentFault: A package, the driver or the GPU is missing or does not work, or memory is short.
            ArtifactError: The engine was changed, or ONNX Runtime cannot read it.
        """
        self.batch_size = options.batch_size
        self.inference_precision: Precision = engine.precision
        self._engine = engine.read(ENGINE)
        self._input_name = engine.model.input_name
        self._device = options.gpu
        device = open_device(options.gpu)
        with device.current():
            lanes = range(options.lanes or LANES)
            self.lanes = [OnnxRuntimeCudaLane(device, self._engine, engine, options.batch_size) for _ in lanes]
        self.gpu_lanes = self.lanes

    def statistics(self) -> EngineStatistics:
        """Count the nodes of the graph as ONNX Runtime has optimised it."""
        return optimized_statistics(self._engine)

    def layer_times(self, pixels: NDArray[np.float32], seconds: float) -> list[LayerTime]:
        """Run a batch in a session of its own, which copies it there and back; see ``Runtime.layer_times``."""
        return node_times(self._engine, self._input_name, pixels, seconds, gpu={"device_id": str(self._device)})


class OnnxRuntimeCudaLane:
    """A session on a stream of its own, bound to buffers that stay where they are.

    Args:
        device: The GPU, current in the calling thread.
        model: The engine's bytes.
        engine: What the manifest says of it.
        batch_size: Largest number of images.
    """

    def __init__(self, device: Device, model: bytes, engine: EngineFiles, batch_size: int) -> None:
        self.device = device
        self.stream = device.stream()
        gpu = {"device_id": str(device.index), "user_compute_stream": str(self.stream.handle)}
        self._session = _open_on_gpu(model, gpu)
        fixed = fixed_batch(self._session, engine)
        self.smallest = fixed or 1
        self._largest = max(batch_size, self.smallest)
        self._model = engine.model
        self._shape = engine.model.image_shape
        self.images = device.allocate(4 * self._largest * math.prod(self._shape))
        self.logits = device.allocate(4 * self._largest * engine.model.classes)
        self._binding = self._session.io_binding()
        self._options = import_onnxruntime().RunOptions()
        # Without this, every run would end with a wait for the stream.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._rows = 0
        self._roundtrip: Roundtrip | None = None

    def infer(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch; see ``Lane.infer``."""
        with self.device.current():
            if self._roundtrip is None:
                self._roundtrip = Roundtrip(self.device, (self._largest, *self._shape), self._model.classes)
            return self._roundtrip.run(self, pixels)

    def enqueue(self, count: int) -> None:
        """Enqueue a run; see ``GpuLane.enqueue``."""
        rows = max(count, self.smallest)
        try:
            if rows != self._rows:
                self._bind(rows)
            with failures_as(EnvironmentFault, f"ONNX Runtime failed on a batch of {count}", _HINT):
                self._session.run_with_iobinding(self._binding, self._options)
        except EnvironmentFault as error:
            raise _memory_or(error) from error
        except RuntimeError as error:  # what it raises with a binding is no exception of its own
            message = f"ONNX Runtime failed on a batch of {count}: {' '.join(str(error).split())}"
            raise _memory_or(EnvironmentFault(message, hint=_HINT)) from error

    def _bind(self, rows: int) -> None:
        place = ("cuda", self.device.index, np.float32)
        model = self._model
        self._binding.bind_input(model.input_name, *place, [rows, *self._shape], self.images.address)
        self._binding.bind_output(model.output_name, *place, [rows, model.classes], self.logits.address)
        self._rows = rows


def _open_on_gpu(model: bytes, gpu: Mapping[str, str]) -> Any:
    """Open a session on the GPU, or say why that is not to be had: ONNX Runtime itself would go on without it."""
    try:
        session = open_session(model, threads=1, gpu=gpu)
    except ArtifactError as error:
        raise _memory_or(error) from error
    if CUDA not in session.get_providers():
        message = "ONNX Runtime's CUDA provider does not start, although the package has it"
        raise EnvironmentFault(message, hint="install the CUDA and cuDNN libraries that this onnxruntime-gpu is for")
    return session


def _memory_or(error: TrtVitError) -> TrtVitError:
    """Return a failure as one of too little memory where it is one, and as it is otherwise."""
    if any(words in error.message for words in _LACKS_MEMORY):
        return OutOfDeviceMemory(error.message, hint=_HINT)
    return error
