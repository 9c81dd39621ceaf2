"""One batch in flight in a TensorRT engine."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, SupportsFloat, cast

from trt_vit.errors import EnvironmentFault, OutOfDeviceMemory
from trt_vit.runtime.roundtrip import Roundtrip
from trt_vit.runtime.tensorrt_cache import KernelCache
from trt_vit.runtime.tensorrt_family import last_error

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    import tensorrt as trt
    import tensorrt_rtx as rtx
    from numpy.typing import NDArray

    from trt_vit.cuda.device import Device, Graph
    from trt_vit.runtime.tensorrt_family import Family, Log

_CONTEXTS = 4
"""Batch sizes that a lane is ready for at the same time: the full batch, the last one of a run, and two more."""
_HINT = "try a smaller --batch-size or fewer --lanes"


@dataclass(frozen=True)
class Binding:
    """What a lane binds to the engine's two tensors.

    Attributes:
        input_name: Name of the images' tensor.
        output_name: Name of the logits' tensor.
        image_shape: Sizes of one image, (3, height, width).
        classes: Number of logits of one image.
        smallest: Smallest batch that the engine takes: below it, a batch is filled up.
        largest: Largest batch that the lane is given room for.
    """

    input_name: str
    output_name: str
    image_shape: tuple[int, int, int]
    classes: int
    smallest: int
    largest: int


class Contexts(Protocol):
    """Where a lane gets its execution contexts from."""

    @property
    def captures(self) -> bool:
        """Whether the lane captures CUDA graphs, for which it takes a context for each batch size.

        A graph holds the state of the context that it was captured from, which must not change afterwards.
        """
        ...

    def create(self) -> trt.IExecutionContext | None:
        """Create a context, or return None if TensorRT cannot."""
        ...

    def compiling(self, count: int) -> AbstractContextManager[None]:
        """Surround a run of a batch of ``count``, which may compile kernels."""
        ...


class TensorRtContexts:
    """One lane's contexts of TensorRT. They never run at the same time, so they share the memory of the activations.

    Args:
        family: TensorRT.
        engine: The engine.
        device: Where it is loaded.
    """

    captures = True

    def __init__(self, family: Family, engine: trt.ICudaEngine, device: Device) -> None:
        self._family = family
        self._engine = engine
        self._activations = device.allocate(max(1, engine.device_memory_size_v2))

    def create(self) -> trt.IExecutionContext | None:
        """See ``Contexts.create``."""
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = self._family.bindings
        context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is not None:
            context.set_device_memory(self._activations.address, self._activations.nbytes)
        return context

    def compiling(self, count: int) -> AbstractContextManager[None]:  # noqa: ARG002 - TensorRT compiles when it builds
        """See ``Contexts.compiling``."""
        return nullcontext()


class RtxContexts:
    """All lanes' contexts of TensorRT for RTX, which captures CUDA graphs itself and compiles kernels as it runs.

    Kernels are compiled for the very shape when it is first run: the library's default, to run others meanwhile, would
    make the logits of a run depend on timing.

    Args:
        family: TensorRT for RTX.
        engine: The engine.
        path: Where its compiled kernels are kept.
    """

    captures = False

    def __init__(self, family: Family, engine: trt.ICudaEngine, path: Path) -> None:
        if TYPE_CHECKING:
            import tensorrt_rtx as rtx
        else:
            rtx = family.bindings
        self._engine = cast("rtx.ICudaEngine", engine)
        self._config = self._engine.create_runtime_config()
        self._config.cuda_graph_strategy = rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        specialization = rtx.DynamicShapesKernelSpecializationStrategy.EAGER
        self._config.dynamic_shapes_kernel_specialization_strategy = specialization
        cache = self._config.create_runtime_cache()
        self._kernels = KernelCache(cache, path)
        self._config.set_runtime_cache(cache)

    def create(self) -> trt.IExecutionContext | None:
        """See ``Contexts.create``."""
        return cast("trt.IExecutionContext | None", self._engine.create_execution_context(self._config))

    def compiling(self, count: int) -> AbstractContextManager[None]:
        """See ``Contexts.compiling``."""
        return self._kernels.compiling(count)


class ProfiledContexts:
    """Contexts that note how long each layer takes: a batch at a time, as the profiler makes enqueueing wait.

    Args:
        family: TensorRT or TensorRT for RTX.
        engine: The engine.
    """

    captures = False

    def __init__(self, family: Family, engine: trt.ICudaEngine) -> None:
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = family.bindings
        self._engine = engine
        self._milliseconds = milliseconds = dict[str, float]()

        class _Profiler(trt.IProfiler):  # type: ignore[misc]  # Any where the bindings are not installed
            def __init__(self) -> None:
                super().__init__()

            def report_layer_time(self, layer_name: str, ms: SupportsFloat) -> None:
                milliseconds[layer_name] = milliseconds.get(layer_name, 0.0) + float(ms)

        self._profiler: trt.IProfiler = _Profiler()

    def create(self) -> trt.IExecutionContext | None:
        """See ``Contexts.create``."""
        context = self._engine.create_execution_context()
        if context is not None:
            context.profiler = self._profiler
        return context

    def compiling(self, count: int) -> AbstractContextManager[None]:  # noqa: ARG002 - a warm-up comes first
        """See ``Contexts.compiling``."""
        return nullcontext()

    def forget(self) -> None:
        """Forget what was noted so far."""
        self._milliseconds.clear()

    def totals(self) -> dict[str, float]:
        """Return the seconds that each layer has taken in all, by its name, in the order they were run."""
        return {name: value / 1000 for name, value in self._milliseconds.items()}


@dataclass
class _Batch:
    """A context, the batch size it is set to, how often it has run, and the graph of a run."""

    context: trt.IExecutionContext
    rows: int = 0
    runs: int = 0
    graph: Graph | None = None


class TensorRtLane:
    """A stream, buffers that stay where they are, and a context for each of the last few batch sizes.

    Args:
        device: Where the engine is loaded; current in the calling thread.
        family: For messages.
        log: What TensorRT says.
        contexts: Where contexts come from.
        binding: The engine's tensors.
        profile: Optimization profile of the contexts.
    """

    def __init__(
        self, device: Device, family: Family, log: Log, contexts: Contexts, binding: Binding, *, profile: int
    ) -> None:
        self.device = device
        self.stream = device.stream()
        self.smallest = binding.smallest
        self._family = family
        self._log = log
        self._contexts = contexts
        self._binding = binding
        self._profile = profile
        floats = binding.largest * 4
        self.images = device.allocate(floats * math.prod(binding.image_shape))
        self.logits = device.allocate(floats * binding.classes)
        self._batches: dict[int, _Batch] = {}
        self._roundtrip: Roundtrip | None = None

    def infer(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch; see ``Lane.infer``."""
        with self.device.current():
            if self._roundtrip is None:
                shape = (self._binding.largest, *self._binding.image_shape)
                self._roundtrip = Roundtrip(self.device, shape, self._binding.classes)
            return self._roundtrip.run(self, pixels)

    def enqueue(self, count: int) -> None:
        """Enqueue a run; see ``GpuLane.enqueue``."""
        # What a batch before left in the rows that fill up a small one does no harm: images do not touch one another.
        rows = max(count, self._binding.smallest)
        with self._contexts.compiling(rows):
            batch = self._batch_of(rows)
            if batch.runs == 1 and self._contexts.captures:
                # The second batch of a size is seldom the last, and the first settled what may not change in a graph.
                batch.graph = self.stream.capture(lambda: self._execute(batch))
            if batch.graph is None:
                self._execute(batch)
            else:
                batch.graph.launch()
            batch.runs += 1

    def _execute(self, batch: _Batch) -> None:
        said = len(self._log.errors)
        if not batch.context.execute_async_v3(self.stream.handle):
            raise self._fault(batch.rows, last_error(self._log, "it gives no reason", said))

    def _batch_of(self, rows: int) -> _Batch:
        """Return a context that is set to the batch size: the one that last ran it, if it is still there."""
        key = rows if self._contexts.captures else 0
        batch = self._batches.pop(key, None) or self._create(rows)
        self._batches[key] = batch
        if len(self._batches) > _CONTEXTS:
            del self._batches[next(iter(self._batches))]  # unused for longest
        if batch.rows != rows:
            said = len(self._log.errors)
            if not batch.context.set_input_shape(self._binding.input_name, (rows, *self._binding.image_shape)):
                raise self._fault(rows, last_error(self._log, "the engine refuses its shape", said))
            batch.rows = rows
        return batch

    def _create(self, rows: int) -> _Batch:
        said = len(self._log.errors)
        context = self._contexts.create()
        if context is None:
            raise self._fault(rows, last_error(self._log, "no execution context can be created", said))
        ready = self._profile == 0 or context.set_optimization_profile_async(self._profile, self.stream.handle)
        ready = ready and context.set_tensor_address(self._binding.input_name, self.images.address)
        ready = ready and context.set_tensor_address(self._binding.output_name, self.logits.address)
        if not ready:
            raise self._fault(rows, last_error(self._log, "the execution context cannot be set up", said))
        return _Batch(context)

    def _fault(self, count: int, reason: str) -> EnvironmentFault:
        lacks_memory = "outofmemory" in reason.lower().replace(" ", "")  # it is written in both ways
        kind = OutOfDeviceMemory if lacks_memory else EnvironmentFault
        return kind(f"{self._family.title} failed on a batch of {count}: {reason}", hint=_HINT)
