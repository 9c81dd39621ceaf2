"""The device on PyCUDA and cuda-bindings, both replaced by fakes with their calls and errors."""

from __future__ import annotations

import atexit
import ctypes
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from trt_vit.cuda import device as devices
from trt_vit.cuda import pycuda_device
from trt_vit.cuda.pycuda_device import PyCudaDevice, _PyCudaKernel
from trt_vit.errors import EnvironmentFault, OutOfDeviceMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

STREAM, EVENT, GRAPH, EXECUTABLE, ADDRESS = 0x77, 0x88, 0x99, 0xAA, 0x10000
OUT_OF_MEMORY, UNSUPPORTED, LAUNCH_FAILED = 2, 901, 719
REASONS = {OUT_OF_MEMORY: b"out of memory", LAUNCH_FAILED: b"unspecified launch failure"}


class CudaError(Exception):
    pass


class CudaMemoryError(CudaError):
    pass


class Drivers:
    """``pycuda.driver`` and ``cuda.bindings.driver``, recording. ``statuses`` makes a function of the latter fail."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.statuses: dict[str, int] = {}
        self.memory_is_full = False
        self.copies_fail = False
        context = SimpleNamespace(
            push=lambda: self.log.append("push"), pop=lambda: self.log.append("pop"), detach=lambda: None
        )
        gpu = SimpleNamespace(
            name=lambda: "A GPU", compute_capability=lambda: (8, 9), retain_primary_context=lambda: context
        )
        self.context = context
        self._gpu = gpu
        self.opened: list[int] = []
        self.cuda = ModuleType("pycuda.driver")
        self.cuda.__dict__.update(
            Error=CudaError,
            MemoryError=CudaMemoryError,
            init=lambda: self.log.append("init"),
            Device=self._device,
            module_from_buffer=self._module,
            Stream=lambda flags: SimpleNamespace(handle=STREAM, flags=flags),
            mem_get_info=lambda: (1 << 20, 3 << 20),
            mem_alloc=self._allocate,
            pagelocked_empty=self._pinned,
            memcpy_htod_async=lambda address, array, _stream: self._copy(f"to device {address:#x} {array.nbytes}"),
            memcpy_dtoh_async=lambda array, address, _stream: self._copy(f"to host {address:#x} {array.nbytes}"),
        )
        self.bindings = ModuleType("cuda.bindings.driver")
        self.bindings.__dict__.update(
            CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1),
            CUevent_flags=SimpleNamespace(CU_EVENT_BLOCKING_SYNC=1, CU_EVENT_DISABLE_TIMING=2),
            cuGetErrorString=lambda status: (0, REASONS.get(status)),
        )
        for name, values in {
            "cuEventCreate": (EVENT,),
            "cuEventDestroy": (),
            "cuEventRecord": (),
            "cuEventSynchronize": (),
            "cuEventElapsedTime": (1500.0,),
            "cuStreamWaitEvent": (),
            "cuStreamBeginCapture": (),
            "cuStreamEndCapture": (GRAPH,),
            "cuGraphInstantiate": (EXECUTABLE,),
            "cuGraphLaunch": (),
            "cuGraphDestroy": (),
            "cuGraphExecDestroy": (),
        }.items():
            setattr(self.bindings, name, self._function(name, values))

    def open(self, index: int = 0) -> PyCudaDevice:
        opened = PyCudaDevice(self.cuda, self.bindings, index)
        self.log.clear()
        return opened

    def _function(self, name: str, values: tuple[float, ...]) -> Any:
        def call(*arguments: int) -> tuple[float, ...]:
            self.log.append(" ".join([name, *map(hex, arguments)]))
            status = self.statuses.get(name, 0)
            return (status, *(0 if status else value for value in values))

        return call

    def _allocate(self, nbytes: int) -> int:
        if self.memory_is_full:
            raise CudaMemoryError("cuMemAlloc failed: out of memory")
        return ADDRESS

    def _device(self, number: int) -> Any:
        self.opened.append(number)
        return self._gpu

    def _module(self, image: bytes) -> Any:
        self.log.append(f"load {image.decode()}")
        return SimpleNamespace(get_function=self._kernel)

    def _kernel(self, name: str) -> Any:
        def launch(grid: tuple[int, int], block: tuple[int, int, int], stream: Any, *arguments: bytes) -> None:
            if self.copies_fail:
                raise CudaError("cuLaunchKernel failed: invalid argument")
            self.log.append(f"{name} {grid} {block} {stream.handle:#x} {arguments}")

        prepare = lambda formats: self.log.append(f"prepare {formats}")  # noqa: E731
        return SimpleNamespace(prepare=prepare, prepared_async_call=launch)

    def _pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        if self.memory_is_full:
            raise CudaMemoryError("cuMemHostAlloc failed: out of memory")
        return np.full(shape, 7, dtype=dtype)

    def _copy(self, what: str) -> None:
        if self.copies_fail:
            raise CudaError("cuMemcpyHtoDAsync failed: invalid argument")
        self.log.append(what)


@pytest.fixture
def drivers() -> Drivers:
    return Drivers()


def test_it_is_current_within_a_block_and_no_longer_even_if_that_fails(drivers: Drivers) -> None:
    opened = drivers.open()
    with pytest.raises(ZeroDivisionError), opened.current():
        assert drivers.log == ["push"]
        _ = 1 / 0
    assert drivers.log == ["push", "pop"]


def test_its_facts(drivers: Drivers) -> None:
    opened = drivers.open()
    assert (opened.name, opened.compute_capability, opened.memory()) == ("A GPU", "8.9", (1 << 20, 3 << 20))


def test_copies_go_where_they_should(drivers: Drivers) -> None:
    opened = drivers.open()
    stream, memory = opened.stream(), opened.allocate(64)
    assert (stream.handle, memory.address, memory.nbytes) == (STREAM, ADDRESS, 64)
    array = opened.pinned((2, 3), "float32")
    assert array.tolist() == [[0, 0, 0], [0, 0, 0]]
    stream.copy_to_device(memory, array)
    stream.copy_to_host(array[:1], memory)
    assert drivers.log == ["to device 0x10000 24", "to host 0x10000 12"]


def test_an_event_waits_without_spinning(drivers: Drivers) -> None:
    opened = drivers.open()
    event = opened.event()
    opened.stream().record(event)
    event.synchronize()
    assert event.handle == EVENT
    assert drivers.log == ["cuEventCreate 0x3", "cuEventRecord 0x88 0x77", "cuEventSynchronize 0x88"]
    del event
    assert drivers.log[-1] == "cuEventDestroy 0x88"


def test_events_that_are_timed_know_how_far_apart_they_are(drivers: Drivers) -> None:
    opened = drivers.open()
    start, end = opened.event(timed=True), opened.event(timed=True)
    assert end.seconds_since(start) == 1.5
    assert drivers.log == ["cuEventCreate 0x1", "cuEventCreate 0x1", "cuEventElapsedTime 0x88 0x88"]


def test_a_stream_waits_for_another_s_event(drivers: Drivers) -> None:
    opened = drivers.open()
    event = opened.event()
    opened.stream().wait(event)
    assert drivers.log[-1] == "cuStreamWaitEvent 0x77 0x88 0x0"


def test_kernels_are_loaded_once_for_each_source_and_launched_with_one_struct(
    drivers: Drivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pycuda_device, "compiled", lambda source, capability: f"{source} for {capability}".encode())
    opened = drivers.open()
    first, _ = opened.kernel("a.cu", "one"), opened.kernel("b.cu", "two")
    second = opened.kernel("a.cu", "three")
    assert drivers.log == ["load a.cu for 8.9", "load b.cu for 8.9"]
    assert (first.name, second.name) == ("one", "three")
    drivers.log.clear()
    opened.stream().launch(second, (4, 2), b"12345678")
    assert drivers.log == ["prepare ['8s']", "three (4, 2) (256, 1, 1) 0x77 (b'12345678',)"]


def test_threads_that_want_a_kernel_at_once_load_its_source_once(
    drivers: Drivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = threading.Barrier(4)

    def compiled(source: str, _capability: str) -> bytes:
        time.sleep(0.05)
        return source.encode()

    def load(name: str) -> str:
        begin.wait()
        return opened.kernel("a.cu", name).name

    monkeypatch.setattr(pycuda_device, "compiled", compiled)
    opened = drivers.open()
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(load, "abcd")) == ["a", "b", "c", "d"]
    assert drivers.log == ["load a.cu"]


def test_a_source_that_could_not_be_compiled_is_tried_again(drivers: Drivers, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str, _capability: str) -> bytes:
        raise EnvironmentFault(f"nvcc cannot compile {source}", hint="none")

    monkeypatch.setattr(pycuda_device, "compiled", fail)
    opened = drivers.open()
    with pytest.raises(EnvironmentFault, match=r"nvcc cannot compile a\.cu"):
        opened.kernel("a.cu", "one")
    monkeypatch.setattr(pycuda_device, "compiled", lambda source, _capability: source.encode())
    assert opened.kernel("a.cu", "one").name == "one"


def test_which_gpu(drivers: Drivers) -> None:
    assert drivers.open(2).index == 2
    assert drivers.opened == [2]


@pytest.fixture
def at_exit(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What is to be called at the end of the process."""
    registered: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    return registered


