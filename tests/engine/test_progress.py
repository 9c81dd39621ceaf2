from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING

from rich.console import Console

from trt_vit.engine.progress import Bars, Lines, Quiet, report_build

if TYPE_CHECKING:
    import pytest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report_to(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def test_lines_are_printed_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    report_to(monkeypatch, stream)
    with report_build() as progress:
        assert isinstance(progress, Lines)
        progress.phase("exporting to ONNX")
        progress.start("Building engine", None, 6)
        progress.step("Building engine", 0)
        progress.finish("Building engine")
        progress.phase("building the engine [8.9]")
    assert stream.getvalue() == "exporting to ONNX\nbuilding the engine [8.9]\n"


def test_a_terminal_gets_a_bar_for_each_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    report_to(monkeypatch, stream)
    with report_build() as progress:
        progress.phase("building the engine [8.9]")
        progress.start("Building engine", None, 6)
        progress.start("Timing [/encoder/fc1] + [bold]", "Building engine", 3)
    shown = stream.getvalue()
    assert "building the engine [8.9]" in shown
    assert "Building engine" in shown
    assert "  Timing [/encoder/fc1] + [bold]" in shown


def bars(monkeypatch: pytest.MonkeyPatch) -> Bars:
    from rich.progress import Progress

    return Bars(Progress(console=Console(file=io.StringIO())))


def test_a_bar_is_there_as_long_as_its_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = bars(monkeypatch)
    watcher.start("whole", None, 4)
    watcher.start("part", "whole", 2)
    watcher.step("part", 0)
    tasks = {task.description: (task.completed, task.total) for task in watcher._progress.tasks}
    assert tasks == {"whole": (0, 4), "  part": (1, 2)}
    watcher.finish("part")
    watcher.step("part", 1)  # late, from another thread
    watcher.finish("part")
    watcher.start("part", "whole", 5)  # as TensorRT does for every subgraph
    assert [(task.description, task.total) for task in watcher._progress.tasks] == [("whole", 4), ("  part", 5)]


def test_a_phase_that_is_under_way_twice_leaves_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = bars(monkeypatch)
    watcher.start("part", None, 2)
    watcher.start("part", None, 3)
    watcher.finish("part")
    watcher.finish("part")
    assert watcher._progress.tasks == []


def test_phases_come_from_several_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = bars(monkeypatch)

    def build(number: int) -> None:
        for step in range(50):
            watcher.start(f"{number} {step}", None, 1)
            watcher.step(f"{number} {step}", 0)
            watcher.finish(f"{number} {step}")

    threads = [threading.Thread(target=build, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert watcher._progress.tasks == []


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    quiet = Quiet()
    quiet.phase("exporting to ONNX")
    quiet.start("Building engine", None, 6)
    quiet.step("Building engine", 0)
    quiet.finish("Building engine")
    assert stream.getvalue() == ""
