"""The TensorRT runtime on a recorded device: the order of its work, and what it reuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support import fake_tensorrt as fake
from tests.support.recording_device import RecordingDevice
from trt_vit.engine.manifest import BatchProfile, ModelRecord
from trt_vit.errors import ArtifactError, EnvironmentFault, OutOfDeviceMemory, TrtVitError, UsageError
from trt_vit.runtime import tensorrt
from trt_vit.runtime.protocol import EngineFiles, RuntimeOptions
from trt_vit.runtime.tensorrt import TensorRtRuntime
from trt_vit.runtime.tensorrt_family import Family, FamilyName, load_family

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL = ModelRecord(
    input_name="pixels", output_name="logits", height=fake.HEIGHT, width=fake.WIDTH, classes=fake.CLASSES
)
IMAGE_BYTES = 4 * 3 * fake.HEIGHT * fake.WIDTH
ROW_BYTES = 4 * fake.CLASSES


class Bench:
    """An engine on a recorded device, loaded as a test asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: FamilyName = "tensorrt") -> None:
        self.device = RecordingDevice()
        self.engine = fake.FakeEngine(self.device, smallest=1, largest=8)
        self.bindings = fake.bindings(self.engine)
        self.name = name
        self.gpus: list[int] = []
        monkeypatch.setattr(tensorrt, "open_device", self._open_device)
        monkeypatch.setattr(tensorrt, "load_family", lambda _name: Family(name, self.bindings, "11.4.0"))

    def _open_device(self, index: int) -> RecordingDevice:
        self.gpus.append(index)
        return self.device

    def load(
        self, *, batch_size: int = 4, lanes: int | None = None, plan: bytes = b"plan", gpu: int = 0
    ) -> TensorRtRuntime:
        batch = BatchProfile(min=self.engine.smallest, opt=self.engine.largest, max=self.engine.largest)
        files = EngineFiles(Path("bundle"), "fp16", MODEL, batch, {"engine.plan": plan}.__getitem__)
        runtime = TensorRtRuntime(files, RuntimeOptions(batch_size=batch_size, lanes=lanes, gpu=gpu), self.name)
        self.loading, self.device.log = self.device.log, []
        return runtime

    def log_of(self, runtime: TensorRtRuntime, pixels: NDArray[np.float32]) -> list[str]:
        """Run a batch, check its logits, and return what the device was asked for, but for the pinned memory."""
        self.device.log.clear()
        np.testing.assert_allclose(runtime.lanes[0].infer(pixels), fake.logits_of(pixels), rtol=1e-5)
        assert self.device.races() == []
        return [entry for entry in self.device.log if not entry.startswith("pinned")]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Bench(monkeypatch, "tensorrt-rtx")


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    shape = (count, 3, fake.HEIGHT, fake.WIDTH)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def there_and_back(count: int, *engine: str) -> list[str]:
    """What a batch that comes from the host is, around what the engine is asked for."""
    return [f"to device {count * IMAGE_BYTES}", *engine, f"to host {count * ROW_BYTES}", "record", "wait"]


def test_a_batch_is_copied_in_executed_copied_out_and_waited_for(bench: Bench) -> None:
    assert bench.log_of(bench.load(), images(3)) == there_and_back(3, "execute 3")


def test_a_run_that_is_enqueued_copies_nothing_and_waits_for_nothing(bench: Bench) -> None:
    lane = bench.load().gpu_lanes[0]
    assert (lane.images.nbytes, lane.logits.nbytes, lane.smallest) == (4 * IMAGE_BYTES, 4 * ROW_BYTES, 1)
    pixels = images(4)
    with bench.device.current():
        bench.device.memory_at(lane.images.address).data[:] = pixels.reshape(-1).view(np.uint8)
        for _ in range(2):
            lane.enqueue(4)
        assert bench.device.log == ["execute 4", "capture execute 4", "launch"]
        event = bench.device.event()
        lane.stream.record(event)
        event.synchronize()
    logits = bench.device.memory_at(lane.logits.address).data.view(np.float32).reshape(4, fake.CLASSES)
    np.testing.assert_allclose(logits, fake.logits_of(pixels), rtol=1e-5)
    assert bench.device.races() == []


