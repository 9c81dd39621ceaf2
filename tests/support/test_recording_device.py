"""The recorder itself: it finds what is missing, and nothing where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.recording_device import RecordingDevice


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