def test_at_the_end_of_the_process_the_gpu_is_let_go(drivers: Drivers, at_exit: list[Callable[[], None]]) -> None:
    drivers.context.detach = lambda: drivers.log.append("detach")
    drivers.open()
    (detach,) = at_exit
    detach()
    assert drivers.log == ["detach"]


def test_at_the_end_of_the_process_a_gpu_that_failed_is_left_alone(
    drivers: Drivers, at_exit: list[Callable[[], None]]
) -> None:
    def fail() -> None:
        drivers.log.append("detach")
        raise CudaError("cuDevicePrimaryCtxRelease failed: unspecified launch failure")

    drivers.context.detach = fail
    drivers.open()
    (detach,) = at_exit
    detach()
    assert drivers.log == ["detach"]


def test_at_the_end_of_the_process_other_mistakes_are_not_hidden(
    drivers: Drivers, at_exit: list[Callable[[], None]]
) -> None:
    drivers.context.detach = lambda: drivers.log.append(str(1 / 0))
    drivers.open()
    with pytest.raises(ZeroDivisionError):
        at_exit[0]()


def test_captured_work_is_launched_as_a_whole(drivers: Drivers) -> None:
    stream = drivers.open().stream()
    graph = stream.capture(lambda: drivers.log.append("work"))
    assert graph is not None
    graph.launch()
    del graph
    assert drivers.log == [
        "cuStreamBeginCapture 0x77 0x1",
        "work",
        "cuStreamEndCapture 0x77",
        "cuGraphInstantiate 0x99 0x0",
        "cuGraphDestroy 0x99",
        "cuGraphLaunch 0xaa 0x77",
        "cuGraphExecDestroy 0xaa",
    ]