@pytest.mark.parametrize("count", [1, 3])
def test_a_run_below_the_smallest_batch_is_enqueued_with_that_many_rows(bench: Bench, count: int) -> None:
    bench.engine.smallest = 4
    lane = bench.load().gpu_lanes[0]
    pixels = images(4)
    with bench.device.current():
        bench.device.memory_at(lane.images.address).data[:] = pixels.reshape(-1).view(np.uint8)
        lane.enqueue(count)
    assert (lane.smallest, bench.device.log) == (4, ["execute 4"])
    assert bench.engine.contexts[0].shapes == [(4, 3, fake.HEIGHT, fake.WIDTH)]


def test_runs_that_are_enqueued_one_after_the_other_each_see_their_own_images(bench: Bench) -> None:
    lane = bench.load().gpu_lanes[0]
    device, batches = bench.device, [images(count, count) for count in (4, 2, 4, 2, 3)]
    answers = []
    with device.current():
        for pixels in batches:
            source, answer = (
                device.pinned(pixels.shape, "float32"),
                device.pinned((len(pixels), fake.CLASSES), "float32"),
            )
            source[:] = pixels
            lane.stream.copy_to_device(lane.images, source)
            lane.enqueue(len(pixels))
            lane.stream.copy_to_host(answer, lane.logits)
            answers.append(answer)
        assert not any(answer.any() for answer in answers)  # nothing was waited for, so nothing is there
        event = device.event()
        lane.stream.record(event)
        event.synchronize()
    for pixels, answer in zip(batches, answers, strict=True):
        np.testing.assert_allclose(answer, fake.logits_of(pixels), rtol=1e-5)
    assert device.waits == {"stream": 0, "host": 1}
    assert device.races() == []


NO_INFORMATION = "[executionContext.cpp::ExecutionContext::470] Error Code 2: OutOfMemory (no further information)"
"""What TensorRT says last where a context finds no memory."""


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("Error Code 1: Cuda Runtime (out of memory)", OutOfDeviceMemory),
        ("Error Code 1: Cuda Runtime (Out Of Memory)", OutOfDeviceMemory),
        (NO_INFORMATION, OutOfDeviceMemory),
        ("Error Code 1: Cuda Runtime (unspecified launch failure)", EnvironmentFault),
    ],
)
def test_too_little_memory_is_told_from_other_failures(bench: Bench, reason: str, kind: type[EnvironmentFault]) -> None:
    runtime = bench.load()
    bench.engine.fails, bench.engine.reason = True, reason
    with pytest.raises(EnvironmentFault) as caught:
        runtime.lanes[0].infer(images(2))
    assert caught.value.message == f"TensorRT 11.4.0 failed on a batch of 2: {reason}"
    assert "--batch-size" in caught.value.hint
    assert type(caught.value) is kind


def test_after_too_little_memory_a_smaller_batch_still_runs(bench: Bench) -> None:
    runtime = bench.load()
    bench.engine.fails, bench.engine.reason = True, "Error Code 1: Cuda Runtime (out of memory)"
    with pytest.raises(OutOfDeviceMemory):
        runtime.lanes[0].infer(images(4))
    bench.engine.fails = False
    assert bench.log_of(runtime, images(2)) == there_and_back(2, "execute 2")
    assert bench.log_of(runtime, images(4)) == there_and_back(4, "execute 4")  # the one that failed was no run


def test_an_earlier_lack_of_memory_does_not_explain_a_later_failure(bench: Bench) -> None:
    lanes = bench.load(lanes=2).lanes
    bench.engine.fails, bench.engine.reason = True, "Error Code 1: Cuda Runtime (out of memory)"
    with pytest.raises(OutOfDeviceMemory):
        lanes[0].infer(images(4))
    bench.engine.log = lambda _severity, _message: None  # this time TensorRT fails without a word
    with pytest.raises(EnvironmentFault) as caught:
        lanes[1].infer(images(2))
    assert type(caught.value) is EnvironmentFault


def test_the_second_batch_of_a_size_is_captured_and_the_others_replay_it(bench: Bench) -> None:
    runtime = bench.load()
    logs = [bench.log_of(runtime, images(4, seed)) for seed in range(4)]
    assert logs[0] == there_and_back(4, "execute 4")
    assert logs[1] == there_and_back(4, "capture execute 4", "launch")
    assert logs[2] == logs[3] == there_and_back(4, "launch")


def test_each_size_has_a_context_and_a_graph_of_its_own(bench: Bench) -> None:
    runtime = bench.load()
    for seed, count in enumerate([4, 2, 4, 2]):
        bench.log_of(runtime, images(count, seed))
    assert bench.log_of(runtime, images(4, 9)) == there_and_back(4, "launch")
    assert bench.log_of(runtime, images(2, 9)) == there_and_back(2, "launch")
    # A graph holds the state of its context: the shape of a context that was captured never changes.
    assert [context.shapes for context in bench.engine.contexts] == [
        [(rows, 3, fake.HEIGHT, fake.WIDTH)] for rows in (4, 2)
    ]


