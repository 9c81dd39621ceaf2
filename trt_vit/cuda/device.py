"""The GPU behind one small interface, so that the order of its work can be tested where there is none.

PyCUDA holds the device: its primary context, which TensorRT uses too, its streams, memory, copies and kernels. What it
lacks, events with a handle and CUDA graphs, cuda-bindings adds on the same streams. Both are imported when the device
is opened, never before.

Everything but ``Device.current`` needs the device to be current in the calling thread. Memory and streams are given
back with their last reference, which is dropped inside ``current`` or in the thread that opened the device: PyCUDA
gives nothing back elsewhere.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from trt_vit.cuda.pycuda_device import PyCudaDevice
from trt_vit.errors import EnvironmentFault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import DTypeLike, NDArray

_LIBRARY = "libcuda.so.1"
_INSTALL = "pip install 'trt-vit[cuda]'"
_DRIVER = "check the NVIDIA driver with nvidia-smi, or build and run with --runtime openvino"


class DeviceMemory(Protocol):
    """Memory on the GPU."""

    @property
    def address(self) -> int:
        """Where it begins, aligned to at least 256 bytes."""
        ...

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...


class Event(Protocol):
    """A point in a stream's work."""

    @property
    def handle(self) -> int:
        """The CUevent."""
        ...

    def synchronize(self) -> None:
        """Wait until the stream has reached the point, without spinning: the core is free for other threads."""
        ...

    def seconds_since(self, start: Event) -> float:
        """Return the time from one point to this one. Both were created as ``timed``, and have been reached."""
        ...


class Kernel(Protocol):
    """One of the project's own kernels, loaded."""

    @property
    def name(self) -> str:
        """Its name in the source."""
        ...


class Graph(Protocol):
    """Captured work, which is started as a whole."""

    def launch(self) -> None:
        """Enqueue it on the stream that it was captured on."""
        ...


class Stream(Protocol):
    """Work in order. Never the default stream, and not held up by it."""

    @property
    def handle(self) -> int:
        """The CUstream."""
        ...

    def copy_to_device(self, destination: DeviceMemory, source: NDArray[Any]) -> None:
        """Enqueue a copy of a C-contiguous pinned array, which must not change until the copy is done."""
        ...

    def copy_to_host(self, destination: NDArray[Any], source: DeviceMemory) -> None:
        """Enqueue a copy into a C-contiguous pinned array, which holds it when the copy is done."""
        ...

    def launch(self, kernel: Kernel, grid: tuple[int, int], arguments: bytes) -> None:
        """Enqueue a kernel.

        Args:
            kernel: The kernel.
            grid: Blocks in x and y, each of ``THREADS`` threads (block.cuh).
            arguments: The struct that it takes.
        """
        ...

    def record(self, event: Event) -> None:
        """Enqueue an event."""
        ...

    def wait(self, event: Event) -> None:
        """Hold up what is enqueued from now on until an event has been reached that was recorded before."""
        ...

    def capture(self, enqueue: Callable[[], None]) -> Graph | None:
        """Make a graph of what a function enqueues on this stream. Nothing of it runs.

        Returns:
            The graph, or None where some of the work cannot be captured.
        """
        ...


class Device(Protocol):
    """One GPU."""

    @property
    def index(self) -> int:
        """Its number among the GPUs that this process may use."""
        ...

    @property
    def name(self) -> str:
        """The product's name."""
        ...

    @property
    def compute_capability(self) -> str:
        """As ``8.9``."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """Make the device the calling thread's for the length of a ``with`` block."""
        ...

    def memory(self) -> tuple[int, int]:
        """Return the bytes that are free and all that there are."""
        ...

    def stream(self) -> Stream:
        """Create a stream."""
        ...

    def event(self, *, timed: bool = False) -> Event:
        """Create an event, which knows its time if it is ``timed``."""
        ...

    def kernel(self, source: str, name: str) -> Kernel:
        """Load a kernel, which is compiled if this GPU has not had it yet.

        Args:
            source: Its file.
            name: Its name there.

        Raises:
            EnvironmentFault: It cannot be compiled.
        """
        ...

    def allocate(self, nbytes: int) -> DeviceMemory:
        """Allocate memory on the GPU; its content is undefined.

        Raises:
            OutOfDeviceMemory: There is not enough.
        """
        ...

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Allocate an array of zeros in host memory that the GPU copies from and to directly.

        Raises:
            OutOfDeviceMemory: There is not enough.
        """
        ...


def open_device(index: int = 0) -> Device:
    """Open a GPU that this process may use (CUDA_VISIBLE_DEVICES chooses which), until the process ends.

    Args:
        index: Its number among them.

    Raises:
        EnvironmentFault: A package, the driver or the GPU is missing or does not work.
    """
    return _open(index)


@cache
def _open(index: int) -> Device:
    try:
        # For all to see: a PyCUDA that was built where there is no driver does not load the driver's library itself.
        ctypes.CDLL(_LIBRARY, mode=ctypes.RTLD_GLOBAL)
        cuda, bindings = import_module("pycuda.driver"), import_module("cuda.bindings.driver")
    except ModuleNotFoundError as error:
        raise EnvironmentFault(f"a GPU needs the package {error.name}", hint=_INSTALL) from error
    except (ImportError, OSError) as error:
        raise EnvironmentFault(f"CUDA does not load: {' '.join(str(error).split())}", hint=_DRIVER) from error
    try:
        cuda.init()
        return PyCudaDevice(cuda, bindings, index)
    except cuda.Error as error:
        raise EnvironmentFault(f"no GPU can be used: {error}", hint=_DRIVER) from error