def _refuse() -> None:
    raise EnvironmentFault("not while capturing", hint="none")


def test_a_capture_that_the_work_refuses_is_ended_and_dropped(drivers: Drivers) -> None:
    assert drivers.open().stream().capture(_refuse) is None
    assert drivers.log == ["cuStreamBeginCapture 0x77 0x1", "cuStreamEndCapture 0x77", "cuGraphDestroy 0x99"]


def test_a_capture_that_cuda_refuses_gives_no_graph(drivers: Drivers) -> None:
    drivers.statuses["cuStreamEndCapture"] = UNSUPPORTED
    assert drivers.open().stream().capture(lambda: None) is None
    assert drivers.log == ["cuStreamBeginCapture 0x77 0x1", "cuStreamEndCapture 0x77"]


def test_a_capture_is_ended_whatever_happens(drivers: Drivers) -> None:
    with pytest.raises(ZeroDivisionError):
        drivers.open().stream().capture(lambda: drivers.log.append(str(1 / 0)))
    assert drivers.log[-1] == "cuStreamEndCapture 0x77"


def test_full_memory_says_how_much_there_is(drivers: Drivers) -> None:
    opened = drivers.open()
    drivers.memory_is_full = True
    with pytest.raises(OutOfDeviceMemory) as caught:
        opened.allocate(5 << 20)
    assert caught.value.message == (
        "cannot allocate 5 MiB on A GPU: 1 of 3 MiB are free: cuMemAlloc failed: out of memory"
    )
    assert "--batch-size" in caught.value.hint
    with pytest.raises(OutOfDeviceMemory, match="cannot allocate 4 MiB of pinned host memory: cuMemHostAlloc failed"):
        opened.pinned((1 << 10, 1 << 10), np.float32)


