"""The recorder itself: it finds what is missing, and nothing where nothing is."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tests.support.recording_device import Access, RecordingDevice, reads, writes
from trt_vit.cuda import topk
from trt_vit.errors import EnvironmentFault, OutOfDeviceMemory


def two_streams(*, held_up: bool) -> RecordingDevice:
    """One stream writes to memory that the other reads."""
    device = RecordingDevice()
    with device.current():
        writer, reader, written, read = device.stream(), device.stream(), device.event(), device.event()
        source, target = device.pinned((10,), "float32"), device.pinned((10,), "float32")
        source[:] = 3
        memory = device.allocate(source.nbytes)
        writer.copy_to_device(memory, source)
        writer.record(written)
        if held_up:
            reader.wait(written)
        reader.copy_to_host(target, memory)
        reader.record(read)
        read.synchronize()
        assert (target == 3).all() == held_up  # work is done as late as it may be
    return device


def test_what_an_event_orders_is_no_race() -> None:
    assert two_streams(held_up=True).races() == []


def test_what_nothing_orders_is_a_race() -> None:
    (race,) = two_streams(held_up=False).races()
    assert set(race.split(" and ")) == {"to device 40", "to host 40"}


@pytest.mark.parametrize("waits", [True, False])
def test_the_host_races_too(*, waits: bool) -> None:
    device = RecordingDevice()
    with device.current():
        stream, done = device.stream(), device.event()
        source = device.pinned((10,), "uint8")
        stream.copy_to_device(device.allocate(10), source)
        stream.record(done)
        if waits:
            done.synchronize()
        device.host_touches(source, write=True)
    assert (device.races() == []) == waits


@pytest.mark.parametrize("waits", [True, False])
def test_the_host_that_reads_before_it_has_waited_reads_nothing_and_is_found(*, waits: bool) -> None:
    device = RecordingDevice()
    with device.current():
        stream, done = device.stream(), device.event()
        source, target = device.pinned((10,), "uint8"), device.pinned((10,), "uint8")
        source[:] = 5
        memory = device.allocate(10)
        stream.copy_to_device(memory, source)
        stream.copy_to_host(target, memory)
        stream.record(done)
        if waits:
            done.synchronize()
        device.host_touches(target, write=False)
        assert target.tolist() == [5 if waits else 0] * 10
    assert device.races() == ([] if waits else ["the host and to host 10"])
    assert target.tolist() == [5] * 10


def test_an_event_says_nothing_of_what_comes_after_it() -> None:
    device = RecordingDevice()
    with device.current():
        stream, done = device.stream(), device.event()
        early, late = device.pinned((4,), "uint8"), device.pinned((4,), "uint8")
        stream.copy_to_host(early, device.allocate(4))
        stream.record(done)
        stream.copy_to_host(late, device.allocate(4))
        done.synchronize()
        assert early.any()
        assert not late.any()
        device.host_touches(early, write=False)
        device.host_touches(late, write=False)
    assert len(device.races()) == 1


def test_an_event_that_is_recorded_again_is_waited_for_as_it_was() -> None:
    device = RecordingDevice()
    with device.current():
        writer, reader, event = device.stream(), device.stream(), device.event()
        source, memory = device.pinned((4,), "uint8"), [device.allocate(4) for _ in range(2)]
        writer.copy_to_device(memory[0], source)
        writer.record(event)
        reader.wait(event)  # for the first copy only
        writer.copy_to_device(memory[1], source)
        writer.record(event)
        reader.copy_to_host(device.pinned((4,), "uint8"), memory[0])
        assert device.races() == []
        reader.copy_to_host(device.pinned((4,), "uint8"), memory[1])
    assert device.races() == ["to device 4 and to host 4"]


@pytest.mark.parametrize("missing", [None, 0, 1])
def test_order_goes_on_from_stream_to_stream(missing: int | None) -> None:
    device = RecordingDevice()
    device.forgotten = None if missing is None else ("stream", missing)
    with device.current():
        first, second, third = (device.stream() for _ in range(3))
        passed = [device.event() for _ in range(3)]
        source, target = device.pinned((8,), "uint8"), device.pinned((8,), "uint8")
        source[:] = 6
        memory = device.allocate(8)
        first.copy_to_device(memory, source)
        first.record(passed[0])
        second.wait(passed[0])
        second.record(passed[1])
        third.wait(passed[1])
        third.copy_to_host(target, memory)
        third.record(passed[2])
        passed[2].synchronize()
        assert (target == 6).all() == (missing is None)
        device.host_touches(source, write=True)  # the host waited for the last, and so for all before
    assert device.waits == {"stream": 2, "host": 1}
    races = device.races()
    assert ("to device 8 and to host 8" in races or "to host 8 and to device 8" in races) == (missing is not None)
    assert (races == []) == (missing is None)


def test_only_the_same_bytes_race() -> None:
    device = RecordingDevice()
    with device.current():
        memory = device.allocate(100)
        spans = [(0, 50), (50, 100), (49, 51)]
        for number, (begin, end) in enumerate(spans):

            def touch(begin: int = begin, end: int = end) -> list[Access]:
                return [writes(memory.address + begin, end - begin)]

            device.stream().enqueue(f"work {number}", touch)
        device.stream().enqueue("look", lambda: [reads(memory.address + 99, 1)])
    assert [set(race.split(" and ")) for race in device.races()] == [
        {"work 0", "work 2"},
        {"work 1", "work 2"},
        {"work 1", "look"},
    ]


def test_what_the_host_did_before_it_enqueued_is_done() -> None:
    device = RecordingDevice()
    with device.current():
        source = device.pinned((10,), "uint8")
        device.host_touches(source, write=True)
        device.stream().copy_to_device(device.allocate(10), source)
    assert device.races() == []


def test_reading_together_is_no_race() -> None:
    device = RecordingDevice()
    with device.current():
        source, memory = device.pinned((10,), "uint8"), [device.allocate(10) for _ in range(2)]
        for target in memory:
            device.stream().copy_to_device(target, source)
    assert device.races() == []


def test_a_wait_can_be_left_out() -> None:
    device = RecordingDevice()
    device.forgotten = ("host", 1)
    with device.current():
        stream, done = device.stream(), device.event()
        target = device.pinned((4,), "uint8")
        for number in range(3):
            stream.copy_to_host(target, device.allocate(4))
            stream.record(done)
            done.synchronize()
            assert (target[0] == 0) == (number == 1)
            target[:] = 0
    assert device.waits == {"stream": 0, "host": 3}


def test_a_wait_of_a_stream_can_be_left_out() -> None:
    device = RecordingDevice()
    device.forgotten = ("stream", 1)
    with device.current():
        writer, event = device.stream(), device.event()
        source = device.pinned((4,), "uint8")
        source[:] = 1
        seen = []
        for _ in range(3):
            reader, done = device.stream(), device.event()
            memory, target = device.allocate(4), device.pinned((4,), "uint8")
            writer.copy_to_device(memory, source)
            writer.record(event)
            reader.wait(event)
            reader.copy_to_host(target, memory)
            reader.record(done)
            done.synchronize()
            seen.append(int(target[0]))
    assert seen == [1, 0x7F, 1]  # where it did not wait, it read what memory holds before anything is written
    assert device.waits == {"stream": 3, "host": 3}
    assert device.races() == ["to host 4 and to device 4"]


def test_the_host_may_notice_late() -> None:
    device = RecordingDevice()
    device.delay = 0.05
    with device.current():
        stream, done = device.stream(), device.event()
        stream.record(done)
        begin = time.perf_counter()
        done.synchronize()
    assert time.perf_counter() - begin >= 0.05


def test_captured_work_runs_when_it_is_launched_and_each_time_anew() -> None:
    device = RecordingDevice()
    with device.current():
        stream, done = device.stream(), device.event()
        source, target = device.pinned((4,), "uint8"), device.pinned((4,), "uint8")
        memory = device.allocate(4)

        def there_and_back() -> None:
            stream.copy_to_device(memory, source)
            stream.copy_to_host(target, memory)

        graph = stream.capture(there_and_back)
        assert graph is not None
        for value in range(3):
            source[:] = value + 1
            stream.record(done)
            done.synchronize()
            assert target.tolist() == [value] * 4
            graph.launch()
            stream.record(done)
            done.synchronize()
            assert target.tolist() == [value + 1] * 4
    assert device.races() == []


@pytest.mark.parametrize("cause", ["device", "work"])
def test_what_cannot_be_captured_gives_no_graph_and_does_not_run(cause: str) -> None:
    device = RecordingDevice()
    device.captures = cause == "work"
    with device.current():
        stream = device.stream()

        def work() -> None:
            stream.enqueue("work", list)
            if cause == "work":
                raise EnvironmentFault("not while capturing", hint="none")

        assert stream.capture(work) is None
        assert not stream.capturing
        assert not stream.waiting


def test_there_is_as_much_memory_as_a_test_says() -> None:
    device = RecordingDevice()
    device.limit = 100
    with device.current():
        device.allocate(60)
        with pytest.raises(OutOfDeviceMemory):
            device.allocate(41)
        assert device.allocate(40).address % 256 == 0


def test_a_kernel_that_leaves_the_device_s_memory_is_refused() -> None:
    device = RecordingDevice()
    with device.current():
        logits, answer = device.allocate(4 * 10), device.allocate(4 * topk.words(1))
        given = topk.arguments(logits=logits.address, output=answer.address, classes=11, k=1)
        stream, done = device.stream(), device.event()
        stream.launch(device.kernel("topk.cu", topk.KERNELS["fp32"]), (1, 1), given)
        stream.record(done)
        with pytest.raises(AssertionError, match="not the device's"):
            done.synchronize()


def test_times_are_refused_before_they_are_reached() -> None:
    device = RecordingDevice()
    with device.current():
        stream, begin, end = device.stream(), device.event(timed=True), device.event(timed=True)
        stream.record(begin)
        stream.record(end)
        with pytest.raises(AssertionError):
            end.seconds_since(begin)


def test_copies_to_the_host_are_refused_where_a_gpu_could_not_make_them() -> None:
    device = RecordingDevice()
    with device.current():
        target = device.pinned((4, 4), "uint8")
        with pytest.raises(AssertionError):
            device.stream().copy_to_host(target[:, :2], device.allocate(16))  # not contiguous


def test_only_timed_events_have_times() -> None:
    device = RecordingDevice()
    with device.current():
        stream, begin, end = device.stream(), device.event(timed=True), device.event()
        stream.record(begin)
        stream.record(end)
        end.synchronize()
        with pytest.raises(AssertionError):
            end.seconds_since(begin)


def test_times_go_on_along_a_stream_and_across_those_that_wait() -> None:
    device = RecordingDevice()
    with device.current():
        streams = [device.stream() for _ in range(2)]
        events = [device.event(timed=True) for _ in range(4)]
        streams[0].record(events[0])
        streams[0].record(events[1])
        streams[1].wait(events[1])
        streams[1].record(events[2])
        streams[1].record(events[3])
        events[3].synchronize()
        assert [events[0]] == sorted(events, key=lambda event: event.time)[:1]
        assert np.all(np.diff([event.time for event in events]) > 0)
        assert events[3].seconds_since(events[0]) > 0


def test_without_being_current_nothing_goes() -> None:
    device = RecordingDevice()
    with pytest.raises(AssertionError, match="not current"):
        device.stream()
