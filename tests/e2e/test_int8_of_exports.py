"""INT8 of ONNX files that others have exported: decomposed operators, separate projections, older operator sets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.checkpoints import random_checkpoint
from tests.support.graphs import EXPORTERS, export
from trt_vit.cli import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.parametrize("exporter", [name for name in EXPORTERS if name != "own"])
@pytest.mark.parametrize("architecture", ["vit", "dinov2"])
def test_an_export_becomes_an_int8_engine(
    architecture: str, exporter: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = random_checkpoint(architecture, tmp_path / "checkpoint")
    model = export(architecture, checkpoint, exporter, tmp_path / "model.onnx")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"class {index}" for index in range(7)), encoding="utf-8")
    command = ["build-engine", str(model), "-o", str(tmp_path / "bundle"), "--runtime", "openvino", "--json"]
    described = ["--preprocessor", str(checkpoint / "preprocessor_config.json"), "--labels", str(labels)]
    quantized = ["--precision", "int8", "--calibration", str(images), "--min-agreement", "0"]
    assert run([*command, *described, *quantized]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["left_out"] == {}
    assert document["int8_coverage"] == pytest.approx(1)
    assert document["against_fp32"]["cosine"] > 0.99
    # Queries, keys and values are one product, whoever exported them: four layers in each of two, patches, classifier.
    assert len(document["plan"]) == 10
    normalized = [row for row in document["plan"] if row["equalized"]]
    assert len(normalized) > 5
