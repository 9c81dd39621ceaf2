"""A GPU that isn't there: it records what is asked of it, does it as late as a GPU may, and finds missing events.

Work on a stream waits until something waits for the stream, or for a stream that waits for it, and only then moves
bytes. So a result that is read too early, a buffer that is written too soon or a copy that is missing shows in the
values. What only another order would show, the clocks do: every piece of work knows which others are sure to be done
before it begins, by the order on its stream, by events and by what the host has waited for; two that touch the same
bytes, one of them writing, and neither of which is sure to be done before the other, are a race.

Memory of the device is memory of this process, and the kernels are those that g++ makes of the same source.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.support import cpu_kernels
from trt_vit.cuda.preprocess import ARGUMENTS as PREPROCESS
from trt_vit.cuda.preprocess import SOURCE
from trt_vit.cuda.topk import ARGUMENTS as TOP_K
from trt_vit.errors import EnvironmentFault, OutOfDeviceMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

    from trt_vit.cuda.device import DeviceMemory, Event, Graph, Kernel

_UNDEFINED = 0x7F
"""What memory holds before anything is written to it: as float32 it is 3.4e38, as bytes 127."""
_ALIGNMENT = 256
Clock = dict[int, int]
"""How much of each stream's work is sure to be done, by the stream's handle; 0 is the host."""


@dataclass(frozen=True)
class Access:
    """Bytes that a piece of work touches."""

    begin: int
    end: int
    writes: bool


@dataclass
class Work:
    """Something enqueued, or done by the host."""

    what: str
    run: Callable[[], Sequence[Access]]
    stream: int
    number: int
    clock: Clock
    accesses: list[Access] = field(default_factory=list)

    def is_before(self, other: Work) -> bool:
        return other.clock.get(self.stream, 0) >= self.number


def joined(first: Mapping[int, int], second: Mapping[int, int]) -> Clock:
    return {key: max(first.get(key, 0), second.get(key, 0)) for key in {*first, *second}}


class RecordingMemory:
    def __init__(self, nbytes: int) -> None:
        raw = np.full(nbytes + _ALIGNMENT, _UNDEFINED, dtype=np.uint8)
        offset = -raw.ctypes.data % _ALIGNMENT
        self.data = raw[offset : offset + nbytes]
        self.address: int = self.data.ctypes.data
        self.nbytes = nbytes


class RecordingEvent:
    def __init__(self, device: RecordingDevice, handle: int, *, timed: bool) -> None:
        self._device = device
        self.handle = handle
        self.timed = timed
        self.reached: Callable[[], None] | None = None
        self.clock: Clock = {}
        self.time = 0.0

    def synchronize(self) -> None:
        self._device.must_be_current()
        assert self.reached is not None, "nothing recorded the event"
        self._device.log.append("wait")
        self._device.reach(self)

    def seconds_since(self, start: Event) -> float:
        assert isinstance(start, RecordingEvent)
        assert self.timed
        assert start.timed
        assert self.time > 0, "the event has not been reached"
        assert start.time > 0, "the event has not been reached"
        return self.time - start.time


@dataclass(frozen=True)
class RecordingKernel:
    source: str
    name: str


class RecordingGraph:
    def __init__(self, stream: RecordingStream, work: list[tuple[str, Callable[[], Sequence[Access]]]]) -> None:
        self._stream = stream
        self._work = work

    def launch(self) -> None:
        self._stream.device.must_be_current()
        self._stream.device.log.append("launch")
        for what, run in self._work:
            self._stream.add(what, run)


class RecordingStream:
    def __init__(self, device: RecordingDevice, handle: int) -> None:
        self.device = device
        self.handle = handle
        self.waiting: list[Work] = []
        self.clock: Clock = {}
        self._captured: list[tuple[str, Callable[[], Sequence[Access]]]] | None = None

    @property
    def capturing(self) -> bool:
        return self._captured is not None

    def enqueue(self, what: str, run: Callable[[], Sequence[Access]]) -> None:
        self.device.must_be_current()
        if self._captured is not None:
            self._captured.append((what, run))
            return
        self.device.log.append(what)
        self.add(what, run)

    def add(self, what: str, run: Callable[[], Sequence[Access]]) -> None:
        with self.device.lock:
            self.clock = joined(self.clock, self.device.host_clock)
            self.clock[self.handle] = self.clock.get(self.handle, 0) + 1
            self.waiting.append(Work(what, run, self.handle, self.clock[self.handle], dict(self.clock)))

    def copy_to_device(self, destination: DeviceMemory, source: NDArray[Any]) -> None:
        memory = self.device.memory_at(destination.address)
        assert self.device.is_pinned(source)
        assert source.flags.c_contiguous
        assert source.nbytes <= memory.nbytes

        def copy() -> list[Access]:
            data = np.frombuffer(source.tobytes(), dtype=np.uint8)
            memory.data[: data.size] = data
            return [reads(source.ctypes.data, source.nbytes), writes(memory.address, source.nbytes)]

        self.enqueue(f"to device {source.nbytes}", copy)

    def copy_to_host(self, destination: NDArray[Any], source: DeviceMemory) -> None:
        memory = self.device.memory_at(source.address)
        assert self.device.is_pinned(destination)
        assert destination.flags.c_contiguous
        assert destination.nbytes <= memory.nbytes

        def copy() -> list[Access]:
            destination[...] = memory.data[: destination.nbytes].view(destination.dtype).reshape(destination.shape)
            return [reads(memory.address, destination.nbytes), writes(destination.ctypes.data, destination.nbytes)]

        self.enqueue(f"to host {destination.nbytes}", copy)

    def launch(self, kernel: Kernel, grid: tuple[int, int], arguments: bytes) -> None:
        assert isinstance(kernel, RecordingKernel)
        touched = {"preprocess.cu": _preprocess_accesses, "topk.cu": _top_k_accesses}[kernel.source]

        def launch() -> list[Access]:
            self.device.launched[kernel.name] = self.device.launched.get(kernel.name, 0) + 1
            accesses = touched(self.device, kernel.name, grid, arguments)
            for access in accesses:
                self.device.must_own(access)
            cpu_kernels.launch(kernel.name, grid, arguments)
            return accesses

        self.enqueue(f"{kernel.name} {grid[0]}x{grid[1]}", launch)

    def record(self, event: Event) -> None:
        assert isinstance(event, RecordingEvent)
        self.device.must_be_current()
        self.device.log.append("record")

        def pass_by() -> list[Access]:
            event.time = self.device.tick()
            return []

        event.time = 0.0
        with self.device.lock:
            self.add("record", pass_by)
            number = self.waiting[-1].number
            event.clock = dict(self.clock)

            def reached() -> None:
                while self.waiting and self.waiting[0].number <= number:
                    self.device.run(self.waiting.pop(0))

            event.reached = reached

    def wait(self, event: Event) -> None:
        assert isinstance(event, RecordingEvent)
        self.device.must_be_current()
        assert event.reached is not None, "nothing recorded the event"
        self.device.log.append("hold up")
        if self.device.forgets("stream"):
            return
        reached = event.reached
        with self.device.lock:
            self.clock = joined(self.clock, event.clock)

        def hold_up() -> list[Access]:
            reached()
            return []

        self.add("hold up", hold_up)

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
        limit: Bytes that can be allocated.
        forgotten: Which wait for an event is left out: by whom, ``stream`` or ``host``, and which of theirs, counted
            from 0. ``waits`` counts them.
        delay: Seconds by which the host notices later that an event has been reached.
        launched: How often each kernel has run.
    """

    name = "Recorded GPU"
    compute_capability = "8.9"

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.log: list[str] = []
        self.captures = True
        self.limit = 1 << 40
        self.forgotten: tuple[str, int] | None = None
        self.waits = {"stream": 0, "host": 0}
        self.delay = 0.0
        self.launched: dict[str, int] = {}
        self.streams: list[RecordingStream] = []
        self.host_clock: Clock = {}
        self.lock = threading.RLock()
        self._done: list[Work] = []
        self._ticks = itertools.count(1)
        self._memory: list[RecordingMemory] = []
        self._pinned: list[NDArray[Any]] = []
        self._thread = threading.local()

    def must_be_current(self) -> None:
        assert getattr(self._thread, "depth", 0) > 0, "the device is not current in this thread"

    def memory_at(self, address: int) -> RecordingMemory:
        return next(memory for memory in self._memory if memory.address == address)

    def is_pinned(self, array: NDArray[Any]) -> bool:
        return any(np.shares_memory(array, pinned) for pinned in self._pinned)

    def must_own(self, access: Access) -> None:
        """Refuse what would be a fault on a GPU, and end the process here."""
        assert any(
            memory.address <= access.begin and access.end <= memory.address + memory.nbytes for memory in self._memory
        ), "a kernel touches memory that is not the device's"

    def stream_of(self, handle: int) -> RecordingStream:
        return next(stream for stream in self.streams if stream.handle == handle)

    def tick(self) -> float:
        return next(self._ticks) / 1000

    def forgets(self, who: str) -> bool:
        """Count a wait, and tell whether it is the one that is left out."""
        with self.lock:
            self.waits[who] += 1
            return (who, self.waits[who] - 1) == self.forgotten

    def reach(self, event: RecordingEvent) -> None:
        """Make the host wait for an event."""
        if self.forgets("host"):
            return
        assert event.reached is not None
        time.sleep(self.delay)
        with self.lock:
            event.reached()
            self.host_clock = joined(self.host_clock, event.clock)

    def run(self, work: Work) -> None:
        work.accesses = list(work.run())
        self._done.append(work)

    def host_touches(self, array: NDArray[Any], *, write: bool) -> None:
        """Tell that the host reads or writes an array now."""
        with self.lock:
            self.host_clock[0] = self.host_clock.get(0, 0) + 1
            access = Access(array.ctypes.data, array.ctypes.data + array.nbytes, write)
            self._done.append(Work("the host", list, 0, self.host_clock[0], dict(self.host_clock), accesses=[access]))

    def races(self) -> list[str]:
        """Run everything that is left, and return what could have run in the wrong order."""
        with self.lock:
            for stream in self.streams:
                while stream.waiting:
                    self.run(stream.waiting.pop(0))
        found = []
        for first, second in itertools.combinations(self._done, 2):
            if first.stream == second.stream or first.is_before(second) or second.is_before(first):
                continue
            if any(_clash(one, other) for one in first.accesses for other in second.accesses):
                found.append(f"{first.what} and {second.what}")
        return found

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

    def event(self, *, timed: bool = False) -> RecordingEvent:
        self.must_be_current()
        return RecordingEvent(self, 0x900, timed=timed)

    def kernel(self, source: str, name: str) -> RecordingKernel:
        self.must_be_current()
        return RecordingKernel(source, name)

    def allocate(self, nbytes: int) -> RecordingMemory:
        self.must_be_current()
        assert nbytes > 0
        if nbytes + sum(memory.nbytes for memory in self._memory) > self.limit:
            raise OutOfDeviceMemory(f"cannot allocate {nbytes} bytes", hint="try less")
        self.log.append(f"allocate {nbytes}")
        self._memory.append(RecordingMemory(nbytes))
        return self._memory[-1]

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        self.must_be_current()
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = RecordingMemory(size)
        memory.data[:] = 0
        self._pinned.append(memory.data.view(dtype).reshape(tuple(shape)))
        self.log.append(f"pinned {size}")
        return self._pinned[-1]