def test_buffers_are_allocated_once_and_shared_by_the_contexts_of_a_lane(bench: Bench) -> None:
    runtime = bench.load(batch_size=4)
    assert [entry for entry in bench.loading if entry.startswith(("allocate", "pinned"))] == [
        f"allocate {fake.ACTIVATIONS}",
        f"allocate {4 * IMAGE_BYTES}",
        f"allocate {4 * ROW_BYTES}",
    ]
    logs = []
    for count in (1, 2, 3, 4):
        bench.log_of(runtime, images(count))
        logs.append([entry for entry in bench.device.log if entry.startswith(("allocate", "pinned"))])
    # Memory for batches that come from the host, only once there is such a batch.
    assert logs == [[f"pinned {4 * IMAGE_BYTES}", f"pinned {4 * ROW_BYTES}"], [], [], []]
    first, *others = bench.engine.contexts
    assert first.strategy is fake.Strategy.USER_MANAGED
    assert first.device_memory is not None
    assert first.device_memory[1] == fake.ACTIVATIONS
    assert {context.device_memory for context in others} == {first.device_memory}
    assert all(context.addresses == first.addresses for context in others)


def test_only_the_latest_sizes_are_kept_ready(bench: Bench) -> None:
    runtime = bench.load(batch_size=8)
    for count in (1, 2, 3, 4, 1, 5):  # 5 takes the place of 2, which was used longest ago
        bench.log_of(runtime, images(count))
    assert bench.log_of(runtime, images(1)) == there_and_back(1, "launch")
    assert bench.log_of(runtime, images(3)) == there_and_back(3, "capture execute 3", "launch")
    assert bench.log_of(runtime, images(2)) == there_and_back(2, "execute 2")


@pytest.mark.parametrize("cause", ["device", "engine"])
def test_what_cannot_be_captured_is_enqueued_each_time(bench: Bench, cause: str) -> None:
    bench.device.captures = cause != "device"
    bench.engine.fails_in_capture = cause == "engine"
    runtime = bench.load()
    logs = [bench.log_of(runtime, images(4, seed)) for seed in range(4)]
    assert logs[0] == logs[2] == logs[3] == there_and_back(4, "execute 4")
    assert logs[1] == there_and_back(4, "capture execute 4" if cause == "device" else "capture ", "execute 4")


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_batch_below_the_smallest_is_filled_up(bench: Bench, count: int) -> None:
    bench.engine.smallest = 4
    runtime = bench.load(batch_size=4)
    bench.log_of(runtime, images(4, 5))  # leaves other images behind, which must not show
    assert bench.engine.contexts[0].shapes == [(4, 3, fake.HEIGHT, fake.WIDTH)]
    assert bench.log_of(runtime, images(count)) == there_and_back(count, "capture execute 4", "launch")
    assert len(runtime.lanes[0].infer(images(count))) == count


def test_a_batch_size_below_the_engine_s_smallest_still_has_room(bench: Bench) -> None:
    bench.engine.smallest = 4
    runtime = bench.load(batch_size=1)
    lane = runtime.gpu_lanes[0]
    assert (lane.smallest, lane.images.nbytes) == (4, 4 * IMAGE_BYTES)
    bench.device.memory_at(lane.images.address).data[:] = 0
    assert bench.log_of(runtime, images(1)) == there_and_back(1, "execute 4")


def test_logits_stay_valid_after_the_next_batch(bench: Bench) -> None:
    lane = bench.load().lanes[0]
    first = lane.infer(images(4))
    kept = first.copy()
    lane.infer(images(4, seed=1))
    assert np.array_equal(first, kept)


def test_lanes_are_the_profiles_and_run_side_by_side(bench: Bench) -> None:
    bench.engine.num_optimization_profiles = 2
    runtime = bench.load()
    assert len(runtime.lanes) == 2
    batches = [[images(4, seed), images(2, seed)] * 3 for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda number: [runtime.lanes[number].infer(one) for one in batches[number]], range(2)))
    for got, given in zip(found, batches, strict=True):
        for logits, pixels in zip(got, given, strict=True):
            np.testing.assert_allclose(logits, fake.logits_of(pixels), rtol=1e-5)
    contexts = bench.engine.contexts
    assert sorted(context.profile for context in contexts) == [0, 0, 1, 1]
    for one, other in ((one, other) for one in contexts for other in contexts if one.profile < other.profile):
        assert one.device_memory != other.device_memory
        assert one.addresses["pixels"] != other.addresses["pixels"]
    assert len({stream.handle for stream in bench.device.streams}) == 2


