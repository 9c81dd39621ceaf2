"""The metrics file, read back by the parser of prometheus-client."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any

import pytest

from trt_vit.errors import EnvironmentFault, OutputError
from trt_vit.pipeline import metrics as module
from trt_vit.pipeline.metrics import MetricsFile
from trt_vit.pipeline.rows import Row
from trt_vit.pipeline.run import Summary

if TYPE_CHECKING:
    from pathlib import Path

GOOD, BAD = Row("a", None, ()), Row("b", "broken", ())
FACTS = {"bundle": 'a "bundle"\n', "runtime": "openvino"}


def samples(file: Path) -> dict[tuple[str, tuple[str, ...]], float]:
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    families = parser.text_string_to_metric_families(file.read_text(encoding="utf-8"))
    return {
        (sample.name, tuple(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def test_a_run(tmp_path: Path) -> None:
    file = tmp_path / "run.prom"
    metrics = MetricsFile(file, FACTS, 10, 3)
    found = samples(file)
    assert found["trt_vit_run_info", tuple(FACTS.values())] == 1
    assert found["trt_vit_images_total", ("ok",)] == found["trt_vit_ended", ()] == 0
    assert (found["trt_vit_images_planned", ()], found["trt_vit_images_resumed_total", ()]) == (10, 3)
    metrics.add([GOOD, BAD, GOOD])
    metrics.add([GOOD])
    assert samples(file)["trt_vit_images_total", ("ok",)] == 0  # not due yet
    metrics.ran(Summary(4, 1, 2.0, {"decode": 1.5, "infer": 0.5}))
    assert samples(file)["trt_vit_ended", ()] == 0  # the output is not there yet
    metrics.finish()
    found = samples(file)
    assert (found["trt_vit_images_total", ("ok",)], found["trt_vit_images_total", ("error",)]) == (3, 1)
    assert found["trt_vit_stage_seconds_total", ("decode",)] == 1.5
    assert found["trt_vit_ended", ()] == 1
    assert found["trt_vit_updated_seconds", ()] >= found["trt_vit_started_seconds", ()] > 1e9
    assert [path.name for path in tmp_path.iterdir()] == ["run.prom"]


def test_a_name_that_is_no_text_is_spelled_out(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "run.prom", {"bundle": "a\udcff"}, 10, 3)
    assert samples(tmp_path / "run.prom")["trt_vit_run_info", ("a\\xff",)] == 1


def test_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    metrics = MetricsFile(tmp_path / "run.prom", FACTS, None, 0)
    metrics.add([BAD])
    found = samples(tmp_path / "run.prom")
    assert found["trt_vit_images_total", ("error",)] == 1
    assert ("trt_vit_images_planned", ()) not in found


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"run\.prom"):
        MetricsFile(tmp_path / "file" / "run.prom", FACTS, 1, 0)


def test_a_disk_that_fills_up_is_for_the_results_to_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    metrics = MetricsFile(tmp_path / "a" / "run.prom", FACTS, 1, 0)
    (tmp_path / "a" / "run.prom").unlink()
    (tmp_path / "a").rmdir()
    (tmp_path / "a").touch()
    metrics.add([GOOD])
    metrics.ran(Summary(1, 0, 1.0, {}))
    with pytest.raises(OutputError):
        metrics.finish()


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("prometheus_client"):
            raise ImportError("no module")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(EnvironmentFault, match="needs prometheus-client") as caught:
        MetricsFile(tmp_path / "run.prom", FACTS, 1, 0)
    assert "trt-vit[metrics]" in caught.value.hint
