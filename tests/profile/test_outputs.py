"""Traces, comparisons and reports of a profile."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from trt_vit.errors import UsageError
from trt_vit.pipeline.timeline import Interval, overlap
from trt_vit.profile.clocks import GpuClocks
from trt_vit.profile.compare import OldPoint, compare_points, read_points
from trt_vit.profile.diagnose import Workload, diagnose
from trt_vit.profile.latency import Throughput, latency_of
from trt_vit.profile.layers import LayerGroup, group_layers
from trt_vit.profile.report import histogram, profile_report, waterfall
from trt_vit.profile.sweep import Point, Profile
from trt_vit.profile.trace import write_trace
from trt_vit.runtime.protocol import LayerTime

if TYPE_CHECKING:
    from pathlib import Path

INTERVALS = [
    Interval(f"lane <{batch % 2}>", batch, stage, batch + offset, batch + offset + 0.4)
    for batch in range(20)
    for stage, offset in (("decode", 0.0), ("infer", 0.5))
]


LAYERS = [
    LayerTime("a", "gemm", "int8", 0.003),
    LayerTime("<b>", "kgen", "fp16", 0.001),
    LayerTime("c", "gemm", "int8", 0.004),
]


def point(mean: float = 100.0, noise: float = 0.01, batch_size: int = 8, lanes: int = 2) -> Point:
    workload = Workload(lanes, 2, 2, on_gpu=False)
    return Point(
        batch_size=batch_size,
        lanes=lanes,
        images=160,
        seconds=20.0,
        throughput=Throughput(mean, noise * 3, noise, stable=True, doubt=None),
        latency=latency_of([(0.0, 0.01), (0.0, 0.02)]),
        diagnosis=diagnose(INTERVALS, 20.0, 5.0, workload, "fp32"),
        overlap=overlap(INTERVALS),
        peak_memory_bytes=1 << 28,
        failed=0,
        gpus=[],
    )


def profile(*points: Point) -> Profile:
    spans = [(0.0, 0.01 * number) for number in range(1, 50)]
    return Profile(
        "<bundle>", "openvino", "int8", "int8", True, list(points), INTERVALS, spans, LAYERS, [], stopped=False
    )


def test_a_trace_has_a_track_for_each_and_a_slice_for_each_stage(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.json", INTERVALS)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert sorted(names.values()) == ["lane <0>", "lane <1>"]
    slices = [event for event in events if event["ph"] == "X"]
    assert len(slices) == len(INTERVALS)
    assert slices[3] == {
        "ph": "X",
        "pid": 1,
        "tid": next(number for number, name in names.items() if name == "lane <1>"),
        "name": "infer",
        "cat": "stage",
        "ts": 1.5e6,
        "dur": pytest.approx(0.4e6),
        "args": {"batch": 1},
    }


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [(100, 101, "the same"), (100, 110, "faster"), (100, 90, "slower"), (100, 97.3, "the same")],
)
def test_what_is_within_the_noise_is_the_same(before: float, after: float, verdict: str) -> None:
    (change,) = compare_points([OldPoint(8, 2, before, 0.01)], [point(after)])
    assert change.verdict == verdict
    assert change.ratio == pytest.approx(after / before)
    assert change.noise == pytest.approx(2 * 0.01 * 2**0.5)


def test_only_points_that_both_have_are_compared() -> None:
    old = [OldPoint(8, 2, 50.0, 0.1), OldPoint(1, 2, 9.0, 0.1), OldPoint(4, 2, 0.0, 0.0)]
    assert [
        change.batch_size for change in compare_points(old, [point(), point(batch_size=16), point(batch_size=4)])
    ] == [8]


def test_an_earlier_document_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    rows = [{"batch_size": 8, "lanes": 2, "throughput": {"mean": 5.0, "noise": 0.5, "spread": 1}, "else": 1}]
    file.write_text(json.dumps({"points": rows}))
    assert read_points(file) == [OldPoint(8, 2, 5.0, 0.5)]


@pytest.mark.parametrize("text", ["", "[]", '{"points": [{}]}', '{"points": 3}', '{"points": [{"batch_size": 1}]}'])
def test_what_is_no_such_document(tmp_path: Path, text: str) -> None:
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(UsageError, match="is not the document of a profile"):
        read_points(tmp_path / "old.json")


def test_no_document(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none.json: No such file"):
        read_points(tmp_path / "none.json")


def test_a_waterfall_is_of_a_few_batches_from_the_middle() -> None:
    found = waterfall(INTERVALS)
    assert sorted({interval.batch for interval in found.intervals}) == [7, 8, 9, 10, 11, 12]
    assert [found.begin, found.seconds] == pytest.approx([7.0, 5.9])
    assert found.tracks == ["lane <0>", "lane <1>"]
    assert waterfall([]).tracks == []


def test_a_histogram_has_every_batch() -> None:
    rows = histogram([(0.0, 0.01), (1.0, 1.03), (2.0, 2.03)])
    assert sum(count for _, _, count in rows) == 3
    assert [rows[0][0], rows[-1][1]] == pytest.approx([10, 30])
    assert histogram([]) == []


def test_the_report_has_the_figures_and_escapes_names() -> None:
    doubtful = replace(
        point(50.0, batch_size=1), throughput=Throughput(50.0, 0.5, 0.2, stable=False, doubt="too <short>")
    )
    changes = compare_points([OldPoint(8, 2, 50.0, 0.01)], [point()])
    text = profile_report(profile(doubtful, point()), {"cores": 2, "processor": "<cpu>"}, changes)
    for expected in (
        "&lt;bundle&gt;",
        "lane &lt;0&gt;",
        "too &lt;short&gt;",
        "&lt;cpu&gt;",
        "100.0 images/s",
        "2.000",
        "faster",
    ):
        assert expected in text
    for forbidden in ("<bundle>", "<cpu>", "<script", "http://", "https://"):
        assert forbidden not in text


def test_a_report_of_one_point_alone() -> None:
    alone = replace(profile(point()), end_to_end=False, stopped=False, intervals=[], spans=[])
    assert "the engine alone" in profile_report(alone, {}, [])


def test_layers_are_grouped_by_kind_and_precision() -> None:
    products, other = group_layers(LAYERS)
    assert (products.kind, products.precision, products.layers) == ("gemm", "int8", 2)
    assert (products.seconds, products.share) == pytest.approx((0.007, 0.875))
    assert other == LayerGroup("kgen", "fp16", 1, 0.001, 0.125)
    assert group_layers([]) == []


def test_the_report_has_layers_and_gpus() -> None:
    clocks = GpuClocks(1, 9, (1700, 1900.0, 1980), 2619.0, 350.0, 0.9, 61, {"power limit": 0.25})
    found = replace(profile(replace(point(), gpus=[clocks])), notes=["no <b>clocks</b>"])
    html = profile_report(found, {}, [])
    for text in ("87.5 %", "&lt;b&gt;", "1700", "1980", "350", "power limit 25 %", "no &lt;b&gt;clocks&lt;/b&gt;"):
        assert text in html
    assert "<b>" not in html