def test_more_lanes_than_profiles_share_them(bench: Bench) -> None:
    runtime = bench.load(lanes=3)
    assert [np.abs(lane.infer(images(2)) - fake.logits_of(images(2))).max() < 1e-4 for lane in runtime.lanes] == [
        True
    ] * 3
    assert [context.profile for context in bench.engine.contexts] == [0, 0, 0]


def test_the_verified_bytes_are_loaded_without_host_code(bench: Bench) -> None:
    bench.load(plan=b"verified plan")
    assert bench.loading[0] == "deserialize verified plan, host code allowed: False"


def test_a_plan_of_another_version_says_so_in_tensorrt_s_words(bench: Bench) -> None:
    with pytest.raises(ArtifactError) as caught:
        bench.load(plan=fake.PLAN_OF_ANOTHER_VERSION)
    assert caught.value.message == (
        "TensorRT 11.4.0 cannot load bundle: Version tag does not match. Expected 239, got 238"
    )
    assert caught.value.hint == "build the bundle again on this machine, with this version of TensorRT"


def test_a_library_that_does_not_start(bench: Bench) -> None:
    def nothing(_logger: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    bench.bindings.__dict__["Runtime"] = nothing
    with pytest.raises(EnvironmentFault, match=r"TensorRT 11\.4\.0 does not start"):
        bench.load()


def _sized(shape: tuple[int, ...]) -> tuple[Any, Any, tuple[int, ...]]:
    return (fake.TensorIOMode["INPUT"], fake.DataType["FLOAT"], shape)


@pytest.mark.parametrize(
    ("name", "tensor", "found"),
    [
        ("x", _sized((-1, 3, 2, 4)), "input x FLOAT"),
        ("pixels", _sized((-1, 3, 2, 5)), r"input pixels FLOAT \[batch, 3, 2, 5\]"),
        ("pixels", _sized((-1, 2, 4)), r"input pixels FLOAT \[batch, 2, 4\]"),
        ("pixels", (fake.TensorIOMode["INPUT"], fake.DataType["HALF"], (-1, 3, 2, 4)), "input pixels HALF"),
        ("logits", (fake.TensorIOMode["OUTPUT"], fake.DataType["FLOAT"], (-1, 6)), r"output logits FLOAT \[batch, 6\]"),
        ("more", (fake.TensorIOMode["OUTPUT"], fake.DataType["FLOAT"], (-1, 5)), "output more FLOAT"),
    ],
)
def test_other_tensors_than_the_manifest_s_are_refused(
    bench: Bench, name: str, tensor: tuple[Any, Any, tuple[int, ...]], found: str
) -> None:
    bench.engine.tensors[name] = tensor
    with pytest.raises(ArtifactError, match=f"bundle: the engine has .*{found}.*, the manifest says input pixels"):
        bench.load()


def test_a_batch_size_beyond_the_engine_s_is_refused_before_anything_is_loaded(bench: Bench) -> None:
    with pytest.raises(UsageError, match="bundle: the engine takes 8 images at once, not 9") as caught:
        bench.load(batch_size=9)
    assert caught.value.hint.startswith("--batch-size 8")
    assert bench.device.log == []


@pytest.mark.parametrize(
    ("attribute", "reason", "kind"),
    [("fails", "it went wrong", EnvironmentFault), ("has_no_contexts", "out of memory", OutOfDeviceMemory)],
    ids=["run", "context"],
)
def test_a_failing_batch_is_a_fault_of_the_environment(
    bench: Bench, attribute: str, reason: str, kind: type[EnvironmentFault]
) -> None:
    runtime = bench.load()
    setattr(bench.engine, attribute, True)
    with pytest.raises(EnvironmentFault) as caught:
        runtime.lanes[0].infer(images(3))
    assert caught.value.message == f"TensorRT 11.4.0 failed on a batch of 3: {reason}"
    assert type(caught.value) is kind


@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (4, 3, 2), (5, 3, 2, 4)])
def test_a_batch_of_the_wrong_shape_never_reaches_the_device(bench: Bench, shape: tuple[int, ...]) -> None:
    runtime = bench.load(batch_size=4)
    with pytest.raises(EnvironmentFault, match=rf"no room for a batch of the shape \({shape[0]}, 3, 2"):
        runtime.lanes[0].infer(np.zeros(shape, dtype=np.float32))
    assert not [entry for entry in bench.device.log if not entry.startswith("pinned")]


