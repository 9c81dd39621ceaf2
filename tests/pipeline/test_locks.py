"""Who may be at work on an output at once."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trt_vit.errors import OutputError
from trt_vit.parts import Part
from trt_vit.pipeline import locks
from trt_vit.pipeline.locks import hold, planning

if TYPE_CHECKING:
    from collections.abc import Callable

ALL = Part()
OUTPUT = Path("o.jsonl")


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (ALL, ALL, "another run is at work on it"),
        (ALL, Part(1, 2), "another run is at work on it"),
        (Part(1, 2), ALL, "another run is at work on it"),
        (Part(1, 2), Part(1, 2), "part 1/2 of it is being done already"),
        (Part(1, 2), Part(1, 3), "it is being done in 2 parts, not in 3"),
        (Part(2, 12), Part(1, 2), "it is being done in 12 parts, not in 2"),
        (Part(1, 2), Part(2, 12), "it is being done in 2 parts, not in 12"),
    ],
)
def test_two_that_do_not_go_together_are_refused(tmp_path: Path, first: Part, second: Part, why: str) -> None:
    with hold(tmp_path, first, OUTPUT), pytest.raises(OutputError) as caught, hold(tmp_path, second, OUTPUT):
        pytest.fail("both are at work")
    assert caught.value.message == f"cannot write o.jsonl: {why}"
    assert caught.value.hint == "wait for it, or choose another file with -o"
    with hold(tmp_path, second, OUTPUT):  # what the first one has left does not keep anyone out
        pass


def test_all_parts_go_together(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for number in range(1, 5):
            stack.enter_context(hold(tmp_path, Part(number, 4), OUTPUT))
        with pytest.raises(OutputError, match="part 3/4 of it"), hold(tmp_path, Part(3, 4), OUTPUT):
            pass


def test_of_two_divisions_that_begin_at_once_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have looked for the other before either is seen, unless one waits for the other."""
    looked, held, refused = threading.Barrier(2), threading.Barrier(2), []
    look = locks._refuse_other_division

    def look_together(directory: Path, part: Part, output: Path) -> None:
        look(directory, part, output)
        with contextlib.suppress(threading.BrokenBarrierError):
            looked.wait(0.3)

    def begin(part: Part) -> None:
        try:
            with hold(tmp_path, part, OUTPUT), contextlib.suppress(threading.BrokenBarrierError):
                held.wait(1)
        except OutputError as error:
            refused.append(str(error))

    monkeypatch.setattr(locks, "_refuse_other_division", look_together)
    threads = [threading.Thread(target=begin, args=[part]) for part in (Part(1, 2), Part(1, 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from trt_vit.parts import Part; from trt_vit.pipeline.locks import hold\n"
        "with hold(Path(sys.argv[1]), Part(), Path('o')): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another run"), hold(tmp_path, ALL, OUTPUT):
            pass
        process.kill()
        process.wait()
        with hold(tmp_path, ALL, OUTPUT):
            pass


def test_planning_waits_for_the_other(tmp_path: Path) -> None:
    order: list[str] = []

    def plan_too() -> None:
        with planning(tmp_path):
            order.append("second")

    with planning(tmp_path):
        thread = threading.Thread(target=plan_too)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_stream: object, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with (
        pytest.raises(OutputError, match=r"cannot lock .*run\.lock: No locks available") as caught,
        hold(tmp_path, ALL, OUTPUT),
    ):
        pass
    assert caught.value.hint == "choose a file system that has locks with -o"
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208


def test_an_interrupt_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = fcntl.flock

    def flock(stream: int, operation: int) -> None:
        lock(stream, operation)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fcntl, "flock", flock)
        with hold(tmp_path, ALL, OUTPUT):
            pass
    with hold(tmp_path, ALL, OUTPUT):
        pass


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"cannot write .*run\.lock: No such file"),
        hold(tmp_path / "gone", ALL, OUTPUT),
    ):
        pass


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with hold(tmp_path, Part(1, 2), OUTPUT), pytest.raises(OutputError), hold(tmp_path, Part(1, 3), OUTPUT):
        pass
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208


@pytest.mark.parametrize("name", ["run.lock", "plan.lock", "part-1-of-2.lock"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_lock_that_is_no_file_is_named(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    make(tmp_path / name)
    with (
        pytest.raises(OutputError, match=rf"cannot lock .*{name}: it is not a file") as caught,
        hold(tmp_path, Part(1, 2), OUTPUT),
    ):
        pass
    assert caught.value.hint == "remove it"
