"""PyTorch on a GPU, behind the protocol of a lane: an engine where there is no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trt_vit.errors import OutOfDeviceMemory
from trt_vit.runtime.protocol import EngineStatistics
from trt_vit.runtime.roundtrip import Roundtrip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trt_vit.cuda.device import Device, DeviceMemory
    from trt_vit.engine.manifest import Precision
    from trt_vit.runtime.protocol import GpuLane, LayerTime


class _Tensor:
    """Memory of the device as something that torch takes for a tensor."""

    def __init__(self, memory: DeviceMemory, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<f4",
            "data": (memory.address, False),
            "strides": None,
            "version": 3,
        }


class TorchLane:
    """A model on the lane's stream."""

    smallest = 1

    def __init__(self, device: Device, model: Any, shape: tuple[int, int, int, int], classes: int) -> None:
        import torch

        self._torch: Any = torch
        self.device = device
        self.stream = device.stream()
        self.images = device.allocate(4 * int(np.prod(shape)))
        self.logits = device.allocate(4 * shape[0] * classes)
        place = torch.device("cuda", device.index)
        self._external = self._torch.cuda.ExternalStream(self.stream.handle, place)
        self._model = model.to(place)
        self._input = torch.as_tensor(_Tensor(self.images, shape), device=place)
        self._output = torch.as_tensor(_Tensor(self.logits, (shape[0], classes)), device=place)
        self._shape = shape
        self._classes = classes

    def infer(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with self.device.current():
            return Roundtrip(self.device, self._shape, self._classes).run(self, pixels)

    def enqueue(self, count: int) -> None:
        torch = self._torch
        try:
            with torch.inference_mode(), torch.cuda.stream(self._external):
                self._output[:count] = self._model(pixel_values=self._input[:count]).logits.float()
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfDeviceMemory(str(error), hint="try less") from error


class TorchRuntime:
    """A checkpoint of transformers on a GPU."""

    inference_precision: Precision = "fp32"

    def __init__(self, device: Device, model: Any, shape: tuple[int, int, int, int], lanes: int) -> None:
        self.batch_size = shape[0]
        with device.current():
            self.lanes = [TorchLane(device, model, shape, model.config.num_labels) for _ in range(lanes)]
        self.gpu_lanes: Sequence[GpuLane] = self.lanes

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(layers=0, fused_attention=0, weights_bytes=0, kinds={}, precisions={}, reformats=0)

    def layer_times(self, pixels: NDArray[np.float32], seconds: float) -> list[LayerTime]:
        return []
