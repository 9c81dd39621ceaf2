"""Measuring lanes whose speed is known."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.test_run import CLASSES, FakeRuntime, classifier
from trt_vit.errors import EnvironmentFault
from trt_vit.profile.latency import throughput_of
from trt_vit.profile.measure import LONGEST, measure_engine, measure_pipeline

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class Sleeper:
    """A lane that takes so long for a batch."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.calls = 0
        self.fails_at = -1

    def infer(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        self.calls += 1
        if self.calls == self.fails_at:
            raise EnvironmentFault("the device is gone", hint="restart")
        time.sleep(self.seconds)
        return np.zeros((len(pixels), CLASSES), dtype=np.float32)


def sleeping(lanes: int, seconds: float = 0.02) -> FakeRuntime:
    runtime = FakeRuntime(batch_size=4)
    runtime.lanes = [Sleeper(seconds) for _ in range(lanes)]  # type: ignore[misc]
    return runtime


@pytest.mark.parametrize("lanes", [1, 3])
def test_an_engine_alone(lanes: int) -> None:
    runtime = sleeping(lanes)
    found = measure_engine(classifier(runtime), 0.5)
    assert found.seconds >= 0.5
    assert all(end - begin >= 0.02 for begin, end in found.spans)
    assert {interval.track for interval in found.intervals} == {f"lane {number}" for number in range(lanes)}
    assert found.images == [4] * len(found.spans)
    # Sleep is at least as long as it should be: there is only one side to be on.
    assert throughput_of(found.spans, found.images, found.seconds).mean <= 4 * lanes / 0.02 * 1.05
    assert len(found.spans) >= lanes
    assert all(lane.calls > 3 for lane in runtime.lanes)  # type: ignore[attr-defined]


@pytest.mark.parametrize("fails_at", [1, 8])
def test_a_lane_that_fails_ends_it(fails_at: int) -> None:
    runtime = sleeping(2, 0.005)
    runtime.lanes[1].fails_at = fails_at  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentFault, match="the device is gone"):
        measure_engine(classifier(runtime), 0.5)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]


def interrupt_after(seconds: float) -> threading.Timer:
    """Interrupt the main thread, as Ctrl-C does."""
    timer = threading.Timer(seconds, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    timer.start()
    return timer


def test_an_engine_that_a_person_stops() -> None:
    runtime = sleeping(2)
    timer = interrupt_after(0.6)
    found = measure_engine(classifier(runtime), 1.0)
    timer.join()
    assert found.stopped
    assert 0 < found.seconds < 1.0
    assert len(found.spans) > 2


def test_a_pipeline_that_a_person_stops(tmp_path: Path) -> None:
    Image.new("RGB", (9, 7)).save(tmp_path / "a.png")
    timer = interrupt_after(0.8)
    found = measure_pipeline(classifier(sleeping(2)), [str(tmp_path / "a.png")], 60.0)
    timer.join()
    assert found.stopped
    assert 0 < found.seconds < 60
    assert found.images[0] == 4


def test_an_uneven_engine_is_measured_for_longer() -> None:
    runtime = sleeping(1, 0.001)
    lane: Any = runtime.lanes[0]
    steady, begin = lane.infer, time.perf_counter()

    def slower_and_slower(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        time.sleep((time.perf_counter() - begin) / 50)
        logits: NDArray[np.float32] = steady(pixels)
        return logits

    lane.infer = slower_and_slower
    found = measure_engine(classifier(runtime), 0.3)
    assert found.seconds >= LONGEST * 0.3
    assert not found.stopped


def test_the_whole_pipeline(tmp_path: Path) -> None:
    paths = []
    for number in range(5):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", (9, 7), (number,) * 3).save(paths[-1])
    paths.append(str(tmp_path / "none.png"))
    found = measure_pipeline(classifier(sleeping(2)), paths, 0.5)
    count = sum(found.images)
    assert count % 4 in {0, 1, 2, 3}
    assert found.failed == pytest.approx(count / 6, abs=1)
    assert len(found.spans) == len(found.images) == -(-count // 4)
    stages = {interval.stage for interval in found.intervals}
    assert stages == {"read", "decode", "preprocess", "infer", "top_k", "write"}
    assert all(end - begin >= 0.02 for begin, end in found.spans)
    assert found.cpu_seconds > 0