def reads(address: int, nbytes: int) -> Access:
    return Access(address, address + nbytes, writes=False)


def writes(address: int, nbytes: int) -> Access:
    return Access(address, address + nbytes, writes=True)


def _clash(one: Access, other: Access) -> bool:
    return (one.writes or other.writes) and one.begin < other.end and other.begin < one.end


def _preprocess_accesses(device: RecordingDevice, name: str, grid: tuple[int, int], arguments: bytes) -> list[Access]:
    """What the kernel of preprocess.cu reads and writes: what its argument points to, and what that points to."""
    given = np.frombuffer(arguments, PREPROCESS)[0]
    images, word = grid[1], 4 if "32" in name else 2
    described = reads(int(given["sources"]), images * SOURCE.itemsize)
    sources = _bytes_of(device, described).view(SOURCE)
    accesses = [
        described,
        reads(int(given["values"]), 3 * 256 * word),
        writes(int(given["output"]), images * 3 * int(given["height"]) * int(given["width"]) * word),
    ]
    for source in sources:
        reached = []
        for axis in ("y", "x"):
            length, table = int(source[axis]["length"]), int(given["tables"]) + 4 * int(source[axis]["table"])
            if length:
                bounds = _bytes_of(device, reads(table, 8 * length)).view(np.int32).reshape(2, length)
                reached.append(int((bounds[0] + bounds[1]).max()))
                accesses.append(reads(table, 4 * length * (2 + int(bounds[1].max()))))
        if len(reached) > 1:
            accesses.append(reads(int(source["pixels"]), (reached[0] - 1) * int(source["pitch"]) + 3 * reached[1]))
    return accesses


def _top_k_accesses(_device: RecordingDevice, name: str, grid: tuple[int, int], arguments: bytes) -> list[Access]:
    given = np.frombuffer(arguments, TOP_K)[0]
    word = 4 if "32" in name else 2
    return [
        reads(int(given["logits"]), grid[0] * int(given["classes"]) * word),
        writes(int(given["output"]), grid[0] * (1 + 2 * int(given["k"])) * 4),
    ]


def _bytes_of(device: RecordingDevice, access: Access) -> NDArray[np.uint8]:
    device.must_own(access)
    found: NDArray[np.uint8] = np.ctypeslib.as_array(
        (ctypes.c_uint8 * (access.end - access.begin)).from_address(access.begin)
    )
    return found