BROKEN = "failed: unspecified launch failure"


def break_down(*_arguments: Any) -> Any:
    """What every call of PyCUDA does once a kernel has failed."""
    raise CudaError(BROKEN)


def test_memory_that_a_failed_gpu_does_not_give_is_not_too_little_memory(drivers: Drivers) -> None:
    opened = drivers.open()
    drivers.cuda.__dict__["mem_alloc"] = break_down
    with pytest.raises(EnvironmentFault, match=BROKEN) as caught:
        opened.allocate(4)
    assert type(caught.value) is EnvironmentFault


@pytest.mark.parametrize(
    ("function", "use"),
    [
        ("mem_alloc", lambda opened: opened.allocate(4)),
        ("Stream", lambda opened: opened.stream()),
        ("module_from_buffer", lambda opened: opened.kernel("a.cu", "one")),
        ("mem_get_info", lambda opened: opened.memory()),
    ],
)
def test_a_gpu_that_has_failed_is_a_fault_of_the_environment_whatever_is_asked_of_it(
    drivers: Drivers, monkeypatch: pytest.MonkeyPatch, function: str, use: Callable[[PyCudaDevice], Any]
) -> None:
    monkeypatch.setattr(pycuda_device, "compiled", lambda source, _capability: source.encode())
    opened = drivers.open()
    drivers.cuda.__dict__.update({"mem_get_info": break_down, function: break_down})
    with pytest.raises(EnvironmentFault, match=BROKEN):
        use(opened)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (OUT_OF_MEMORY, "out of memory"),
        (LAUNCH_FAILED, "unspecified launch failure"),
        (UNSUPPORTED, "901"),  # what CUDA has no words for
    ],
)
@pytest.mark.parametrize(
    ("function", "use"),
    [
        ("cuEventCreate", lambda opened, _stream, _event: opened.event()),
        ("cuEventRecord", lambda _opened, stream, event: stream.record(event)),
        ("cuEventSynchronize", lambda _opened, _stream, event: event.synchronize()),
        ("cuEventElapsedTime", lambda _opened, _stream, event: event.seconds_since(event)),
        ("cuStreamWaitEvent", lambda _opened, stream, event: stream.wait(event)),
        ("cuStreamBeginCapture", lambda _opened, stream, _event: stream.capture(lambda: None)),
        ("cuGraphInstantiate", lambda _opened, stream, _event: stream.capture(lambda: None)),
        ("cuGraphLaunch", lambda _opened, stream, _event: stream.capture(lambda: None).launch()),
    ],
)
def test_too_little_memory_is_told_from_other_failures_of_cuda(
    drivers: Drivers, function: str, use: Callable[..., Any], status: int, reason: str
) -> None:
    opened = drivers.open()
    stream, event = opened.stream(), opened.event()
    drivers.statuses[function] = status
    with pytest.raises(EnvironmentFault) as caught:
        use(opened, stream, event)
    assert type(caught.value) is (OutOfDeviceMemory if status == OUT_OF_MEMORY else EnvironmentFault)
    assert caught.value.message == f"CUDA failed: {reason}"
    assert ("--batch-size" in caught.value.hint) == (status == OUT_OF_MEMORY)


def test_a_graph_that_cannot_be_made_leaves_nothing_behind(drivers: Drivers) -> None:
    stream = drivers.open().stream()
    drivers.statuses["cuGraphInstantiate"] = OUT_OF_MEMORY
    with pytest.raises(OutOfDeviceMemory):
        stream.capture(lambda: None)
    assert drivers.log[-2:] == ["cuGraphInstantiate 0x99 0x0", "cuGraphDestroy 0x99"]


