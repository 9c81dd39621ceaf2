from __future__ import annotations

import json
from typing import TYPE_CHECKING

from trt_vit.cli import run

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from trt_vit.engine.bundle import Bundle


def test_a_document(
    openvino_bundle: Bundle, onnxruntime_bundle: Bundle, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(openvino_bundle.path), str(onnxruntime_bundle.path), "--data", str(images), "--json"]
    assert run(arguments) == 0
    engines = json.loads(capsys.readouterr().out)["engines"]
    assert [engine["bundle"] for engine in engines] == arguments[1:3]
    for engine in engines:
        assert (engine["precision"], engine["images"], engine["failed"], engine["agreement"]) == ("fp32", 11, 0, 1.0)
        assert 0 <= engine["top1"] <= engine["top5"] <= 1
        low, high = engine["top1_ci95"]
        assert low < engine["top1"] < high or engine["top1"] in {0, 1}
        assert sum(row["images"] for row in engine["classes"]) == 11
        assert engine["mean_cosine"] > 0.9999


def test_a_table_and_a_report(
    openvino_bundle: Bundle, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.html"
    arguments = ["evaluate", str(openvino_bundle.path), "--data", str(images), "--limit", "5", "--report", str(report)]
    assert run(arguments) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split() == ["labels", "3", "folders"]
    assert lines[2].split()[:4] == ["bundle", "precision", "images", "failed"]
    assert lines[3].split()[:4] == [str(openvino_bundle.path), "fp32", "5", "0"]
    assert captured.err.splitlines() == ["evaluating", f"wrote {report}"]
    assert "<title>trt_vit evaluation</title>" in report.read_text(encoding="utf-8")


def test_what_is_wrong(
    openvino_bundle: Bundle, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(openvino_bundle.path)
    (images / "kind 2").exists()
    for arguments, code, message in [
        (["--data", str(tmp_path / "none")], 2, "no such directory"),
        (["--data", str(images), "--report", "r.pdf"], 2, "a report is HTML"),
        (["--data", str(images), "--labels", str(tmp_path / "none.txt")], 2, "no such file"),
        (["--data", str(images / "kind 0")], 1, "nothing says what the images"),
        ([], 2, "--data"),
    ]:
        assert run(["evaluate", bundle, *arguments]) == code
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error