def test_a_size_that_the_engine_refuses(bench: Bench) -> None:
    runtime = bench.load(batch_size=4)
    bench.engine.largest = 3
    with pytest.raises(EnvironmentFault, match="failed on a batch of 4: the engine refuses its shape"):
        runtime.lanes[0].infer(images(4))


def test_its_facts(bench: Bench) -> None:
    bench.engine.layers = """{"Layers": [
        {"Name": "a", "LayerType": "gemm", "Inputs": [{"Dimensions": [8, 3], "Datatype": "Half"}]},
        {"Name": "_gemm_mha_v2_1", "LayerType": "kgen", "Inputs": [{"Dimensions": [8, 3], "Datatype": "Half"}]}]}"""
    runtime = bench.load(gpu=3)
    assert bench.gpus == [3]
    assert runtime.batch_size == 4
    assert runtime.inference_precision == "fp16"
    assert list(runtime.gpu_lanes) == list(runtime.lanes)
    assert all(lane.device is bench.device for lane in runtime.gpu_lanes)
    assert runtime.layer_information() == bench.engine.layers
    statistics = runtime.statistics()
    assert (statistics.layers, statistics.fused_attention, statistics.weights_bytes) == (2, 1, 1234)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_the_time_of_each_layer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: FamilyName) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bench = Bench(monkeypatch, name)
    bench.engine.layers = """{"Layers": [
        {"Name": "a", "LayerType": "gemm", "Inputs": [{"Dimensions": [8, 3], "Datatype": "Int8"}]},
        {"Name": "b", "LayerType": "kgen", "Inputs": [{"Dimensions": [8, 3], "Datatype": "Half"}]}]}"""
    bench.engine.times = {"b": 2.0, "a": 0.5, "reformat of a": 0.25}
    runtime = bench.load()
    found = runtime.layer_times(images(4), 0.05)
    # As they were run, and without the first batch, which takes a hundred times as long.
    assert [(layer.name, layer.kind, layer.precision) for layer in found] == [
        ("b", "kgen", "fp16"),
        ("a", "gemm", "int8"),
        ("reformat of a", "unknown", "none"),
    ]
    assert [layer.seconds for layer in found] == pytest.approx([0.002, 0.0005, 0.00025])
    assert bench.device.races() == []
    assert not any("graph" in entry for entry in bench.device.log)
    # The lanes that classify are as they were.
    assert all(context.profiler is None for context in bench.engine.contexts[:-1])


def test_rtx_captures_graphs_itself_and_takes_every_size_in_one_context(rtx: Bench) -> None:
    runtime = rtx.load(lanes=1)
    for seed, count in enumerate([4, 4, 4, 2, 4]):
        assert rtx.log_of(runtime, images(count, seed)) == there_and_back(count, f"execute {count}")
    (config,) = rtx.engine.configs
    assert config.cuda_graph_strategy is fake.CudaGraphStrategy["WHOLE_GRAPH_CAPTURE"]
    assert config.dynamic_shapes_kernel_specialization_strategy is fake.Specialization["EAGER"]
    (context,) = rtx.engine.contexts
    assert context.strategy is config
    assert [shape[0] for shape in context.shapes] == [4, 2, 4]


def test_rtx_keeps_its_kernels_for_the_next_run(rtx: Bench, tmp_path: Path) -> None:
    runtime = rtx.load(lanes=2)
    assert list(tmp_path.rglob("*")) == []
    runtime.lanes[0].infer(images(4))
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    rtx.load(lanes=2)
    first, second = (config.cache for config in rtx.engine.configs)
    assert first is not None
    assert second is not None
    assert (first.given, second.given) == ([], [b"kernels, compiled"])
    assert file.parent == tmp_path / "trt-vit" / "kernels"


def test_garbage_is_refused_by_the_real_library(bench: Bench) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT for RTX")
    real = load_family("tensorrt-rtx")
    bench.bindings.__dict__.update(Runtime=real.bindings.Runtime, ILogger=real.bindings.ILogger)
    with pytest.raises(TrtVitError, match=r"cannot load bundle: .*magicTag") as caught:
        bench.load(plan=b"garbage" * 100)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
