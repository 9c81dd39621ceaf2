from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from tests.support.recording_device import RecordingDevice
from trt_vit.cuda.arena import Arena, aligned
from trt_vit.cuda.preprocess import SOURCE
from trt_vit.errors import OutOfDeviceMemory


def arena(images: int = 4, sure: int = 1000, shared: int = 10_000) -> tuple[RecordingDevice, Arena]:
    device = RecordingDevice()
    with device.current():
        return device, Arena(device, images, sure, shared)


def test_it_is_as_large_on_the_host_as_on_the_gpu() -> None:
    _, made = arena()
    assert made.host.nbytes == made.memory.nbytes == aligned(4 * SOURCE.itemsize) + 4 * 1024 + aligned(10_000)
    assert made.sources.dtype == SOURCE
    assert made.sources.shape == (4,)


def test_places_are_aligned_and_behind_the_descriptions() -> None:
    _, made = arena()
    assert [made.reserve(size) for size in (1, 257, 1000)] == [256, 512, 1024]


def test_what_is_beyond_the_sure_bytes_is_shared() -> None:
    _, made = arena()
    assert made.reserve(8000) is not None
    assert made.reserve(8000) is None
    assert made.reserve(3000) is not None
    assert [made.reserve(1000) is not None for _ in range(2)] == [True, True]  # sure of that much
    made.clear()
    assert made.reserve(8000) == 256


def test_threads_get_places_that_do_not_overlap() -> None:
    _, made = arena(images=200, sure=500, shared=100_000)
    sizes = random.Random(0).choices(range(1, 4000), k=200)  # noqa: S311 - no secret

    def reserve(size: int) -> tuple[int, int]:
        place = made.reserve(size)
        if place is None:
            size = min(size, 500)
            place = made.reserve(size)
        assert place is not None
        return place, place + size

    with ThreadPoolExecutor(8) as pool:
        spans = sorted(pool.map(reserve, sizes))
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
    assert spans[-1][1] <= made.host.nbytes


def test_only_what_is_used_is_copied() -> None:
    device, made = arena()
    with device.current():
        stream, done = device.stream(), device.event()
        place = made.reserve(600)
        assert place is not None
        made.host[place : place + 600] = 9
        made.copy_to_device(stream)
        stream.record(done)
        done.synchronize()
    assert f"to device {256 + 768}" in device.log
    assert (device.memory_at(made.memory.address).data[place : place + 600] == 9).all()


def test_too_little_memory() -> None:
    device = RecordingDevice()
    device.limit = 5000
    with device.current(), pytest.raises(OutOfDeviceMemory):
        Arena(device, 4, 1000, 10_000)
