"""Room for a batch's images, whoever asks for it and when."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.recording_device import RecordingDevice
from trt_vit.cuda.arena import Arena, aligned
from trt_vit.cuda.preprocess import SOURCE
from trt_vit.errors import OutOfDeviceMemory


def arena(images: int = 4, sure: int = 1000, shared: int = 10_000) -> tuple[RecordingDevice, Arena]:
    device = RecordingDevice()
    with device.current():
        return device, Arena(device, images, sure, shared)


@pytest.mark.parametrize(("nbytes", "taken"), [(0, 0), (1, 256), (255, 256), (256, 256), (257, 512), (1000, 1024)])
def test_what_a_reservation_takes(nbytes: int, taken: int) -> None:
    assert aligned(nbytes) == taken


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


def test_what_is_refused_takes_nothing() -> None:
    _, made = arena(images=2, sure=1000, shared=1024)
    assert made.reserve(3000) is None
    assert made.reserve(2048) == 256  # all that is shared
    assert made.reserve(1025) is None
    assert made.reserve(1024) == 256 + 2048


def test_one_image_may_take_all_that_is_shared_and_the_others_still_have_theirs() -> None:
    _, made = arena(images=4, sure=1000, shared=10_000)
    places = [made.reserve(size) for size in (1024 + 10_240, 1000, 1024, 1000)]
    assert places == [256, 11_520, 12_544, 13_568]
    assert made.host.nbytes == 13_568 + 1024


@given(
    sure=st.integers(1, 3000),
    shared=st.integers(0, 20_000),
    wanted=st.lists(st.integers(1, 9000), min_size=1, max_size=12),
)
def test_every_image_gets_what_it_is_sure_of_whatever_the_others_took(
    sure: int, shared: int, wanted: list[int]
) -> None:
    _, made = arena(len(wanted), sure, shared)
    for _ in range(2):  # the second batch finds as much room as the first
        spans = []
        for size in wanted:
            place, taken = made.reserve(size), size
            if place is None:
                assert size > sure
                place, taken = made.reserve(sure), sure
            assert place is not None
            assert place % 256 == 0
            spans.append((place, place + taken))
        assert spans[0][0] >= len(wanted) * SOURCE.itemsize
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
        assert spans[-1][1] <= made.host.nbytes
        made.clear()


def test_threads_that_all_ask_for_too_much_at_once_still_get_what_they_are_sure_of() -> None:
    threads = 8
    begin = threading.Barrier(threads)
    _, made = arena(images=threads, sure=1024, shared=3 * 4096)

    def ask(_thread: int) -> tuple[int, int]:
        begin.wait()
        place = made.reserve(1024 + 4096)
        if place is not None:
            return place, place + 1024 + 4096
        begin_sure = made.reserve(1024)
        assert begin_sure is not None
        return begin_sure, begin_sure + 1024

    for _ in range(50):
        with ThreadPoolExecutor(threads) as pool:
            spans = sorted(pool.map(ask, range(threads)))
        assert sorted(end - start for start, end in spans) == [1024] * 5 + [5120] * 3
        assert all(end == start for (_, end), (start, _) in pairwise(spans))  # nothing is lost between them
        assert (spans[0][0], spans[-1][1]) == (512, made.host.nbytes)
        made.clear()


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
        assert made.host[: made.sources.nbytes].ctypes.data == made.sources.ctypes.data
    assert f"to device {256 + 768}" in device.log
    assert (device.memory_at(made.memory.address).data[place : place + 600] == 9).all()


def test_what_is_beyond_stays_as_it_was_on_the_gpu() -> None:
    device, made = arena()
    undefined = device.memory_at(made.memory.address).data.copy()
    made.host[:] = np.arange(made.host.size) % 251
    with device.current():
        stream, done = device.stream(), device.event()
        assert made.reserve(700) == 256
        made.copy_to_device(stream)
        stream.record(done)
        done.synchronize()
    data = device.memory_at(made.memory.address).data
    assert np.array_equal(data[: 256 + 768], made.host[: 256 + 768])
    assert np.array_equal(data[256 + 768 :], undefined[256 + 768 :])


def test_of_a_batch_without_images_only_the_descriptions_are_copied() -> None:
    device, made = arena()
    made.reserve(5000)
    made.clear()
    with device.current():
        made.copy_to_device(device.stream())
    assert device.log[-1] == "to device 256"


def test_too_little_memory() -> None:
    device = RecordingDevice()
    device.limit = 5000
    with device.current(), pytest.raises(OutOfDeviceMemory):
        Arena(device, 4, 1000, 10_000)
