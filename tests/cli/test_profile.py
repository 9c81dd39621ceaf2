from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from trt_vit.cli import run

if TYPE_CHECKING:
    from pathlib import Path

    from trt_vit.engine.bundle import Bundle


def test_a_sweep_and_what_has_changed_since(
    openvino_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["profile", str(openvino_bundle.path), "--batch-sizes", "1, 4", "--lanes", "1,2", "--duration", "0.3"]
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(point["batch_size"], point["lanes"]) for point in document["points"]] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert (document["runtime"], document["end_to_end"], document["changes"]) == ("openvino", False, [])
    assert document["environment"]["cores"] >= 1
    for point in document["points"]:
        assert point["throughput"]["mean"] > 0
        latency = point["latency"]
        order = [latency[name] for name in ("min", "p50", "p90", "p95", "p99", "max")]
        assert order == sorted(order)
        assert point["images"] == point["batch_size"] * latency["count"]
        assert point["peak_memory_bytes"] > 1 << 20
    old, report, trace = tmp_path / "old.json", tmp_path / "report.html", tmp_path / "trace.json"
    old.write_text(json.dumps(document))
    more = ["--compare", str(old), "--report", str(report), "--trace", str(trace)]
    assert run([*arguments, *more]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split()[0] for line in lines[:6]] == [
        "bundle",
        "runtime",
        "precision",
        "runs_in",
        "end_to_end",
        "points",
    ]
    assert lines[6].split()[:3] == ["batch", "lanes", "images/s"]
    assert [line.split()[:2] for line in lines[7:11]] == [["1", "1"], ["1", "2"], ["4", "1"], ["4", "2"]]
    assert lines[11] == "changes"
    assert f"wrote {report}" in captured.err
    assert "Against an earlier run" in report.read_text(encoding="utf-8")
    assert json.loads(trace.read_text())["traceEvents"]


def test_end_to_end(openvino_bundle: Bundle, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["profile", str(openvino_bundle.path), "--images", str(images), "--duration", "0.3", "--json"]
    assert run(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["end_to_end"]
    (point,) = document["points"]
    assert set(point["overlap"]["busy"]) == {"read", "decode", "preprocess", "infer", "top_k", "write"}
    assert set(point["diagnosis"]["queues"]) == {"for the engine", "to be written"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-sizes", "9"], "outside what"),
        (["--batch-sizes", "0"], "not a list of numbers"),
        (["--lanes", "two"], "not a list of numbers"),
        (["--duration", "0"], "--duration"),
        (["--images", "no-such-place"], "no such file or directory"),
        (["--compare", "none.json"], "cannot read none.json"),
        (["--report", "r.txt"], "a report is HTML"),
    ],
)
def test_what_is_wrong(
    openvino_bundle: Bundle, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["profile", str(openvino_bundle.path), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
