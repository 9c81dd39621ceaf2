"""ONNX Runtime's lanes for a GPU, whose CUDA provider the CPU's stands in for: on memory of a recording device."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.support.recording_device import Access, RecordingDevice, RecordingStream, reads, writes
from trt_vit.cuda import driver
from trt_vit.cuda.driver import Gpu
from trt_vit.engine.manifest import BatchProfile
from trt_vit.errors import EnvironmentFault, OutOfDeviceMemory
from trt_vit.runtime import onnxruntime as plain
from trt_vit.runtime import onnxruntime_cuda, registry
from trt_vit.runtime.onnxruntime import ENGINE, OnnxRuntimeLane, OnnxRuntimeRuntime
from trt_vit.runtime.onnxruntime_cuda import OnnxRuntimeCudaRuntime
from trt_vit.runtime.protocol import EngineFiles, RuntimeOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from trt_vit.engine.bundle import Bundle


class Session:
    """A session on the CPU that takes itself for one on the GPU: it runs when its stream gets there.

    As on a GPU, what a run reads and writes is what was bound when it was enqueued.
    """

    def __init__(self, bench: Bench, session: Any, stream: RecordingStream) -> None:
        self._bench = bench
        self._session = session
        self._stream = stream

    def get_inputs(self) -> Any:
        return self._session.get_inputs()

    def get_providers(self) -> list[str]:
        return [plain.CUDA, *self._session.get_providers()]

    def io_binding(self) -> Binding:
        return Binding(self._bench)

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        if self._bench.failure is not None:
            raise self._bench.failure
        real = self._session.io_binding()
        (name, *given), (output_name, *taken) = binding.input, binding.output
        real.bind_input(name, "cpu", 0, *given)
        real.bind_output(output_name, "cpu", 0, *taken)

        def run() -> list[Access]:
            self._session.run_with_iobinding(real)
            (_, shape, source), (_, rows, target) = given, taken
            return [reads(source, 4 * math.prod(shape)), writes(target, 4 * math.prod(rows))]

        if self._bench.at_once:
            run()
        else:
            self._stream.enqueue(f"run {given[1][0]}", run)


class Binding:
    """What was bound last: name, type, shape and address."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.input: tuple[Any, ...] = ()
        self.output: tuple[Any, ...] = ()

    def bind_input(self, name: str, place: str, gpu: int, *rest: Any) -> None:
        self._bench.bound.append((name, place, gpu, rest[1]))
        self.input = (name, *rest)

    def bind_output(self, name: str, place: str, gpu: int, *rest: Any) -> None:
        self._bench.bound.append((name, place, gpu, rest[1]))
        self.output = (name, *rest)


