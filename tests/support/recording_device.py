"""A GPU that isn't there: it records what is asked of it, and does it as late as a GPU may.

Work on a stream waits until something waits for the stream, and only then moves bytes. So a result that is read too
early, a buffer that is written too soon or a copy that is missing shows in the values, as it would on a GPU.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_vit.errors import EnvironmentFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import DTypeLike, NDArray

    from trt_vit.cuda.device import DeviceMemory, Event, Graph

_UNDEFINED = 0x7F
"""What memory holds before anything is written to it: as float32 it is 3.4e38, as bytes 127."""


class RecordingMemory:
    def __init__(self, address: int, nbytes: int) -> None:
        self.address = address
        self.nbytes = nbytes
        self.data = np.full(nbytes, _UNDEFINED, dtype=np.uint8)


class RecordingEvent:
    def __init__(self, device: RecordingDevice, handle: int) -> None:
        self._device = device
        self.handle = handle
        self.reached: Callable[[], None] | None = None

    def synchronize(self) -> None:
        self._device.must_be_current()
        assert self.reached is not None, "nothing recorded the event"
        self._device.log.append("wait")
        self.reached()


class RecordingGraph:
    def __init__(self, stream: RecordingStream, work: list[tuple[str, Callable[[], None]]]) -> None:
        self._stream = stream
        self._work = work

    def launch(self) -> None:
        self._stream.device.must_be_current()
        self._stream.device.log.append("launch")
        self._stream.waiting += [run for _, run in self._work]


class RecordingStream:
    def __init__(self, device: RecordingDevice, handle: int) -> None:
        self.device = device
        self.handle = handle
        self.waiting: list[Callable[[], None]] = []
        self._captured: list[tuple[str, Callable[[], None]]] | None = None

    @property
    def capturing(self) -> bool:
        return self._captured is not None

    def enqueue(self, what: str, run: Callable[[], None]) -> None:
        self.device.must_be_current()
        if self._captured is not None:
            self._captured.append((what, run))
            return
        self.device.log.append(what)
        self.waiting.append(run)

    def copy_to_device(self, destination: DeviceMemory, source: NDArray[Any]) -> None:
        memory = self.device.memory_at(destination.address)
        assert self.device.is_pinned(source)
        assert source.flags.c_contiguous

        def copy() -> None:
            data = np.frombuffer(source.tobytes(), dtype=np.uint8)
            memory.data[: data.size] = data

        self.enqueue(f"to device {source.nbytes}", copy)

    def copy_to_host(self, destination: NDArray[Any], source: DeviceMemory) -> None:
        memory = self.device.memory_at(source.address)
        assert self.device.is_pinned(destination)

        def copy() -> None:
            destination[...] = memory.data[: destination.nbytes].view(destination.dtype).reshape(destination.shape)

        self.enqueue(f"to host {destination.nbytes}", copy)

    def record(self, event: Event) -> None:
        assert isinstance(event, RecordingEvent)
        work = len(self.waiting)

        def reached() -> None:
            for run in self.waiting[:work]:
                run()
            del self.waiting[:work]

        event.reached = reached
        self.device.must_be_current()
        self.device.log.append("record")

    def capture(self, enqueue: Callable[[], None]) -> Graph | None:
        self.device.must_be_current()
        self._captured = []
        complete = False
        try:
            enqueue()
            complete = True
        except EnvironmentFault:
            pass
        finally:
            captured, self._captured = self._captured, None
        self.device.log.append("capture " + ", ".join(what for what, _ in captured))
        return RecordingGraph(self, captured) if complete and self.device.captures else None


class RecordingDevice:
    """Implements ``trt_vit.cuda.device.Device``.

    Attributes:
        log: What was asked for, in order.
        captures: Whether it can capture graphs.
    """

    name = "Recorded GPU"
    compute_capability = "8.9"

    def __init__(self) -> None:
        self.log: list[str] = []
        self.captures = True
        self.streams: list[RecordingStream] = []
        self._memory: list[RecordingMemory] = []
        self._pinned: list[NDArray[Any]] = []
        self._thread = threading.local()

    def must_be_current(self) -> None:
        assert getattr(self._thread, "depth", 0) > 0, "the device is not current in this thread"

    def memory_at(self, address: int) -> RecordingMemory:
        return next(memory for memory in self._memory if memory.address == address)

    def is_pinned(self, array: NDArray[Any]) -> bool:
        return any(np.shares_memory(array, pinned) for pinned in self._pinned)

    def stream_of(self, handle: int) -> RecordingStream:
        return next(stream for stream in self.streams if stream.handle == handle)

    @contextmanager
    def current(self) -> Iterator[None]:
        self._thread.depth = getattr(self._thread, "depth", 0) + 1
        try:
            yield
        finally:
            self._thread.depth -= 1

    def memory(self) -> tuple[int, int]:
        self.must_be_current()
        return 1 << 30, 1 << 31

    def stream(self) -> RecordingStream:
        self.must_be_current()
        self.streams.append(RecordingStream(self, 0x100 + len(self.streams)))
        return self.streams[-1]

    def event(self) -> RecordingEvent:
        self.must_be_current()
        return RecordingEvent(self, 0x900)

    def allocate(self, nbytes: int) -> RecordingMemory:
        self.must_be_current()
        assert nbytes > 0
        self.log.append(f"allocate {nbytes}")
        self._memory.append(RecordingMemory(0x10000 * (len(self._memory) + 1), nbytes))
        return self._memory[-1]

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        self.must_be_current()
        self._pinned.append(np.zeros(tuple(shape), dtype=dtype))
        self.log.append(f"pinned {self._pinned[-1].nbytes}")
        return self._pinned[-1]
