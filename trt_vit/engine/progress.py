"""Telling a person how a build is doing: bars on a terminal, a line a phase elsewhere. Always on standard error."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress, TaskID


class BuildProgress(Protocol):
    """Whoever watches a build.

    TensorRT names phases of its own, one inside another, and calls from threads of its own, several at once.
    """

    def phase(self, text: str) -> None:
        """Note that the next phase of the build flow begins."""
        ...

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Note that a phase of TensorRT's with so many steps begins, as a part of ``parent`` where that is given."""
        ...

    def step(self, name: str, step: int) -> None:
        """Note that a step is done, counted from 0."""
        ...

    def finish(self, name: str) -> None:
        """Note that a phase of TensorRT's has ended."""
        ...


class Quiet:
    """Watches a build and says nothing."""

    def phase(self, text: str) -> None:
        """See ``BuildProgress.phase``."""

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """See ``BuildProgress.start``."""

    def step(self, name: str, step: int) -> None:
        """See ``BuildProgress.step``."""

    def finish(self, name: str) -> None:
        """See ``BuildProgress.finish``."""


class Lines(Quiet):
    """Prints a line for each phase of the build flow, and nothing of TensorRT's."""

    def phase(self, text: str) -> None:
        """See ``BuildProgress.phase``."""
        print(text, file=sys.stderr, flush=True)  # noqa: T201


class Bars:
    """Prints a line for each phase of the build flow, and a bar for each phase of TensorRT's that is under way."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def phase(self, text: str) -> None:
        """See ``BuildProgress.phase``."""
        self._progress.console.print(text, highlight=False, markup=False)

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """See ``BuildProgress.start``."""
        with self._lock:
            if name in self._tasks:
                self._progress.remove_task(self._tasks[name])
            indent = "  " if parent is not None else ""
            self._tasks[name] = self._progress.add_task(f"{indent}{name}", total=steps)

    def step(self, name: str, step: int) -> None:
        """See ``BuildProgress.step``."""
        with self._lock:
            if name in self._tasks:
                self._progress.update(self._tasks[name], completed=step + 1)

    def finish(self, name: str) -> None:
        """See ``BuildProgress.finish``."""
        with self._lock:
            if name in self._tasks:
                self._progress.remove_task(self._tasks.pop(name))


class Steps:
    """Tells a build's watcher of work that is done a step at a time, as phases of ours."""

    def __init__(self, progress: BuildProgress) -> None:
        self._progress = progress
        self._current: str | None = None

    def __call__(self, name: str, done: int, steps: int) -> None:
        """Say that so many steps of something are done; something else before it has then ended."""
        if name != self._current:
            self.finish()
            self._progress.phase(name)
            self._progress.start(name, None, steps)
            self._current = name
        self._progress.step(name, done - 1)

    def finish(self) -> None:
        """Say that the last one has ended."""
        if self._current is not None:
            self._progress.finish(self._current)
            self._current = None


@contextmanager
def report_build() -> Iterator[BuildProgress]:
    """Give a build something to report to until the block ends."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bars(progress)
