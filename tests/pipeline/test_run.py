"""The hot loop against a runtime whose answers are known."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from trt_vit.errors import EnvironmentFault
from trt_vit.images.preprocess import Preprocessor
from trt_vit.images.preprocessing import Preprocessing, Squash
from trt_vit.pipeline.classifier import Classifier
from trt_vit.pipeline.lanes import NOT_FINITE
from trt_vit.pipeline.run import classify
from trt_vit.pipeline.timeline import Timeline
from trt_vit.runtime.protocol import EngineStatistics, LayerTime
from trt_vit.sources.item import file_items

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from trt_vit.engine.manifest import Precision
    from trt_vit.pipeline.rows import Row
    from trt_vit.runtime.protocol import GpuLane

CLASSES = 256
LABELS = [f"grey {value}" for value in range(CLASSES)]


@dataclass
class FakeLane:
    """Answers with the grey value of each image, after a delay that differs from call to call."""

    runtime: FakeRuntime

    def infer(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        call = self.runtime.enter()
        try:
            values = pixels.mean(axis=(1, 2, 3)).round().astype(int)
            time.sleep(0.002 * (call % 3))
            if call == self.runtime.fail_at:
                raise EnvironmentFault("the device is gone", hint="restart")
            logits = np.zeros((len(pixels), CLASSES), dtype=np.float32)
            logits[np.arange(len(pixels)), values] = 10
            logits[values == self.runtime.nan_for] = np.nan
            return logits
        finally:
            self.runtime.leave()


@dataclass
class FakeRuntime:
    batch_size: int = 4
    lane_count: int = 2
    fail_at: int = -1
    nan_for: int = -1
    calls: int = 0
    running: int = 0
    most_running: int = 0
    inference_precision: Precision = "fp32"
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.lanes = [FakeLane(self) for _ in range(self.lane_count)]
        self.gpu_lanes: list[GpuLane] = []

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(layers=1, fused_attention=0, weights_bytes=0, kinds={}, precisions={}, reformats=0)

    def layer_times(self, pixels: NDArray[np.float32], seconds: float) -> list[LayerTime]:
        return [LayerTime("all", "fake", "fp32", seconds / len(pixels))]

    def enter(self) -> int:
        with self.lock:
            self.calls += 1
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            return self.calls - 1

    def leave(self) -> None:
        with self.lock:
            self.running -= 1


class ListSink:
    def __init__(self) -> None:
        self.rows: list[Row] = []

    def write(self, rows: Iterable[Row]) -> None:
        self.rows.extend(rows)

    def close(self) -> None:
        pass

    def discard(self) -> None:
        pass


def classifier(runtime: FakeRuntime, k: int = 1) -> Classifier:
    preprocessing = Preprocessing(resize=Squash(size=(8, 8)), rescale=None)
    return Classifier(Preprocessor(preprocessing, (8, 8)), (runtime,), (3, 8, 8), LABELS, k, decode_threads=3)


@pytest.fixture(scope="module")
def greys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """51 images, the i-th of which is grey of value 5 i; numbers 7 and 20 are broken."""
    directory: Path = tmp_path_factory.mktemp("greys")
    paths = []
    for number in range(51):
        path = directory / f"{number:03}.png"
        Image.new("RGB", (9, 7), (5 * number,) * 3).save(path)
        paths.append(str(path))
    (directory / "007.png").write_bytes(b"not an image")
    (directory / "020.png").write_bytes(b"")
    return paths


@pytest.mark.parametrize("batch_size", [1, 3, 4, 51, 64])
@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_every_input_gets_its_row_in_order(greys: list[str], batch_size: int, lanes: int) -> None:
    sink, seen = ListSink(), []
    summary = classify(
        file_items(greys), classifier(FakeRuntime(batch_size, lanes)), sink, lambda rows: seen.append(len(rows))
    )
    assert [row.path for row in sink.rows] == greys
    assert [row.topk[0].label if row.topk else row.error for row in sink.rows[18:23]] == [
        "grey 90",
        "grey 95",
        "empty file",
        "grey 105",
        "grey 110",
    ]
    wrong = [number for number, row in enumerate(sink.rows) if row.topk and row.topk[0].index != 5 * number]
    assert wrong == []
    assert [number for number, row in enumerate(sink.rows) if row.status == "error"] == [7, 20]
    assert (summary.images, summary.failed) == (51, 2)
    assert sum(seen) == 51


def test_lanes_run_at_the_same_time_and_no_more_than_there_are(greys: list[str]) -> None:
    runtime = FakeRuntime(batch_size=1, lane_count=2)
    classify(file_items(greys), classifier(runtime), ListSink(), lambda _rows: None)
    assert runtime.most_running == 2


def test_a_batch_of_broken_images_is_not_inferred(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"missing{number}.jpg") for number in range(9)]
    runtime, sink = FakeRuntime(), ListSink()
    summary = classify(file_items(paths), classifier(runtime), sink, lambda _rows: None)
    assert (runtime.calls, summary.failed) == (0, 9)
    assert {row.error for row in sink.rows} == {"cannot read the file: No such file or directory"}


def test_no_inputs_no_rows() -> None:
    summary = classify([], classifier(FakeRuntime()), ListSink(), lambda _rows: None)
    assert (summary.images, summary.failed, summary.images_per_second) == (0, 0, 0.0)


def test_logits_that_are_not_finite_are_errors_of_their_rows(greys: list[str]) -> None:
    sink = ListSink()
    summary = classify(file_items(greys[:6]), classifier(FakeRuntime(nan_for=10), k=3), sink, lambda _rows: None)
    assert [row.error for row in sink.rows] == [None, None, NOT_FINITE, None, None, None]
    assert [len(row.topk) for row in sink.rows] == [3, 3, 0, 3, 3, 3]
    assert summary.failed == 1


def test_a_lane_that_fails_stops_the_run_without_a_hang(greys: list[str]) -> None:
    with pytest.raises(EnvironmentFault, match="the device is gone"):
        classify(file_items(greys), classifier(FakeRuntime(batch_size=2, fail_at=5)), ListSink(), lambda _rows: None)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("decode", "lane"))]


def test_an_interrupt_drains_the_run(greys: list[str]) -> None:
    sink, seen = ListSink(), []

    def interrupt(rows: Sequence[Row]) -> None:
        seen.append(len(rows))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classify(file_items(greys), classifier(FakeRuntime(batch_size=2)), sink, interrupt)
    assert 2 < len(seen) <= 2 + 5  # the batches that had been started, and no other
    assert [row.path for row in sink.rows] == greys[: sum(seen)]


def test_every_stage_is_timed(greys: list[str]) -> None:
    summary = classify(file_items(greys), classifier(FakeRuntime()), ListSink(), lambda _rows: None)
    assert list(summary.stages) == ["read", "decode", "preprocess", "infer", "top_k", "write"]
    assert all(seconds > 0 for seconds in summary.stages.values())
    assert summary.stages["infer"] >= 0.002 * 12


def test_the_timeline_has_every_stage_of_every_batch(greys: list[str]) -> None:
    timeline = Timeline()
    summary = classify(
        file_items(greys), classifier(FakeRuntime(batch_size=4)), ListSink(), lambda _rows: None, timeline
    )
    intervals = timeline.intervals
    for stage, seconds in summary.stages.items():
        own = [interval for interval in intervals if interval.stage == stage]
        assert {interval.batch for interval in own} == set(range(13))
        assert sum(interval.end - interval.start for interval in own) == pytest.approx(seconds)
        assert len(own) == {"read": 51, "decode": 51, "preprocess": 49}.get(stage, 13)
    assert {interval.track.partition("_")[0] for interval in intervals} == {"decode", "lane", "MainThread"}
    assert all(0 <= interval.start <= interval.end for interval in intervals)
    for batch in range(13):
        loaded = max(interval.end for interval in intervals if interval.batch == batch and interval.stage == "decode")
        (inferred,) = (interval for interval in intervals if (interval.batch, interval.stage) == (batch, "infer"))
        assert loaded <= inferred.start


def test_memory_is_bounded_by_the_slots(greys: list[str]) -> None:
    """However slow the lanes are, decoding runs ahead by no more than the slots hold."""
    release, started = threading.Event(), threading.Event()
    runtime = FakeRuntime(batch_size=1, lane_count=1)
    loaded: list[str] = []

    class SlowLane:
        def infer(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            started.set()
            assert release.wait(10)
            return np.zeros((len(pixels), CLASSES), dtype=np.float32)

    class Counting(Preprocessor):
        def __call__(self, pixels: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
            loaded.append("")
            super().__call__(pixels, out)

    runtime.lanes = [SlowLane()]  # type: ignore[list-item]
    preprocessing = Preprocessing(resize=Squash(size=(8, 8)), rescale=None)
    counting = Classifier(Counting(preprocessing, (8, 8)), (runtime,), (3, 8, 8), LABELS, 1, decode_threads=3)
    run = threading.Thread(target=classify, args=(file_items(greys[21:]), counting, ListSink(), lambda _rows: None))
    run.start()
    assert started.wait(10)
    time.sleep(0.2)
    ahead = len(loaded)
    release.set()
    run.join(10)
    assert ahead == 3
    assert len(loaded) == 30
