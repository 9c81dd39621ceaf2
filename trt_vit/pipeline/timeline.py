"""When each stage of a run was at work, and what that says of how much they overlap."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trt_vit.pipeline.stages import StageSeconds


ENQUEUE = "enqueue"
"""What the host does for a batch on a GPU: the one interval that is no stage."""


@dataclass(frozen=True, slots=True)
class Interval:
    """One stage of one image or batch.

    Attributes:
        track: Who was at work: a thread, or a lane of a GPU.
        batch: Number of the batch.
        stage: Name of the stage.
        start: Seconds since the run began.
        end: As ``start``.
    """

    track: str
    batch: int
    stage: str
    start: float
    end: float


class Timeline:
    """The last intervals of a run. Several threads may add to it at once.

    Args:
        capacity: How many intervals are kept.

    Attributes:
        origin: When the run began, by ``time.perf_counter``.
    """

    def __init__(self, capacity: int = 200_000) -> None:
        self.origin = time.perf_counter()
        self._kept: deque[Interval] = deque(maxlen=capacity)
        self._lock = threading.Lock()

    def add(self, intervals: Iterable[Interval]) -> None:
        """Add what has been at work."""
        with self._lock:
            self._kept.extend(intervals)

    def add_spans(self, batch: int, busy: StageSeconds) -> None:
        """Add what a task was busy with, which belongs to a batch."""
        spans = list(busy.spans)
        self.add(Interval(busy.thread, batch, stage, *self._since(start, end)) for stage, start, end in spans)

    def _since(self, start: float, end: float) -> tuple[float, float]:
        return start - self.origin, end - self.origin

    @property
    def intervals(self) -> list[Interval]:
        """What is kept, by the time it began."""
        with self._lock:
            return sorted(self._kept, key=lambda interval: (interval.start, interval.end))


@dataclass(frozen=True)
class Overlap:
    """How the stages of a run lie side by side.

    Attributes:
        seconds: From the first beginning to the last end.
        busy: For each stage, the share of that time in which it ran for any batch.
        several: The share in which two stages or more ran at once, of whatever batches.
        hidden: The share of the time of every stage but the busiest in which the busiest ran too. At 1, a run takes no
            longer than its slowest stage alone.
    """

    seconds: float
    busy: dict[str, float]
    several: float
    hidden: float


def overlap(intervals: Sequence[Interval]) -> Overlap:
    """Compute how much the stages of a run overlap. Without intervals, everything is 0."""
    if not intervals:
        return Overlap(0.0, {}, 0.0, 0.0)
    stages = list(dict.fromkeys(interval.stage for interval in intervals))
    edges = sorted({edge for interval in intervals for edge in (interval.start, interval.end)})
    changes: dict[float, list[tuple[str, int]]] = {edge: [] for edge in edges}
    for interval in intervals:
        changes[interval.start].append((interval.stage, 1))
        changes[interval.end].append((interval.stage, -1))
    running = dict.fromkeys(stages, 0)
    pieces: list[tuple[float, frozenset[str]]] = []
    for edge, following in pairwise(edges):
        for stage, change in changes[edge]:
            running[stage] += change
        pieces.append((following - edge, frozenset(stage for stage in stages if running[stage])))
    seconds = edges[-1] - edges[0]
    busy = {stage: sum(length for length, active in pieces if stage in active) for stage in stages}
    busiest = max(stages, key=lambda stage: busy[stage])
    others = sum(length for length, active in pieces if active - {busiest})
    under = sum(length for length, active in pieces if active - {busiest} and busiest in active)
    several = sum(length for length, active in pieces if len(active) > 1)
    return Overlap(
        seconds=seconds,
        busy={stage: _share(value, seconds) for stage, value in busy.items()},
        several=_share(several, seconds),
        hidden=_share(under, others),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
