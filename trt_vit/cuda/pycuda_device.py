"""The device on PyCUDA and cuda-bindings, both of which are handed to it: this module imports neither."""

from __future__ import annotations

import atexit
import math
import threading
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from trt_vit.cuda.compile import compiled
from trt_vit.errors import EnvironmentFault, OutOfDeviceMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from numpy.typing import DTypeLike, NDArray

    from trt_vit.cuda.device import DeviceMemory, Event, Graph, Kernel, Stream

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING, which PyCUDA has no name for: the stream does not wait for the default stream."""

THREADS = 256
"""Threads of a block of every kernel, as in block.cuh."""

_MEMORY = "try a smaller --batch-size or fewer --lanes"
_RESTART = "run again; if it fails again, check the GPU with nvidia-smi"
_OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""


class PyCudaDevice:
    """A GPU, by its primary context.

    Args:
        cuda: ``pycuda.driver``, initialised.
        bindings: ``cuda.bindings.driver``.
        index: The GPU's number.
    """

    def __init__(self, cuda: ModuleType, bindings: ModuleType, index: int) -> None:
        self._cuda = cuda
        self._bindings = bindings
        self.index = index
        device = cuda.Device(index)
        self._context = device.retain_primary_context()
        # PyCUDA's own clean-up takes a primary context for one that it created, and complains.
        atexit.register(self._detach)
        self._modules: dict[str, Any] = {}
        self._loading = threading.Lock()
        self.name: str = device.name()
        major, minor = device.compute_capability()
        self.compute_capability = f"{major}.{minor}"

    @contextmanager
    def current(self) -> Iterator[None]:
        """See ``Device.current``."""
        # PyCUDA ends the process if a thread ends with a context pushed: so a push never outlives the block.
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def memory(self) -> tuple[int, int]:
        """See ``Device.memory``."""
        with _faults(self._cuda):
            free, total = self._cuda.mem_get_info()
        return free, total

    def stream(self) -> Stream:
        """See ``Device.stream``."""
        with _faults(self._cuda):
            return _PyCudaStream(self._cuda, self._bindings)

    def event(self, *, timed: bool = False) -> Event:
        """See ``Device.event``."""
        return _BindingsEvent(self._bindings, timed=timed)

    def kernel(self, source: str, name: str) -> Kernel:
        """See ``Device.kernel``."""
        with self._loading, _faults(self._cuda):
            if source not in self._modules:
                self._modules[source] = self._cuda.module_from_buffer(compiled(source, self.compute_capability))
            return _PyCudaKernel(self._modules[source].get_function(name), name)

    def allocate(self, nbytes: int) -> DeviceMemory:
        """See ``Device.allocate``."""
        try:
            with _faults(self._cuda):
                return _PyCudaMemory(self._cuda.mem_alloc(nbytes), nbytes)
        except OutOfDeviceMemory as error:
            free, total = (size >> 20 for size in self.memory())
            message = (
                f"cannot allocate {nbytes >> 20} MiB on {self.name}: {free} of {total} MiB are free: {error.message}"
            )
            raise OutOfDeviceMemory(message, hint=_MEMORY) from error

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """See ``Device.pinned``."""
        try:
            with _faults(self._cuda):
                array: NDArray[Any] = self._cuda.pagelocked_empty(tuple(shape), np.dtype(dtype))
        except OutOfDeviceMemory as error:
            size = math.prod(shape) * np.dtype(dtype).itemsize >> 20
            message = f"cannot allocate {size} MiB of pinned host memory: {error.message}"
            raise OutOfDeviceMemory(message, hint=_MEMORY) from error
        array.fill(0)
        return array

    def _detach(self) -> None:
        with suppress(self._cuda.Error):  # after a failure of the GPU nothing can be given back to it
            self._context.detach()


class _PyCudaMemory:
    def __init__(self, allocation: Any, nbytes: int) -> None:
        self._allocation = allocation
        self.address = int(allocation)
        self.nbytes = nbytes


class _PyCudaKernel:
    def __init__(self, function: Any, name: str) -> None:
        self.function = function
        self.name = name


class _PyCudaStream:
    def __init__(self, cuda: ModuleType, bindings: ModuleType) -> None:
        self._cuda = cuda
        self._bindings = bindings
        self._stream = cuda.Stream(_NON_BLOCKING)
        self.handle: int = self._stream.handle

    def copy_to_device(self, destination: DeviceMemory, source: NDArray[Any]) -> None:
        with _faults(self._cuda):
            self._cuda.memcpy_htod_async(destination.address, source, self._stream)

    def copy_to_host(self, destination: NDArray[Any], source: DeviceMemory) -> None:
        with _faults(self._cuda):
            self._cuda.memcpy_dtoh_async(destination, source.address, self._stream)

    def launch(self, kernel: Kernel, grid: tuple[int, int], arguments: bytes) -> None:
        function = cast("_PyCudaKernel", kernel).function
        with _faults(self._cuda):
            function.prepare([f"{len(arguments)}s"])
            function.prepared_async_call(grid, (THREADS, 1, 1), self._stream, arguments)

    def record(self, event: Event) -> None:
        _check(self._bindings, self._bindings.cuEventRecord(event.handle, self.handle))

    def wait(self, event: Event) -> None:
        _check(self._bindings, self._bindings.cuStreamWaitEvent(self.handle, event.handle, 0))

    def capture(self, enqueue: Callable[[], None]) -> Graph | None:
        # Thread-local: what other threads' lanes do meanwhile, such as allocating, neither fails nor ends the capture.
        mode = self._bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _check(self._bindings, self._bindings.cuStreamBeginCapture(self.handle, mode))
        complete = False
        try:
            enqueue()
            complete = True
        except EnvironmentFault:
            pass  # whatever refused to be captured says so again, and louder, when it is enqueued to run
        finally:
            # Always: until then the stream runs nothing.
            status, graph = self._bindings.cuStreamEndCapture(self.handle)
        if status:
            return None
        try:
            return _BindingsGraph(self._bindings, graph, self) if complete else None
        finally:
            _check(self._bindings, self._bindings.cuGraphDestroy(graph))


class _BindingsEvent:
    def __init__(self, bindings: ModuleType, *, timed: bool) -> None:
        self._bindings = bindings
        flags = bindings.CUevent_flags
        value = int(flags.CU_EVENT_BLOCKING_SYNC) | (0 if timed else int(flags.CU_EVENT_DISABLE_TIMING))
        event = _check(bindings, bindings.cuEventCreate(value))
        self.handle = int(event)
        weakref.finalize(self, bindings.cuEventDestroy, event).atexit = False

    def synchronize(self) -> None:
        _check(self._bindings, self._bindings.cuEventSynchronize(self.handle))

    def seconds_since(self, start: Event) -> float:
        milliseconds: float = _check(self._bindings, self._bindings.cuEventElapsedTime(start.handle, self.handle))
        return milliseconds / 1000


class _BindingsGraph:
    def __init__(self, bindings: ModuleType, graph: Any, stream: _PyCudaStream) -> None:
        self._bindings = bindings
        self._stream = stream
        self._executable = _check(bindings, bindings.cuGraphInstantiate(graph, 0))
        weakref.finalize(self, bindings.cuGraphExecDestroy, self._executable).atexit = False

    def launch(self) -> None:
        _check(self._bindings, self._bindings.cuGraphLaunch(self._executable, self._stream.handle))


def _check(bindings: ModuleType, result: tuple[Any, ...]) -> Any:
    """Return what a function of cuda-bindings gave besides its status, which must be success."""
    status, *values = result
    if status:
        _, reason = bindings.cuGetErrorString(status)
        text = reason.decode() if reason else str(status)
        if int(status) == _OUT_OF_MEMORY:
            raise OutOfDeviceMemory(f"CUDA failed: {text}", hint=_MEMORY)
        raise EnvironmentFault(f"CUDA failed: {text}", hint=_RESTART)
    return values[0] if values else None


@contextmanager
def _faults(cuda: ModuleType) -> Iterator[None]:
    """Raise PyCUDA's errors as ours."""
    try:
        yield
    except cuda.MemoryError as error:
        raise OutOfDeviceMemory(str(error), hint=_MEMORY) from error
    except cuda.Error as error:
        raise EnvironmentFault(f"CUDA failed: {error}", hint=_RESTART) from error
