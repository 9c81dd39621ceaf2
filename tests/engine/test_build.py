from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.engine.conftest import Listener
from tests.quantize.graphs import quantized
from trt_vit.checkpoint.load import to_onnx
from trt_vit.engine import verify
from trt_vit.engine.build import build
from trt_vit.engine.compare import Comparison
from trt_vit.engine.describe import describe
from trt_vit.engine.manifest import BatchProfile
from trt_vit.engine.onnxruntime import write_engine
from trt_vit.engine.order import default_path
from trt_vit.engine.progress import Quiet
from trt_vit.errors import CheckpointError, EngineError, UsageError
from trt_vit.graph.rewrite import rewrite
from trt_vit.quantize import plan
from trt_vit.quantize.search import Plan, Score
from trt_vit.runtime.openvino import supports_bf16
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.runtime.registry import open_runtime
from trt_vit.settings import BuildSettings

if TYPE_CHECKING:
    from pathlib import Path

    from trt_vit.engine.bundle import Bundle
    from trt_vit.engine.manifest import RuntimeName


def test_the_manifest_tells_where_everything_came_from(checkpoint: Path, openvino_bundle: Bundle) -> None:
    manifest = openvino_bundle.manifest
    assert (manifest.runtime, manifest.precision, str(manifest.batch)) == ("openvino", "fp32", "1,4,8")
    assert manifest.checkpoint.source == str(checkpoint)
    assert (manifest.checkpoint.kind, manifest.checkpoint.revision) == ("directory", None)
    assert manifest.checkpoint.architecture == "ViTForImageClassification"
    assert (manifest.model.height, manifest.model.width, manifest.model.classes) == (32, 32, 7)
    assert manifest.export.max_abs_difference is not None
    assert manifest.export.max_abs_difference < 1e-4
    assert manifest.engine.against_fp32 is not None
    assert manifest.engine.against_fp32.agreement == 1.0
    assert manifest.engine.against_fp32.max_abs_difference < 1e-4
    assert {"python", "trt-vit", "torch", "openvino"} <= manifest.versions.keys()


def test_the_engine_answers_as_hugging_face_does(checkpoint: Path, openvino_bundle: Bundle) -> None:
    import torch
    from transformers import AutoModelForImageClassification

    images = np.random.default_rng(1).normal(size=(3, 3, 32, 32)).astype(np.float32)
    model = AutoModelForImageClassification.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        expected = model(pixel_values=torch.from_numpy(images)).logits.numpy()
    runtime = open_runtime("openvino", openvino_bundle.engine_files(), RuntimeOptions(batch_size=4))
    assert np.abs(runtime.lanes[0].infer(images) - expected).max() < 1e-4


def test_the_description_keeps_the_contract(openvino_bundle: Bundle) -> None:
    document = describe(openvino_bundle)
    contract = ["bundle", "runtime", "precision", "int8_coverage", "engine_bytes", "weights_bytes", "engine_layers"]
    contract += ["fused_attention", "batch", "sha256"]
    assert list(document)[: len(contract)] == contract
    assert document["batch"] == [1, 4, 8]
    assert document["weights_bytes"] == (openvino_bundle.path / "engine.bin").stat().st_size
    assert document["engine_layers"] > 20
    assert document["labels"] == [f"kind {index}" for index in range(7)]