class Bench:
    """What the runtime asked for.

    Attributes:
        failure: What a run raises.
        at_once: Whether a run runs as it is enqueued, so that what the library raises comes from there.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = RecordingDevice(2)
        self.options: list[Mapping[str, str]] = []
        self.bound: list[tuple[str, str, int, list[int]]] = []
        self.failure: Exception | None = None
        self.at_once = False
        monkeypatch.setattr(onnxruntime_cuda, "open_device", lambda index: {2: self.device}[index])
        monkeypatch.setattr(onnxruntime_cuda, "open_session", self.open_session)

    def open_session(self, model: bytes, *, threads: int, gpu: Mapping[str, str]) -> Session:
        self.options.append(gpu)
        stream = self.device.stream_of(int(gpu["user_compute_stream"]))
        return Session(self, plain.open_session(model, threads=threads), stream)

    def load(self, bundle: Bundle, batch_size: int = 4, lanes: int | None = None) -> OnnxRuntimeCudaRuntime:
        return self.load_files(bundle.engine_files(), batch_size, lanes)

    def load_files(self, files: EngineFiles, batch_size: int = 4, lanes: int | None = None) -> OnnxRuntimeCudaRuntime:
        return OnnxRuntimeCudaRuntime(files, RuntimeOptions(batch_size=batch_size, lanes=lanes, gpu=2))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def pixels(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def reference(onnxruntime_bundle: Bundle) -> OnnxRuntimeLane:
    """The same engine on the CPU."""
    return OnnxRuntimeRuntime(onnxruntime_bundle.engine_files(), RuntimeOptions(batch_size=4, threads=1)).lanes[0]


def test_the_logits_are_those_of_the_cpu(bench: Bench, onnxruntime_bundle: Bundle, reference: OnnxRuntimeLane) -> None:
    runtime = bench.load(onnxruntime_bundle)
    assert (runtime.batch_size, runtime.inference_precision, len(runtime.lanes)) == (4, "fp32", 2)
    for lane in runtime.lanes:
        for seed, count in enumerate([4, 1, 3, 4, 2]):
            np.testing.assert_allclose(
                lane.infer(pixels(count, seed)), reference.infer(pixels(count, seed)), rtol=1e-5, atol=1e-6
            )
    assert bench.device.races() == []


def test_a_batch_is_copied_in_run_copied_out_and_waited_for(bench: Bench, onnxruntime_bundle: Bundle) -> None:
    lane = bench.load(onnxruntime_bundle, lanes=1).lanes[0]
    image, row = 4 * 3 * 32 * 32, 4 * 7
    for count, pinned in ((3, [f"pinned {4 * image}", f"pinned {4 * row}"]), (2, [])):
        bench.device.log.clear()
        lane.infer(pixels(count))
        there_and_back = [f"to device {count * image}", f"run {count}", f"to host {count * row}", "record", "wait"]
        assert bench.device.log == [*pinned, *there_and_back]


def test_runs_that_are_enqueued_one_after_the_other_each_see_their_own_images(
    bench: Bench, onnxruntime_bundle: Bundle, reference: OnnxRuntimeLane
) -> None:
    lane = bench.load(onnxruntime_bundle, lanes=1).gpu_lanes[0]
    device, batches = bench.device, [pixels(count, count) for count in (4, 2, 3)]
    answers = []
    with device.current():
        for batch in batches:
            source, answer = device.pinned(batch.shape, "float32"), device.pinned((len(batch), 7), "float32")
            source[:] = batch
            lane.stream.copy_to_device(lane.images, source)
            lane.enqueue(len(batch))
            lane.stream.copy_to_host(answer, lane.logits)
            answers.append(answer)
        assert not any(answer.any() for answer in answers)  # nothing was waited for, so nothing is there
        done = device.event()
        lane.stream.record(done)
        done.synchronize()
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_allclose(answer, reference.infer(batch), rtol=1e-5, atol=1e-6)
    assert device.races() == []


@pytest.fixture(scope="module")
def fixed_files(onnxruntime_bundle: Bundle) -> EngineFiles:
    """The same engine for batches of 3, and of 3 alone."""
    files = onnxruntime_bundle.engine_files()
    model = onnx.load_from_string(files.read(ENGINE))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    engine = model.SerializeToString()
    return replace(files, batch=BatchProfile(min=3, opt=3, max=3), read={ENGINE: engine}.__getitem__)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_fixed_batch_is_filled_up(
    bench: Bench, fixed_files: EngineFiles, reference: OnnxRuntimeLane, batch_size: int
) -> None:
    lane = bench.load_files(fixed_files, batch_size=batch_size, lanes=1).gpu_lanes[0]
    assert (lane.smallest, lane.images.nbytes, lane.logits.nbytes) == (3, 4 * 3 * 3 * 32 * 32, 4 * 3 * 7)
    for seed, count in enumerate([3, 1, 2, 3]):
        bench.device.log.clear()
        batch = pixels(count, seed)
        np.testing.assert_allclose(lane.infer(batch), reference.infer(batch), rtol=1e-5, atol=1e-6)
        assert "run 3" in bench.device.log
        assert f"to device {batch.nbytes}" in bench.device.log
    assert bench.bound == [("pixel_values", "cuda", 2, [3, 3, 32, 32]), ("logits", "cuda", 2, [3, 7])]


def test_each_lane_has_a_session_on_its_own_stream_of_its_gpu(bench: Bench, onnxruntime_bundle: Bundle) -> None:
    runtime = bench.load(onnxruntime_bundle, lanes=3)
    streams = [str(lane.stream.handle) for lane in runtime.gpu_lanes]
    assert bench.options == [{"device_id": "2", "user_compute_stream": stream} for stream in streams]
    assert len(set(streams)) == 3


def test_the_provider_gets_the_stream_the_gpu_and_no_tf32(
    bench: Bench, onnxruntime_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    cpu = onnxruntime.InferenceSession

    def open_on_the_gpu(model: bytes, options: Any, *, providers: Any) -> Any:
        opened.append(providers)
        stream = bench.device.stream_of(int(providers[0][1]["user_compute_stream"]))
        return Session(bench, cpu(model, options, providers=["CPUExecutionProvider"]), stream)

    monkeypatch.setattr(onnxruntime_cuda, "open_session", plain.open_session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["Other", "CPUExecutionProvider", plain.CUDA])
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_on_the_gpu)
    lane = bench.load(onnxruntime_bundle, lanes=1).gpu_lanes[0]
    options = {"use_tf32": "0", "device_id": "2", "user_compute_stream": str(lane.stream.handle)}
    assert opened == [[(plain.CUDA, options), ("CPUExecutionProvider", {})]]


def test_a_provider_that_does_not_start_is_a_fault_of_the_environment(
    bench: Bench, onnxruntime_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fall_back(model: bytes, *, threads: int, gpu: Mapping[str, str]) -> Any:
        """What the library does where the provider lacks a library of its own: it warns, and goes on without."""
        session = plain.open_session(model, threads=threads)
        assert plain.CUDA not in session.get_providers()
        return session

    monkeypatch.setattr(onnxruntime_cuda, "open_session", fall_back)
    with pytest.raises(EnvironmentFault):
        bench.load(onnxruntime_bundle, lanes=1).lanes[0].infer(pixels(1))


def test_too_little_memory_for_the_weights_is_no_fault_of_the_model(
    bench: Bench, onnxruntime_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_model: Any, providers: Any) -> None:
        raise failure_of_the_library(f"Exception during initialization: {NO_MEMORY}")

    monkeypatch.setattr(onnxruntime_cuda, "open_session", plain.open_session)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(OutOfDeviceMemory):
        bench.load(onnxruntime_bundle)


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
    assert bench.device.log == ["run 3"]
    assert bench.device.waits == {"stream": 0, "host": 0}
    assert (lane.images.nbytes, lane.logits.nbytes, lane.smallest) == (4 * 4 * 3 * 32 * 32, 4 * 4 * 7, 1)


NO_MEMORY = "BFCArena: Failed to allocate memory for requested buffer of size 1"


def failure_of_the_library(message: str) -> Exception:
    """What opening a session raises, and running it without a binding."""
    kind = type("RuntimeException", (Exception,), {"__module__": "onnxruntime.capi.onnxruntime_pybind11_state"})
    made: Exception = kind(message)
    return made


def failure_with_a_binding(message: str) -> Exception:
    """What running it with a binding raises."""
    return RuntimeError(f"Error in execution: {message}")


RAISED = [failure_of_the_library, failure_with_a_binding]


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (NO_MEMORY, OutOfDeviceMemory),
        ("CUDA failure 2: out of memory", OutOfDeviceMemory),
        ("CUDA failure 719: unspecified launch failure", EnvironmentFault),
    ],
)
def test_failures(
    bench: Bench,
    onnxruntime_bundle: Bundle,
    message: str,
    kind: type[EnvironmentFault],
    raised: Callable[[str], Exception],
) -> None:
    lane = bench.load(onnxruntime_bundle).lanes[0]
    bench.failure = raised(message)
    with pytest.raises(EnvironmentFault, match=rf"ONNX Runtime failed on a batch of 3: .*{message}") as caught:
        lane.infer(pixels(3))
    assert type(caught.value) is kind
    assert "--batch-size" in caught.value.hint


def test_what_is_not_the_library_s_failure_is_not_made_one(bench: Bench, onnxruntime_bundle: Bundle) -> None:
    lane = bench.load(onnxruntime_bundle).lanes[0]
    bench.failure = ZeroDivisionError("a mistake of ours")
    with pytest.raises(ZeroDivisionError):
        lane.infer(pixels(3))


def test_after_too_little_memory_a_smaller_batch_still_runs(
    bench: Bench, onnxruntime_bundle: Bundle, reference: OnnxRuntimeLane
) -> None:
    lane = bench.load(onnxruntime_bundle).lanes[0]
    bench.failure = failure_of_the_library(NO_MEMORY)
    with pytest.raises(OutOfDeviceMemory):
        lane.infer(pixels(4))
    bench.failure = None
    np.testing.assert_allclose(lane.infer(pixels(2)), reference.infer(pixels(2)), rtol=1e-5, atol=1e-6)


def test_too_little_memory_in_the_library_s_own_words(bench: Bench, onnxruntime_bundle: Bundle) -> None:
    # More than a process can address: every machine refuses it.
    expanded = onnx.numpy_helper.from_array(np.array([1 << 20, 1 << 18, 1, 3, 32, 32]), "shape")
    pictures = onnx.helper.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, ["n", 3, 32, 32])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 3])
    nodes = [
        onnx.helper.make_node("Expand", ["pixel_values", "shape"], ["too_large"]),
        onnx.helper.make_node("ReduceMax", ["too_large"], ["logits"], axes=[0, 1, 4, 5], keepdims=0),
    ]
    graph = onnx.helper.make_graph(nodes, "large", [pictures], [logits], [expanded])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    files = onnxruntime_bundle.engine_files()
    described = files.model.model_copy(update={"classes": 3})
    files = replace(files, model=described, read={ENGINE: model.SerializeToString()}.__getitem__)
    bench.at_once = True
    lane = bench.load_files(files, lanes=1).lanes[0]
    with pytest.raises(OutOfDeviceMemory, match=r"failed on a batch of 2: .*Failed to allocate memory"):
        lane.infer(pixels(2))


def test_its_facts(bench: Bench, onnxruntime_bundle: Bundle) -> None:
    runtime = bench.load(onnxruntime_bundle)
    assert runtime.statistics().layers > 5
    assert list(runtime.gpu_lanes) == list(runtime.lanes)
    assert all(lane.device is bench.device for lane in runtime.gpu_lanes)


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
