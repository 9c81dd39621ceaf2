"""The device on PyCUDA and cuda-bindings, both of which are handed to it: this module imports neither."""

from __future__ import annotations

import atexit
import math
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_vit.errors import EnvironmentFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from numpy.typing import DTypeLike, NDArray

    from trt_vit.cuda.device import DeviceMemory, Event, Graph, Stream

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING, which PyCUDA has no name for: the stream does not wait for the default stream."""

_MEMORY = "try a smaller --batch-size or fewer --lanes"
_RESTART = "run again; if it fails again, check the GPU with nvidia-smi"


class PyCudaDevice:
    """The first GPU, by its primary context.

    Args:
        cuda: ``pycuda.driver``, initialised.
        bindings: ``cuda.bindings.driver``.
    """

    def __init__(self, cuda: ModuleType, bindings: ModuleType) -> None:
        self._cuda = cuda
        self._bindings = bindings
        device = cuda.Device(0)
        self._context = device.retain_primary_context()
        # PyCUDA's own clean-up takes a primary context for one that it created, and complains.
        atexit.register(self._context.detach)
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
        free, total = self._cuda.mem_get_info()
        return free, total

    def stream(self) -> Stream:
        """See ``Device.stream``."""
        return _PyCudaStream(self._cuda, self._bindings)

    def event(self) -> Event:
        """See ``Device.event``."""
        return _BindingsEvent(self._bindings)

    def allocate(self, nbytes: int) -> DeviceMemory:
        """See ``Device.allocate``."""
        try:
            return _PyCudaMemory(self._cuda.mem_alloc(nbytes), nbytes)
        except self._cuda.Error as error:
            free, total = (size >> 20 for size in self.memory())
            message = f"cannot allocate {nbytes >> 20} MiB on {self.name}: {free} of {total} MiB are free: {error}"
            raise EnvironmentFault(message, hint=_MEMORY) from error

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """See ``Device.pinned``."""
        try:
            array: NDArray[Any] = self._cuda.pagelocked_empty(tuple(shape), np.dtype(dtype))
        except self._cuda.Error as error:
            size = math.prod(shape) * np.dtype(dtype).itemsize >> 20
            message = f"cannot allocate {size} MiB of pinned host memory: {error}"
            raise EnvironmentFault(message, hint=_MEMORY) from error
        array.fill(0)
        return array


class _PyCudaMemory:
    def __init__(self, allocation: Any, nbytes: int) -> None:
        self._allocation = allocation
        self.address = int(allocation)
        self.nbytes = nbytes


class _PyCudaStream:
    def __init__(self, cuda: ModuleType, bindings: ModuleType) -> None:
        self._cuda = cuda
        self._bindings = bindings
        self._stream = cuda.Stream(_NON_BLOCKING)
        self.handle: int = self._stream.handle

    def copy_to_device(self, destination: DeviceMemory, source: NDArray[Any]) -> None:
        with self._faults():
            self._cuda.memcpy_htod_async(destination.address, source, self._stream)

    def copy_to_host(self, destination: NDArray[Any], source: DeviceMemory) -> None:
        with self._faults():
            self._cuda.memcpy_dtoh_async(destination, source.address, self._stream)

    def record(self, event: Event) -> None:
        _check(self._bindings, self._bindings.cuEventRecord(event.handle, self.handle))

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

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except self._cuda.Error as error:
            raise EnvironmentFault(f"CUDA failed: {error}", hint=_RESTART) from error


class _BindingsEvent:
    def __init__(self, bindings: ModuleType) -> None:
        self._bindings = bindings
        flags = bindings.CUevent_flags
        value = int(flags.CU_EVENT_BLOCKING_SYNC) | int(flags.CU_EVENT_DISABLE_TIMING)
        event = _check(bindings, bindings.cuEventCreate(value))
        self.handle = int(event)
        weakref.finalize(self, bindings.cuEventDestroy, event).atexit = False

    def synchronize(self) -> None:
        _check(self._bindings, self._bindings.cuEventSynchronize(self.handle))


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
        raise EnvironmentFault(f"CUDA failed: {text}", hint=_RESTART)
    return values[0] if values else None
