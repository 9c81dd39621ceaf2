"""Batches that come from the host and go back there, on a lane of a recording device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support.emulated_gpu import EmulatedRuntime
from trt_vit.errors import EnvironmentFault, OutOfDeviceMemory
from trt_vit.runtime.roundtrip import Roundtrip

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPE, CLASSES, LARGEST = (3, 2, 2), 4, 4
IMAGE_BYTES, ROW_BYTES = 4 * 3 * 2 * 2, 4 * CLASSES


def engine(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    sums: NDArray[np.float32] = pixels.reshape(len(pixels), -1).sum(axis=1, keepdims=True) * np.arange(1, CLASSES + 1)
    return sums.astype(np.float32)


class Bench:
    """A lane, and the pinned memory for its batches."""

    def __init__(self, room: int = LARGEST) -> None:
        self.runtime = EmulatedRuntime(engine, SHAPE, CLASSES, batch_size=LARGEST, lane_count=1, room=room)
        self.device = self.runtime.device
        self.lane = self.runtime.lanes[0]
        with self.device.current():
            self.roundtrip = Roundtrip(self.device, (LARGEST, *SHAPE), CLASSES)
        self.device.log.clear()

    def run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with self.device.current():
            return self.roundtrip.run(self.lane, pixels)


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def test_only_the_images_that_there_are_go_there_and_back() -> None:
    bench = Bench()
    for count in (4, 1, 3):
        bench.device.log.clear()
        np.testing.assert_allclose(bench.run(images(count, count)), engine(images(count, count)), rtol=1e-5)
        assert bench.device.log == [
            f"to device {count * IMAGE_BYTES}",
            f"infer {count}",
            f"to host {count * ROW_BYTES}",
            "record",
            "wait",
        ]
    assert bench.device.races() == []


def test_logits_stay_valid_after_the_next_batch() -> None:
    bench = Bench()
    first = bench.run(images(4))
    kept = first.copy()
    bench.run(images(4, 1))
    assert np.array_equal(first, kept)


def test_without_its_wait_there_would_be_no_logits() -> None:
    bench = Bench()
    bench.device.forgotten = ("host", 0)
    assert not bench.run(images(4)).any()
    assert bench.device.waits == {"stream": 0, "host": 1}


@pytest.mark.parametrize("shape", [(LARGEST + 1, *SHAPE), (2, 3, 2, 3), (2, 3, 2), (2, 1, 2, 2)])
def test_what_there_is_no_room_for_never_reaches_the_device(shape: tuple[int, ...]) -> None:
    bench = Bench()
    with pytest.raises(EnvironmentFault, match="no room for a batch of the shape") as caught:
        bench.run(np.zeros(shape, dtype=np.float32))
    assert str(shape) in caught.value.message
    assert str((LARGEST, *SHAPE)) in caught.value.message
    assert "--batch-size" in caught.value.hint
    assert bench.device.log == []


def test_after_a_batch_that_was_out_of_memory_a_smaller_one_runs() -> None:
    bench = Bench(room=2)
    with pytest.raises(OutOfDeviceMemory):
        bench.run(images(4))
    np.testing.assert_allclose(bench.run(images(2, 1)), engine(images(2, 1)), rtol=1e-5)
