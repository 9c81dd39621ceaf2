"""What every runtime must do, tested on each of them with the same model."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from trt_vit.engine.bundle import Bundle
from trt_vit.engine.compare import compare_logits
from trt_vit.errors import ArtifactError, EnvironmentFault
from trt_vit.runtime import registry
from trt_vit.runtime.openvino import OpenVinoRuntime, supports_bf16
from trt_vit.runtime.protocol import EngineFiles, Runtime, RuntimeOptions

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

BATCH = 4


@pytest.fixture(params=["openvino", "onnxruntime"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    opened = request.getfixturevalue(f"{request.param}_bundle")
    assert isinstance(opened, Bundle)
    return opened


def load(bundle: Bundle, lanes: int | None = 2) -> Runtime:
    options = RuntimeOptions(batch_size=BATCH, lanes=lanes)
    return registry.open_runtime(bundle.manifest.runtime, bundle.engine_files(), options)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(40, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(onnxruntime_bundle: Bundle, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of each image, computed alone."""
    lane = load(onnxruntime_bundle, lanes=1).lanes[0]
    return np.concatenate([lane.infer(image[None]) for image in pixels])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_smaller_batch_gives_its_own_logits(
    bundle: Bundle, pixels: NDArray[np.float32], expected: NDArray[np.float32], count: int
) -> None:
    lane = load(bundle).lanes[0]
    lane.infer(pixels[-BATCH:])  # leaves other images behind, which must not show
    logits = lane.infer(pixels[:count])
    assert logits.shape == (count, 7)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected[:count], atol=1e-4)


def test_logits_stay_valid_after_the_next_batch(bundle: Bundle, pixels: NDArray[np.float32]) -> None:
    lane = load(bundle).lanes[0]
    first = lane.infer(pixels[:BATCH])
    kept = first.copy()
    lane.infer(pixels[BATCH : 2 * BATCH])
    assert np.array_equal(first, kept)


def test_lanes_run_side_by_side(bundle: Bundle, pixels: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    runtime = load(bundle, lanes=3)
    assert len(runtime.lanes) == 3

    def run(lane_number: int) -> list[NDArray[np.float32]]:
        lane = runtime.lanes[lane_number]
        return [lane.infer(pixels[first : first + BATCH]) for first in range(0, len(pixels), BATCH)]

    with ThreadPoolExecutor(3) as pool:
        for logits in pool.map(run, range(3)):
            np.testing.assert_allclose(np.concatenate(logits), expected, atol=1e-4)


def test_its_facts(bundle: Bundle) -> None:
    runtime = load(bundle, lanes=None)
    assert runtime.batch_size == BATCH
    assert runtime.inference_precision == "fp32"
    assert len(runtime.lanes) >= 1
    assert list(runtime.gpu_lanes) == []
    statistics = runtime.statistics()
    assert statistics.layers == bundle.manifest.engine.layers > 20
    # Every parameter is there, in four bytes, and little besides: constants of shapes.
    parameters = bundle.manifest.checkpoint.parameters
    assert 4 * parameters * 0.99 < statistics.weights_bytes < 4 * parameters * 1.05


def test_the_time_of_each_layer(bundle: Bundle, pixels: NDArray[np.float32]) -> None:
    found = load(bundle).layer_times(pixels[:BATCH], 0.2)
    assert len({layer.name for layer in found}) == len(found) > 20
    assert all(0 <= layer.seconds < 10 for layer in found)
    # What takes longest in a ViT is its products, and in an fp32 engine they are in fp32.
    products = [layer for layer in found if layer.kind in {"FullyConnected", "MatMul", "Gemm", "FusedMatMul"}]
    assert {layer.precision for layer in products} == {"fp32"}
    assert sum(layer.seconds for layer in products) > 0.2 * sum(layer.seconds for layer in found)


def test_a_changed_engine_is_not_loaded(bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    engine = next(copy.glob("engine.*"))
    engine.write_bytes(engine.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match="not what the manifest says"):
        load(Bundle.open(copy))


def test_an_engine_that_the_library_cannot_read(bundle: Bundle) -> None:
    files = EngineFiles(bundle.path, "fp32", bundle.manifest.model, bundle.manifest.batch, lambda _name: b"garbage")
    with pytest.raises(ArtifactError, match="cannot load") as caught:
        registry.open_runtime(bundle.manifest.runtime, files, RuntimeOptions(batch_size=1))
    assert "\n" not in str(caught.value)


def test_a_batch_of_the_wrong_shape_is_an_error_of_the_runtime(bundle: Bundle) -> None:
    with pytest.raises(EnvironmentFault, match="failed on a batch of 4"):
        load(bundle).lanes[0].infer(np.zeros((BATCH, 3, 31, 32), dtype=np.float32))


def test_bf16_runs_in_bf16_where_the_cpu_has_it(
    openvino_bundle: Bundle, pixels: NDArray[np.float32], expected: NDArray[np.float32]
) -> None:
    files = openvino_bundle.engine_files()
    files = replace(files, precision="bf16")
    runtime = OpenVinoRuntime(files, RuntimeOptions(batch_size=BATCH))
    assert runtime.inference_precision == ("bf16" if supports_bf16() else "fp32")
    comparison = compare_logits(runtime.lanes[0].infer(pixels[:BATCH]), expected[:BATCH])
    assert comparison.cosine > 0.99
    assert (comparison.max_abs_difference > 1e-4) == supports_bf16()


def test_an_input_of_another_name_is_found_when_the_engine_is_loaded(onnxruntime_bundle: Bundle) -> None:
    files = onnxruntime_bundle.engine_files()
    model = files.model.model_copy(update={"input_name": "x"})
    with pytest.raises(ArtifactError, match="the engine's input is pixel_values, the manifest's x"):
        registry.open_runtime("onnxruntime", replace(files, model=model), RuntimeOptions(1))


def test_openvino_chooses_the_lanes_that_fit_the_threads(openvino_bundle: Bundle) -> None:
    options = RuntimeOptions(batch_size=BATCH, threads=1)
    assert len(OpenVinoRuntime(openvino_bundle.engine_files(), options).lanes) == 1


def test_auto_prefers_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.choose() == "openvino"
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "openvino" else object())
    assert registry.choose() == "onnxruntime"
    monkeypatch.setattr(registry, "find_spec", lambda _name: None)
    with pytest.raises(EnvironmentFault, match="no runtime is installed") as caught:
        registry.choose()
    assert caught.value.exit_code == 4


def test_an_engine_takes_no_weights_from_the_working_directory(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both libraries read ONNX from memory, and the files that it names from wherever the process runs."""
    onnx = pytest.importorskip("onnx", reason="needs the export extra")
    helper, kind = onnx.helper, onnx.TensorProto
    weight = kind(name="w", data_type=kind.FLOAT, dims=[3, 7], data_location=kind.EXTERNAL)
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", "84")):
        weight.external_data.add(key=key, value=value)
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "w"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("pixel_values", kind.FLOAT, ["n", 3, 32, 32])
    logits = helper.make_tensor_value_info("logits", kind.FLOAT, ["n", 7])
    graph = helper.make_graph(nodes, "g", [image], [logits], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.bin").write_bytes(np.ones((3, 7), np.float32).tobytes())
    files = replace(bundle.engine_files(), read=lambda _: model)
    with pytest.raises(ArtifactError):
        registry.open_runtime(bundle.manifest.runtime, files, RuntimeOptions(batch_size=BATCH))
