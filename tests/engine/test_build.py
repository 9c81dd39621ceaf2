from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from trt_vit.checkpoint.load import to_onnx
from trt_vit.config import BuildSettings
from trt_vit.engine import build as building
from trt_vit.engine.build import build, default_path
from trt_vit.engine.compare import Comparison
from trt_vit.engine.describe import describe
from trt_vit.errors import EngineError, UsageError
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.runtime.registry import open_runtime

if TYPE_CHECKING:
    from pathlib import Path

    from trt_vit.engine.bundle import Bundle


def test_the_manifest_tells_where_everything_came_from(checkpoint: Path, openvino_bundle: Bundle) -> None:
    manifest = openvino_bundle.manifest
    assert (manifest.runtime, manifest.precision, str(manifest.batch)) == ("openvino", "fp32", "1,4,8")
    assert manifest.checkpoint.source == str(checkpoint)
    assert (manifest.checkpoint.kind, manifest.checkpoint.revision) == ("directory", None)
    assert manifest.checkpoint.architecture == "ViTForImageClassification"
    assert (manifest.model.height, manifest.model.width, manifest.model.classes) == (32, 32, 7)
    assert manifest.export.max_abs_difference is not None
    assert manifest.export.max_abs_difference < 1e-4
    assert manifest.engine.agreement == 1.0
    assert manifest.engine.max_abs_difference < 1e-4
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


def test_an_onnx_file_builds_without_further_flags(checkpoint: Path, openvino_bundle: Bundle, tmp_path: Path) -> None:
    to_onnx(str(checkpoint), tmp_path / "m.onnx")
    settings = BuildSettings(source=str(tmp_path / "m.onnx"), output=tmp_path / "b", runtime="onnxruntime")
    bundle = build(settings, lambda _phase: None)
    assert bundle.manifest.checkpoint.kind == "onnx"
    assert bundle.labels() == openvino_bundle.labels()
    assert bundle.preprocessing() == openvino_bundle.preprocessing()


def test_onnx_runtime_has_no_bf16(checkpoint: Path, tmp_path: Path) -> None:
    settings = BuildSettings(source=str(checkpoint), output=tmp_path / "b", runtime="onnxruntime", precision="bf16")
    with pytest.raises(UsageError, match="no bf16 kernels"):
        build(settings, lambda _phase: None)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_disagrees_is_not_left_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "compare_logits", lambda *_: Comparison(0.5, 0.9, 1.0))
    settings = BuildSettings(source=str(checkpoint), output=tmp_path / "b")
    with pytest.raises(EngineError, match=r"cosine 0.90000, not 0.9999"):
        build(settings, lambda _phase: None)
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_not_numbers_disagree(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "compare_logits", lambda *_: Comparison(0.5, float("nan"), 1.0))
    with pytest.raises(EngineError, match="cosine nan"):
        build(BuildSettings(source=str(checkpoint), output=tmp_path / "b"), lambda _phase: None)


def test_a_bundle_is_named_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "deit").mkdir()
    assert default_path(str(tmp_path / "deit"), "fp32", "openvino").as_posix() == "engines/built/deit-fp32-openvino"
    assert default_path("google/vit", "bf16", "openvino").as_posix() == "engines/built/google--vit-bf16-openvino"
