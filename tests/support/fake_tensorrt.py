"""As much of TensorRT as a runtime calls, on a recording device: an engine whose logits are known.

Each logit of an image is the sum of its pixels, times the class's number plus one.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.support.recording_device import Access, reads, writes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tests.support.recording_device import RecordingDevice

HEIGHT, WIDTH, CLASSES = 2, 4, 5
ACTIVATIONS = 4096
DataType = Enum("DataType", ["FLOAT", "HALF"])
TensorIOMode = Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
Strategy = Enum("Strategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"])
LayerInformationFormat = Enum("LayerInformationFormat", ["ONELINE", "JSON"])
CudaGraphStrategy = Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
Specialization = Enum("Specialization", ["LAZY", "EAGER", "NONE"])


def logits_of(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    sums = pixels.reshape(len(pixels), -1).astype(np.float64).sum(axis=1, keepdims=True)
    logits: NDArray[np.float32] = (sums * np.arange(1, CLASSES + 1)).astype(np.float32)
    return logits


class FakeLogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4


class FakeProfiler:
    """What a profiler inherits from."""


class FakeContext:
    """An execution context. Attributes tell what it was given."""

    profiler: Any = None

    def __init__(self, engine: FakeEngine, strategy: Any) -> None:
        self.engine = engine
        self.strategy = strategy
        self.profile = 0
        self.runs = 0
        self.shapes: list[tuple[int, ...]] = []
        self.addresses: dict[str, int] = {}
        self.device_memory: tuple[int, int] | None = None

    def set_device_memory(self, memory: int, size: int) -> None:
        self.device_memory = (memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert self.engine.device.stream_of(stream_handle)
        self.profile = profile_index
        return profile_index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes.append(shape)
        return name == "pixels" and self.engine.smallest <= shape[0] <= self.engine.largest

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return name in self.engine.tensors

    def execute_async_v3(self, stream_handle: int) -> bool:
        stream = self.engine.device.stream_of(stream_handle)
        if self.engine.fails or (stream.capturing and self.engine.fails_in_capture):
            self.engine.log(1, self.engine.reason)
            return False
        if self.strategy is Strategy.USER_MANAGED and self.device_memory is None:
            return False
        source = self.engine.device.memory_at(self.addresses["pixels"])
        target = self.engine.device.memory_at(self.addresses["logits"])
        shape = self.shapes[-1]

        def execute() -> list[Access]:
            taken, given = 4 * int(np.prod(shape)), 4 * shape[0] * CLASSES
            pixels = source.data[:taken].view(np.float32).reshape(shape)
            target.data[:given] = logits_of(pixels).reshape(-1).view(np.uint8)
            return [reads(source.address, taken), writes(target.address, given)]

        stream.enqueue(f"execute {shape[0]}", execute)
        if self.profiler is not None:
            self.runs += 1
            for layer, milliseconds in self.engine.times.items():
                # The first run takes longer, as kernels are loaded then.
                self.profiler.report_layer_time(layer, milliseconds * (100 if self.runs == 1 else 1))
        return True


class FakeCache:
    """A runtime cache of TensorRT for RTX: it takes what begins with the right word."""

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def deserialize(self, blob: bytes) -> bool:
        self.given.append(blob)
        return blob.startswith(b"kernels")

    def serialize(self) -> bytes:
        return b"kernels, compiled"


class FakeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = Specialization.LAZY
        self.cache: FakeCache | None = None

    def create_runtime_cache(self) -> FakeCache:
        return FakeCache()

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        self.cache = cache
        return True


class FakeEngine:
    """A loaded engine. Attributes may be changed before it is loaded."""

    device_memory_size_v2 = ACTIVATIONS
    layers = '{"Layers": []}'

    def __init__(self, device: RecordingDevice, smallest: int, largest: int) -> None:
        self.device = device
        self.smallest = smallest
        self.largest = largest
        self.num_optimization_profiles = 1
        self.tensors: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
            "pixels": (TensorIOMode.INPUT, DataType.FLOAT, (-1, 3, HEIGHT, WIDTH)),
            "logits": (TensorIOMode.OUTPUT, DataType.FLOAT, (-1, CLASSES)),
        }
        self.contexts: list[FakeContext] = []
        self.configs: list[FakeConfig] = []
        self.times: dict[str, float] = {}
        self.fails = False
        self.reason = "it went\nwrong"
        self.fails_in_capture = False
        self.has_no_contexts = False
        self.log: Callable[[int, str], None] = lambda _severity, _message: None

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.tensors[name][0]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.tensors[name][1]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][2]

    def create_runtime_config(self) -> FakeConfig:
        self.configs.append(FakeConfig())
        return self.configs[-1]

    def create_execution_context(self, strategy: Any = Strategy.STATIC) -> FakeContext | None:
        if self.has_no_contexts:
            self.log(1, "out of memory")
            return None
        self.contexts.append(FakeContext(self, strategy))
        return self.contexts[-1]

    def create_engine_inspector(self) -> FakeEngine:
        return self

    def get_engine_information(self, layer_format: Any) -> str:
        return self.layers if layer_format is LayerInformationFormat.JSON else "one line a layer"

    def get_engine_stat(self) -> int:
        return 1234


class FakeRuntime:
    """Loads an engine from any plan but ``PLAN_OF_ANOTHER_VERSION``, and says what it saw."""

    def __init__(self, engine: FakeEngine, logger: Any) -> None:
        self._engine = engine
        self._logger = logger
        self.engine_host_code_allowed = True

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeEngine | None:
        self._engine.device.log.append(
            f"deserialize {serialized_engine.decode()}, host code allowed: {self.engine_host_code_allowed}"
        )
        self._engine.log = lambda severity, message: self._logger.log(FakeLogger.Severity(severity), message)
        if serialized_engine == PLAN_OF_ANOTHER_VERSION:
            self._engine.log(1, "Version tag does not match.\n  Expected 239, got 238")
            self._engine.log(1, "Cuda Runtime error")
            return None
        return self._engine


PLAN_OF_ANOTHER_VERSION = b"plan of another version"


def bindings(engine: FakeEngine) -> ModuleType:
    module = ModuleType("tensorrt")
    module.__dict__.update(
        __version__="11.4.0",
        ILogger=FakeLogger,
        IProfiler=FakeProfiler,
        Runtime=lambda logger: FakeRuntime(engine, logger),
        DataType=DataType,
        TensorIOMode=TensorIOMode,
        ExecutionContextAllocationStrategy=Strategy,
        LayerInformationFormat=LayerInformationFormat,
        CudaGraphStrategy=CudaGraphStrategy,
        DynamicShapesKernelSpecializationStrategy=Specialization,
    )
    return module
