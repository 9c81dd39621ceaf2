"""Every architecture, from its checkpoint to result rows, against Hugging Face on the same files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from tests.support.checkpoints import ARCHITECTURES, random_checkpoint
from trt_vit.cli import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_equal_hugging_face(architecture: str, images: Path, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(architecture, tmp_path / architecture)
    bundle, output = tmp_path / "bundle", tmp_path / "rows.jsonl"
    assert run(["build-engine", str(checkpoint), "-o", str(bundle), "--runtime", "openvino"]) == 0
    assert run(["classify", str(bundle), str(images), "-o", str(output), "--top-k", "7"]) == 0
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]

    processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    model = AutoModelForImageClassification.from_pretrained(checkpoint).eval()
    pictures = [Image.open(row["path"]).convert("RGB") for row in rows]
    with torch.inference_mode():
        expected = model(**processor(pictures, return_tensors="pt")).logits.softmax(-1).numpy()
    probabilities = np.zeros_like(expected)
    for row, values in zip(rows, probabilities, strict=True):
        values[[item["index"] for item in row["topk"]]] = [item["probability"] for item in row["topk"]]
    assert type(processor).__name__.endswith("Pil")
    assert len(rows) == 11
    assert expected.std(axis=0).max() > 1e-3  # the images are told apart
    np.testing.assert_allclose(probabilities, expected, atol=2e-5)


def build_int8(
    architecture: str, runtime: str, images: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """Build an engine and return what the command line says of it.

    Agreement is not asked for: random weights have no margins.
    """
    checkpoint = random_checkpoint(architecture, root / architecture)
    command = ["build-engine", str(checkpoint), "-o", str(root / "bundle"), "--runtime", runtime, "--json"]
    calibration = ["--calibration", str(images), "--calibration-images", "11", "--min-agreement", "0"]
    assert run([*command, "--precision", "int8", *calibration]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_int8_for_tensorrt(architecture: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx_libs", reason="needs TensorRT for RTX: pip install 'trt-vit[rtx]'")
    document = build_int8(architecture, "tensorrt-rtx", images, tmp_path, capsys)
    attentions = 3 if architecture == "swin" else 2
    assert document["fused_attention_expected"] == attentions
    left_out = [row for row in document["plan"] if row["reason"] is not None]
    assert all("an attention's output" in row["reason"] for row in left_out)
    assert len(left_out) == attentions
    share = 1 - sum(row["macs"] for row in left_out) / sum(row["macs"] for row in document["plan"])
    assert document["int8_coverage"] == pytest.approx(share, abs=0.01)
    assert share > 0.8
    assert document["against_fp32"]["cosine"] > 0.99
    # TensorRT does not fuse the attention of Swin's windows.
    assert document["fused_attention"] == (0 if architecture == "swin" else attentions)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_int8_for_openvino(architecture: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = build_int8(architecture, "openvino", images, tmp_path, capsys)
    assert document["left_out"] == {}
    assert document["int8_coverage"] > 0.9
    assert (document["against_fp32"]["measured_on"], document["against_fp32"]["measured_in"]) == ("engine", "int8")
    assert document["against_fp32"]["cosine"] > 0.99
