"""ONNX Runtime's lanes for a GPU, whose CUDA provider the CPU's stands in for: on memory of a recording device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.recording_device import Access, RecordingDevice, RecordingStream
from trt_vit.cuda import driver
from trt_vit.cuda.driver import Gpu
from trt_vit.errors import EnvironmentFault, OutOfDeviceMemory
from trt_vit.runtime import onnxruntime as plain
from trt_vit.runtime import onnxruntime_cuda, registry
from trt_vit.runtime.onnxruntime import OnnxRuntimeRuntime
from trt_vit.runtime.onnxruntime_cuda import OnnxRuntimeCudaRuntime
from trt_vit.runtime.protocol import RuntimeOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from trt_vit.engine.bundle import Bundle


class Session:
    """A session on the CPU that takes itself for one on the GPU: it runs when its stream gets there."""

    def __init__(self, bench: Bench, session: Any, stream: RecordingStream) -> None:
        self._bench = bench
        self._session = session
        self._stream = stream

    def get_inputs(self) -> Any:
        return self._session.get_inputs()

    def io_binding(self) -> Binding:
        return Binding(self._bench, self._session.io_binding())

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        if self._bench.failure is not None:
            raise self._bench.failure

        def run() -> list[Access]:
            self._session.run_with_iobinding(binding.real)
            return []

        self._stream.enqueue("run", run)


class Binding:
    def __init__(self, bench: Bench, real: Any) -> None:
        self._bench = bench
        self.real = real

    def bind_input(self, name: str, place: str, gpu: int, *rest: Any) -> None:
        self._bench.bound.append((name, place, gpu, rest[1]))
        self.real.bind_input(name, "cpu", 0, *rest)

    def bind_output(self, name: str, place: str, gpu: int, *rest: Any) -> None:
        self._bench.bound.append((name, place, gpu, rest[1]))
        self.real.bind_output(name, "cpu", 0, *rest)


class Bench:
    """What the runtime asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = RecordingDevice(2)
        self.options: list[Mapping[str, str]] = []
        self.bound: list[tuple[str, str, int, list[int]]] = []
        self.failure: Exception | None = None
        monkeypatch.setattr(onnxruntime_cuda, "open_device", lambda index: {2: self.device}[index])
        monkeypatch.setattr(onnxruntime_cuda, "open_session", self.open_session)

    def open_session(self, model: bytes, *, threads: int, gpu: Mapping[str, str]) -> Session:
        self.options.append(gpu)
        stream = self.device.stream_of(int(gpu["user_compute_stream"]))
        return Session(self, plain.open_session(model, threads=threads), stream)

    def load(self, bundle: Bundle, batch_size: int = 4, lanes: int | None = None) -> OnnxRuntimeCudaRuntime:
        options = RuntimeOptions(batch_size=batch_size, lanes=lanes, gpu=2)
        return OnnxRuntimeCudaRuntime(bundle.engine_files(), options)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def pixels(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 3, 32, 32)).astype(np.float32)


def test_the_logits_are_those_of_the_cpu(bench: Bench, onnxruntime_bundle: Bundle) -> None:
    reference = OnnxRuntimeRuntime(onnxruntime_bundle.engine_files(), RuntimeOptions(batch_size=4, threads=1)).lanes[0]
    runtime = bench.load(onnxruntime_bundle)
    assert (runtime.batch_size, runtime.inference_precision, len(runtime.lanes)) == (4, "fp32", 2)
    for lane in runtime.lanes:
        for seed, count in enumerate([4, 1, 3, 4, 2]):
            np.testing.assert_allclose(
                lane.infer(pixels(count, seed)), reference.infer(pixels(count, seed)), rtol=1e-5, atol=1e-6
            )


def test_each_lane_has_a_session_on_its_own_stream_of_its_gpu(bench: Bench, onnxruntime_bundle: Bundle) -> None:
    runtime = bench.load(onnxruntime_bundle, lanes=3)
    streams = [str(lane.stream.handle) for lane in runtime.gpu_lanes]
    assert bench.options == [{"device_id": "2", "user_compute_stream": stream} for stream in streams]
    assert len(set(streams)) == 3


def test_it_is_bound_again_only_for_another_batch_size(bench: Bench, onnxruntime_bundle: Bundle) -> None:
    lane = bench.load(onnxruntime_bundle, lanes=1).lanes[0]
    for count in (4, 4, 2, 2, 4):
        lane.infer(pixels(count))
    inputs = [entry for entry in bench.bound if entry[0] == "pixel_values"]
    assert inputs == [("pixel_values", "cuda", 2, [count, 3, 32, 32]) for count in (4, 2, 4)]
    assert [entry[3] for entry in bench.bound if entry not in inputs] == [[4, 7], [2, 7], [4, 7]]


def test_a_run_is_only_enqueued(bench: Bench, onnxruntime_bundle: Bundle) -> None:
    lane = bench.load(onnxruntime_bundle, lanes=1).gpu_lanes[0]
    bench.device.log.clear()
    with bench.device.current():
        lane.enqueue(3)
    assert bench.device.log == ["run"]
    assert (lane.images.nbytes, lane.logits.nbytes, lane.smallest) == (4 * 4 * 3 * 32 * 32, 4 * 4 * 7, 1)


def failure_of_the_library(message: str) -> Exception:
    kind = type("RuntimeException", (Exception,), {"__module__": "onnxruntime.capi.onnxruntime_pybind11_state"})
    made: Exception = kind(message)
    return made


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("BFCArena: Failed to allocate memory for requested buffer of size 1", OutOfDeviceMemory),
        ("CUDA failure 2: out of memory", OutOfDeviceMemory),
        ("CUDA failure 719: unspecified launch failure", EnvironmentFault),
    ],
)
def test_failures(bench: Bench, onnxruntime_bundle: Bundle, message: str, kind: type[EnvironmentFault]) -> None:
    lane = bench.load(onnxruntime_bundle).lanes[0]
    bench.failure = failure_of_the_library(message)
    with pytest.raises(EnvironmentFault, match=f"ONNX Runtime failed on a batch of 3: {message}") as caught:
        lane.infer(pixels(3))
    assert type(caught.value) is kind


def test_its_facts(bench: Bench, onnxruntime_bundle: Bundle) -> None:
    assert bench.load(onnxruntime_bundle).statistics().layers > 5


@pytest.mark.parametrize("missing", [None, "GPU", "provider", "pycuda"])
def test_it_is_chosen_where_all_that_it_needs_is_there(
    onnxruntime_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, missing: str | None
) -> None:
    gpus = [] if missing == "GPU" else [Gpu("NVIDIA L4", "8.9", 1)]
    names = ["CPUExecutionProvider"] if missing == "provider" else [plain.CUDA, "CPUExecutionProvider"]
    monkeypatch.setattr(driver, "gpus", lambda: gpus)
    monkeypatch.setattr(plain, "providers", lambda: [(name, {}) for name in names])
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == missing else object())
    monkeypatch.setattr(plain, "OnnxRuntimeRuntime", lambda *_: "on the CPU")
    monkeypatch.setattr(onnxruntime_cuda, "OnnxRuntimeCudaRuntime", lambda *_: "on the GPU")
    opened: Any = registry.open_runtime("onnxruntime", onnxruntime_bundle.engine_files(), RuntimeOptions(batch_size=4))
    assert opened == ("on the CPU" if missing else "on the GPU")
