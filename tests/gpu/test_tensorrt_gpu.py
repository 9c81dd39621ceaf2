"""TensorRT and TensorRT for RTX on a real GPU, against ONNX Runtime."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from trt_vit.cuda import driver
from trt_vit.cuda.device import open_device
from trt_vit.engine.build import build
from trt_vit.engine.compare import compare_logits
from trt_vit.engine.manifest import BatchProfile
from trt_vit.engine.progress import Quiet
from trt_vit.errors import ArtifactError
from trt_vit.runtime.onnxruntime import OnnxRuntimeRuntime
from trt_vit.runtime.protocol import EngineFiles, RuntimeOptions
from trt_vit.runtime.tensorrt import ENGINE, TensorRtRuntime
from trt_vit.runtime.tensorrt_family import FAMILIES, FamilyName, compute_capabilities, load_family, module_name
from trt_vit.settings import BuildSettings

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from trt_vit.engine.bundle import Bundle

pytestmark = pytest.mark.gpu

BATCH = 8


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> FamilyName:
    wanted = cast("FamilyName", request.param)
    gpus = driver.gpus()
    if not gpus:
        pytest.skip("needs an NVIDIA GPU and its driver")
    if find_spec("pycuda") is None or find_spec("cuda") is None:
        pytest.skip("needs pycuda and cuda-bindings: pip install 'trt-vit[cuda]'")
    if module_name(wanted) is None:
        pytest.skip(f"needs the package of {wanted}")
    if wanted == "tensorrt-rtx" and gpus[0].compute_capability not in compute_capabilities(load_family(wanted)):
        pytest.skip(f"needs a GPU that {wanted} builds for, which a {gpus[0].name} is not")
    return wanted


@pytest.fixture(scope="module")
def bundle(name: FamilyName, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    checkpoint = request.getfixturevalue("checkpoint")  # only where ``name`` has not skipped
    root = tmp_path_factory.mktemp("tensorrt")
    settings = BuildSettings(
        source=str(checkpoint),
        output=root / "bundle",
        runtime=name,
        precision="fp16",
        batch=BatchProfile(min=1, opt=4, max=BATCH),
        cache=root / "cache",
    )
    return build(settings, Quiet())


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(6 * BATCH, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(bundle: Bundle, request: pytest.FixtureRequest, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    assert bundle.manifest.precision == "fp16"
    onnxruntime_bundle: Bundle = request.getfixturevalue("onnxruntime_bundle")
    runtime = OnnxRuntimeRuntime(onnxruntime_bundle.engine_files(), RuntimeOptions(batch_size=len(pixels)))
    return runtime.lanes[0].infer(pixels)


def load(bundle: Bundle, name: FamilyName, lanes: int | None = None) -> TensorRtRuntime:
    return TensorRtRuntime(bundle.engine_files(), RuntimeOptions(batch_size=BATCH, lanes=lanes), name)


@pytest.mark.parametrize("count", [1, 3, BATCH])
def test_the_logits_are_those_of_onnx_runtime(
    bundle: Bundle, name: FamilyName, pixels: NDArray[np.float32], expected: NDArray[np.float32], count: int
) -> None:
    lane = load(bundle, name).lanes[0]
    lane.infer(pixels[-BATCH:])  # leaves other images behind, which must not show
    comparison = compare_logits(lane.infer(pixels[:count]), expected[:count])
    assert comparison.cosine > 0.999
    assert comparison.max_abs_difference < 0.02


def test_a_replayed_graph_gives_what_the_first_run_gave(
    bundle: Bundle, name: FamilyName, pixels: NDArray[np.float32]
) -> None:
    lane = load(bundle, name).lanes[0]
    starts = range(0, len(pixels), BATCH)
    first = [load(bundle, name).lanes[0].infer(pixels[start : start + BATCH]) for start in starts]
    for _ in range(2):
        for start, logits in zip(starts, first, strict=True):
            assert np.array_equal(lane.infer(pixels[start : start + BATCH]), logits)
            # Another size between them: each has a context of its own, and a graph from its second run on.
            np.testing.assert_allclose(lane.infer(pixels[start : start + 3]), logits[:3], atol=0.02)


def test_what_tensorrt_enqueues_can_be_captured(bundle: Bundle, pixels: NDArray[np.float32]) -> None:
    if bundle.manifest.runtime != "tensorrt":
        pytest.skip("needs TensorRT: TensorRT for RTX captures graphs itself")
    lane = load(bundle, "tensorrt").lanes[0]
    for _ in range(2):
        lane.infer(pixels[:BATCH])
    assert lane._batches[BATCH].graph is not None


@pytest.mark.parametrize("lanes", [2, 4])  # as many as profiles, and more: contexts share a profile
def test_lanes_in_threads_give_what_one_gives(
    bundle: Bundle, name: FamilyName, pixels: NDArray[np.float32], lanes: int
) -> None:
    runtime = load(bundle, name, lanes)
    starts = [*range(0, len(pixels), BATCH)] * 5
    single = load(bundle, name, 1).lanes[0]
    alone = [single.infer(pixels[start : start + BATCH]) for start in starts]

    def run(lane: int) -> list[NDArray[np.float32]]:
        return [runtime.lanes[lane].infer(pixels[start : start + BATCH]) for start in starts]

    with ThreadPoolExecutor(lanes) as pool:
        for together in pool.map(run, range(lanes)):
            assert all(np.array_equal(one, other) for one, other in zip(together, alone, strict=True))


def test_the_engine_tells_its_layers(bundle: Bundle, name: FamilyName) -> None:
    statistics = load(bundle, name).statistics()
    assert statistics.layers > 5
    assert statistics.weights_bytes > bundle.manifest.checkpoint.parameters  # two bytes each, and not all are weights


def test_a_damaged_plan_is_refused(bundle: Bundle, name: FamilyName) -> None:
    files = bundle.engine_files()
    plan = files.read(ENGINE)
    damaged = EngineFiles(files.path, "fp16", files.model, files.batch, lambda _name: b"\0" * 64 + plan[64:])
    with pytest.raises(ArtifactError, match="cannot load"):
        TensorRtRuntime(damaged, RuntimeOptions(batch_size=1), name)


def test_rtx_reads_back_what_it_compiled(
    bundle: Bundle, pixels: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bundle.manifest.runtime != "tensorrt-rtx":
        pytest.skip("needs TensorRT for RTX: TensorRT compiles when it builds")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = load(bundle, "tensorrt-rtx").lanes[0].infer(pixels[:BATCH])
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.stat().st_size > 1000
    assert np.array_equal(load(bundle, "tensorrt-rtx").lanes[0].infer(pixels[:BATCH]), first)


def test_the_device_moves_bytes_and_replays_copies(name: FamilyName) -> None:
    device = open_device()
    assert (device.name, device.compute_capability) == (driver.gpus()[0].name, driver.gpus()[0].compute_capability)
    with device.current():
        stream, event = device.stream(), device.event()
        source, target = device.pinned((1000,), "float32"), device.pinned((1000,), "float32")
        memory = device.allocate(source.nbytes)
        assert memory.address % 256 == 0

        def there_and_back() -> None:
            stream.copy_to_device(memory, source)
            stream.copy_to_host(target, memory)

        graph = stream.capture(there_and_back)
        assert graph is not None
        assert not target.any()  # nothing of a capture runs
        for seed in range(3):
            source[:] = np.random.default_rng(seed).normal(size=1000)
            graph.launch()
            stream.record(event)
            event.synchronize()
            assert np.array_equal(source, target)
