"""Telling a person how a run is doing: a bar on a terminal, a line now and then elsewhere. Always on standard error."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from trt_vit.pipeline.rows import count_failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trt_vit.pipeline.rows import Row

    OnRows = Callable[[Sequence[Row]], None]

INTERVAL = 10.0
"""Seconds between two lines where there is no terminal."""


@contextmanager
def report_progress(total: int | None) -> Iterator[OnRows]:
    """Give a function to call with each batch of rows, which keeps a person informed until the block ends.

    Args:
        total: Rows that will come, or None where that is not known.
    """
    if sys.stderr is None:  # it was closed before the process started
        yield lambda _rows: None
    elif sys.stderr.isatty():
        with _bar(total) as on_rows:
            yield on_rows
    else:
        yield LineReporter(total, sys.stderr)


@contextmanager
def _bar(total: int | None) -> Iterator[OnRows]:
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (
        TextColumn("classify"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} images/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]} failed"),
    )
    started = time.perf_counter()
    done = failed = 0
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("classify", total=total, rate=0.0, failed=0)

        def on_rows(rows: Sequence[Row]) -> None:
            nonlocal done, failed
            done += len(rows)
            failed += count_failed(rows)
            rate = done / (time.perf_counter() - started)
            progress.update(task, completed=done, rate=rate, failed=failed)

        yield on_rows


class LineReporter:
    """Writes a line every ``INTERVAL`` seconds: how many, how fast, how long it will take, how many failed."""

    def __init__(self, total: int | None, stream: TextIO, clock: Callable[[], float] = time.perf_counter) -> None:
        self._total = total
        self._stream = stream
        self._clock = clock
        self._started = self._last = clock()
        self._done = 0
        self._failed = 0

    def __call__(self, rows: Sequence[Row]) -> None:
        """Count the rows, and write a line when one is due."""
        self._done += len(rows)
        self._failed += count_failed(rows)
        now = self._clock()
        if now - self._last >= INTERVAL:
            self._last = now
            rate = self._done / (now - self._started)
            line = f"{self._done} images, {rate:.1f} images/s, {self._failed} failed"
            if self._total is not None:
                left = (self._total - self._done) / rate
                line = (
                    f"{self._done}/{self._total} images, {rate:.1f} images/s, {left:.0f} s left, {self._failed} failed"
                )
            self._stream.write(line + "\n")
            self._stream.flush()