def test_failures_of_cuda_are_faults_of_the_environment(drivers: Drivers) -> None:
    opened = drivers.open()
    stream, event, memory = opened.stream(), opened.event(), opened.allocate(4)
    drivers.copies_fail = True
    failure = "CUDA failed: cuMemcpyHtoDAsync failed: invalid argument"
    with pytest.raises(EnvironmentFault, match=failure):
        stream.copy_to_device(memory, np.zeros(1))
    with pytest.raises(EnvironmentFault, match=failure):
        stream.copy_to_host(np.zeros(1), memory)
    with pytest.raises(EnvironmentFault, match="CUDA failed: cuLaunchKernel failed: invalid argument"):
        stream.launch(_PyCudaKernel(drivers._kernel("one"), "one"), (1, 1), b"")
    drivers.statuses["cuStreamWaitEvent"] = OUT_OF_MEMORY
    with pytest.raises(OutOfDeviceMemory, match="CUDA failed: out of memory"):
        stream.wait(event)
    drivers.statuses["cuEventSynchronize"] = LAUNCH_FAILED
    with pytest.raises(EnvironmentFault, match="CUDA failed: unspecified launch failure") as caught:
        event.synchronize()
    assert caught.value.exit_code == 4
    drivers.statuses["cuEventRecord"] = UNSUPPORTED
    with pytest.raises(EnvironmentFault, match="CUDA failed: 901"):
        stream.record(event)


class TestOpen:
    @pytest.fixture(autouse=True)
    def fresh(self) -> Iterator[None]:
        devices._open.cache_clear()
        yield
        devices._open.cache_clear()

    @pytest.fixture
    def installed(self, monkeypatch: pytest.MonkeyPatch, drivers: Drivers) -> dict[str, Any]:
        """What importing a module gives: change an entry to an exception, and it is raised."""
        modules: dict[str, Any] = {
            "libcuda.so.1": None,
            "pycuda.driver": drivers.cuda,
            "cuda.bindings.driver": drivers.bindings,
        }

        def give(name: str, **_options: Any) -> Any:
            if isinstance(modules[name], Exception):
                raise modules[name]
            return modules[name]

        monkeypatch.setattr(devices, "import_module", give)
        monkeypatch.setattr(ctypes, "CDLL", give)
        return modules

    def test_once_for_the_process(self, installed: dict[str, Any], drivers: Drivers) -> None:
        assert devices.open_device().name == "A GPU"
        assert devices.open_device() is devices.open_device()
        assert drivers.log == ["init"]

    def test_each_gpu_once(self, installed: dict[str, Any], drivers: Drivers) -> None:
        assert [devices.open_device(index).index for index in (1, 0, 1)] == [1, 0, 1]
        assert drivers.opened == [1, 0]
        assert devices.open_device(1) is not devices.open_device(0)

    def test_the_first_gpu_is_the_same_however_it_is_asked_for(
        self, installed: dict[str, Any], drivers: Drivers
    ) -> None:
        assert devices.open_device() is devices.open_device(0)
        assert drivers.opened == [0]

    def test_a_gpu_that_there_is_not(self, installed: dict[str, Any], drivers: Drivers) -> None:
        def refuse(number: int) -> None:
            raise CudaError("cuDeviceGet failed: invalid device ordinal")

        drivers.cuda.__dict__["Device"] = refuse
        with pytest.raises(EnvironmentFault, match="no GPU can be used: cuDeviceGet failed: invalid device ordinal"):
            devices.open_device(7)

    @pytest.mark.parametrize(
        ("module", "error", "message", "hint"),
        [
            ("libcuda.so.1", OSError("libcuda.so.1:\n no file"), "not load: libcuda.so.1: no file", "nvidia-smi"),
            ("pycuda.driver", ModuleNotFoundError(name="pycuda"), "needs the package pycuda", "trt-vit[cuda]"),
            ("cuda.bindings.driver", ModuleNotFoundError(name="cuda"), "needs the package cuda", "trt-vit[cuda]"),
            ("pycuda.driver", ImportError("undefined symbol: cuInit"), "does not load: undefined symbol", "nvidia-smi"),
        ],
    )  # fmt: skip
    def test_what_is_missing(
        self, installed: dict[str, Any], module: str, error: Exception, message: str, hint: str
    ) -> None:
        installed[module] = error
        with pytest.raises(EnvironmentFault, match=message) as caught:
            devices.open_device()
        assert hint in caught.value.hint
        assert caught.value.exit_code == 4

    def test_no_gpu(self, installed: dict[str, Any], drivers: Drivers) -> None:
        def fail() -> None:
            raise CudaError("cuInit failed: no CUDA-capable device is detected")

        drivers.cuda.__dict__["init"] = fail
        with pytest.raises(EnvironmentFault, match="no GPU can be used: cuInit failed: no CUDA-capable") as caught:
            devices.open_device()
        assert "--runtime openvino" in caught.value.hint