def test_a_name_that_is_no_text_is_spelled_out(checkpoint: Path, tmp_path: Path) -> None:
    to_onnx(str(checkpoint), tmp_path / "m.onnx")
    odd = tmp_path / os.fsdecode(b"caf\xe9\x1b[31m\n")
    odd.mkdir()
    (tmp_path / "m.onnx").rename(odd / "m.onnx")
    bundle = build(BuildSettings(source=str(odd / "m.onnx"), output=tmp_path / "b", runtime="onnxruntime"), Quiet())
    assert bundle.manifest.checkpoint.source == str(tmp_path / r"caf\udce9\x1b[31m\n" / "m.onnx")
    bundle.verify()


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("y = Flatten (x)", "the model answers (8, 192), not 2 logits for each image"),
        ("z = Constant <value_ints = [3, 5]> () w = Reshape (x, z) y = Flatten (w)", "ONNX Runtime cannot run"),
    ],
)
def test_a_model_that_does_not_compute_what_it_declares(nodes: str, message: str, tmp_path: Path) -> None:
    ends = "(float[n, 3, 8, 8] x) => (float[n, 2] y)"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> g {ends} {{ {nodes} }}')
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor", "size": 8}')
    (tmp_path / "config.json").write_text('{"id2label": {"0": "a", "1": "b"}}')
    settings = BuildSettings(source=str(tmp_path / "m.onnx"), output=tmp_path / "b", runtime="onnxruntime")
    with pytest.raises(EngineError) as caught:
        build(settings, Quiet())
    assert message in str(caught.value)


def test_an_engine_of_nothing_is_no_engine(tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["": 17]> g (float[n, 3, 8, 8] x) => (float[n, 2] y) { y = Flatten (x) }'
    model = onnx.parser.parse_model(text)
    model.graph.node[0].op_type = "Constant"
    del model.graph.node[0].input[:]
    value = onnx.numpy_helper.from_array(np.ones((8, 2), np.float32), "v")
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("value", value))
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor", "size": 8}')
    (tmp_path / "config.json").write_text('{"id2label": {"0": "a", "1": "b"}}')
    settings = BuildSettings(source=str(tmp_path / "m.onnx"), output=tmp_path / "b", runtime="onnxruntime")
    with pytest.raises(EngineError, match="cannot be put on record: layers: Input should be greater than 0"):
        build(settings, Quiet())
    assert not (tmp_path / "b").exists()


def test_an_onnx_file_builds_without_further_flags(checkpoint: Path, openvino_bundle: Bundle, tmp_path: Path) -> None:
    to_onnx(str(checkpoint), tmp_path / "m.onnx")
    settings = BuildSettings(source=str(tmp_path / "m.onnx"), output=tmp_path / "b", runtime="onnxruntime")
    bundle = build(settings, Quiet())
    assert bundle.manifest.checkpoint.kind == "onnx"
    assert bundle.labels() == openvino_bundle.labels()
    assert bundle.preprocessing() == openvino_bundle.preprocessing()


@pytest.fixture(scope="module")
def fixed_batch(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .onnx file whose batch is 3."""
    path = tmp_path_factory.mktemp("fixed") / "m.onnx"
    to_onnx(str(checkpoint), path)
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_fixed_batch_serves_fewer_images(
    fixed_batch: Path, openvino_bundle: Bundle, tmp_path: Path, runtime: RuntimeName
) -> None:
    settings = BuildSettings(source=str(fixed_batch), output=tmp_path / "b", runtime=runtime)
    bundle = build(settings, Quiet())
    assert str(bundle.manifest.batch) == "3,3,3"
    images = np.random.default_rng(1).normal(size=(3, 3, 32, 32)).astype(np.float32)
    expected = open_runtime("openvino", openvino_bundle.engine_files(), RuntimeOptions(batch_size=4)).lanes[0]
    lane = open_runtime(runtime, bundle.engine_files(), RuntimeOptions(batch_size=3)).lanes[0]
    for count in (3, 1, 2):
        np.testing.assert_allclose(lane.infer(images[:count]), expected.infer(images[:count]), atol=1e-4)


def test_a_batch_that_a_fixed_one_does_not_fit_is_refused(fixed_batch: Path, tmp_path: Path) -> None:
    profile = BatchProfile(min=1, opt=3, max=3)
    settings = BuildSettings(source=str(fixed_batch), output=tmp_path / "b", batch=profile)
    with pytest.raises(UsageError, match="fixed batch of 3, which --batch 1,3,3 does not fit"):
        build(settings, Quiet())


def test_weights_beside_the_model_are_not_for_onnx_runtime(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    (tmp_path / "m.onnx.data").touch()
    with pytest.raises(EngineError, match="2 GiB"):
        write_engine(tmp_path / "m.onnx", tmp_path)


def test_bf16_says_what_it_was_measured_in(checkpoint: Path, tmp_path: Path) -> None:
    listener = Listener()
    settings = BuildSettings(source=str(checkpoint), output=tmp_path / "b", runtime="openvino", precision="bf16")
    bundle = build(settings, listener)
    measured = "bf16" if supports_bf16() else "fp32"
    assert bundle.manifest.precision == "bf16"
    assert bundle.manifest.engine.against_fp32 is not None
    assert bundle.manifest.engine.against_fp32.measured_in == measured
    assert any(phase.startswith("note: this CPU has no bf16") for phase in listener.said) == (measured == "fp32")


ALL_MACS = 983488
INT8_COVERAGE = {"openvino": 1.0, "onnxruntime": 1 - 16 * 192 * 64 / ALL_MACS}
"""ONNX Runtime convolves in INT8 only where the output is quantized too: the patches, one layer, stay in fp32."""


def int8_settings(source: Path, output: Path, images: Path, runtime: RuntimeName, **changes: Any) -> BuildSettings:
    usual: dict[str, Any] = {
        "source": str(source),
        "output": output,
        "runtime": runtime,
        "precision": "int8",
        "calibration": images,
        "min_agreement": 0,  # random weights have no margins
        "cache": output.parent / "cache",
    }
    return BuildSettings(**(usual | changes))


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_int8_for_a_cpu(vit_onnx: Path, images: Path, tmp_path: Path, runtime: RuntimeName) -> None:
    bundle = build(int8_settings(vit_onnx, tmp_path / "b", images, runtime), Quiet())
    bundle.verify()
    manifest = bundle.manifest
    assert (manifest.runtime, manifest.precision, manifest.target) == (runtime, "int8", None)
    record = manifest.quantization
    assert record is not None
    assert (record.calibration, record.images, record.ranges) == (str(images), 11, "error")
    assert (record.min_agreement, record.reached, record.agreement) == (0.0, True, None)
    assert len(record.plan) == 10
    assert {row.precision for row in record.plan} == {"int8"}
    assert sum(row.macs for row in record.plan) == ALL_MACS
    assert manifest.engine.int8_coverage == pytest.approx(INT8_COVERAGE[runtime], abs=1e-9)
    against = manifest.engine.against_fp32
    assert against is not None
    assert (against.measured_on, against.measured_in, against.images) == ("engine", "int8", 11)
    assert 0.99 < against.cosine < 0.999999


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_graph_that_came_quantized_is_built_for_a_cpu(
    vit_onnx: Path, images: Path, tmp_path: Path, runtime: RuntimeName
) -> None:
    model, _ = rewrite(ir.load(vit_onnx))
    quantized(model, [np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)], weights="int7")
    ir.save(model, tmp_path / "q.onnx")
    listener = Listener()
    bundle = build(int8_settings(tmp_path / "q.onnx", tmp_path / "b", images, runtime), listener)
    assert "taking the graph as it is" in listener.said
    assert "warning: calibration images mean nothing for a graph that came quantized" in listener.said
    record = bundle.manifest.quantization
    assert record is not None
    assert (record.calibration, record.images, record.images_sha256, record.plan) == (None, 0, None, ())
    assert bundle.manifest.engine.int8_coverage == pytest.approx(INT8_COVERAGE[runtime], abs=1e-9)
    settings = int8_settings(tmp_path / "q.onnx", tmp_path / "c", images, runtime, precision="fp32", calibration=None)
    with pytest.raises(UsageError, match="holds Q/DQ nodes: it is no fp32 graph"):
        build(settings, Quiet())


def test_what_was_measured_is_not_measured_again(vit_onnx: Path, images: Path, tmp_path: Path) -> None:
    listeners = [Listener(), Listener(), Listener()]
    changes: list[dict[str, Any]] = [{}, {"runtime": "onnxruntime", "ranges": "max"}, {"calibration_images": 10}]
    bundles = [
        build(int8_settings(vit_onnx, tmp_path / "b", images, **({"runtime": "openvino"} | change)), listener)
        for listener, change in zip(listeners, changes, strict=True)
    ]
    assert [listener.said.count("calibrating") for listener in listeners] == [1, 0, 1]
    assert all("quantizing layer by layer" in listener.said for listener in listeners)
    records = [bundle.manifest.quantization for bundle in bundles]
    assert [(record.images, record.ranges) for record in records if record is not None] == [
        (11, "error"),
        (11, "max"),
        (10, "error"),
    ]


def test_an_engine_short_of_its_agreement_says_so(
    vit_onnx: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = Score(images=5, disagreeing=2, expected=0.55)
    monkeypatch.setattr(plan, "search", lambda _model, codes, **_: Plan((*codes,)[2:], best, reached=False))
    listener = Listener()
    settings = int8_settings(vit_onnx, tmp_path / "b", images, "openvino", min_agreement=0.9)
    record = build(settings, listener).manifest.quantization
    assert record is not None
    assert (record.min_agreement, record.reached, record.held_back) == (0.9, False, 5)
    assert (record.agreement, record.expected_agreement) == (0.6, 0.55)
    assert all(row.precision == "fp32" and "for agreement with fp32" in str(row.reason) for row in record.plan[:2])
    assert all(row.precision == "int8" and row.reason is None for row in record.plan[2:])
    assert all(row.cost is not None and row.cost > 0 for row in record.plan)
    assert any("60.0% of 5 held-back images (expected: 55.0%)" in said for said in listener.said)
    assert any(said.startswith("warning: that is short of --min-agreement 0.9") for said in listener.said)


def test_onnx_runtime_has_no_bf16(checkpoint: Path, tmp_path: Path) -> None:
    settings = BuildSettings(source=str(checkpoint), output=tmp_path / "b", runtime="onnxruntime", precision="bf16")
    with pytest.raises(UsageError, match="onnxruntime engines are built in fp32 or int8, not in bf16"):
        build(settings, Quiet())
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    settings = BuildSettings(source=str(tmp_path / "empty"), output=tmp_path / "deep" / "er" / "b")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        build(settings, Quiet())
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]


def test_an_engine_that_disagrees_is_not_left_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "compare_logits", lambda *_: Comparison(8, 0.5, 0.9, 0.8, 1.0))
    settings = BuildSettings(source=str(checkpoint), output=tmp_path / "b")
    with pytest.raises(EngineError, match=r"cosine 0.90000, not 0.9999"):
        build(settings, Quiet())
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_not_numbers_disagree(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "compare_logits", lambda *_: Comparison(8, 0.5, float("nan"), float("nan"), 1.0))
    with pytest.raises(EngineError, match="cosine nan"):
        build(BuildSettings(source=str(checkpoint), output=tmp_path / "b"), Quiet())


def test_a_bundle_is_named_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "deit").mkdir()
    assert default_path(str(tmp_path / "deit"), "fp32", "openvino").as_posix() == "engines/built/deit-fp32-openvino"
    (tmp_path / "vit-0.2").mkdir()
    assert default_path(str(tmp_path / "vit-0.2"), "fp32", "openvino").name == "vit-0.2-fp32-openvino"
    (tmp_path / "m.onnx").touch()
    assert default_path(str(tmp_path / "m.onnx"), "fp32", "openvino").name == "m-fp32-openvino"
    assert default_path("google/vit", "bf16", "openvino").as_posix() == "engines/built/google--vit-bf16-openvino"
