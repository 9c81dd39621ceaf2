"""The driver's end: the rows of each shard put together, and committed when all are there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trt_vit.pipeline.rows import count_failed
from trt_vit.pipeline.run import Summary
from trt_vit.pipeline.sinks import open_sink
from trt_vit.pipeline.stages import CPU_STAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trt_vit.distributed.worker import Piece
    from trt_vit.pipeline.journal import Journal
    from trt_vit.pipeline.rows import Row


class Gatherer:
    """Takes pieces in whatever order they come, and commits a shard when it has all of them.

    Args:
        journal: The run's journal.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._k = journal.plan.settings["top_k"]
        self._shards: dict[int, _Gathered] = {}
        self._images = self._failed = 0
        self._seconds = dict.fromkeys(CPU_STAGES, 0.0)

    def add(self, piece: Piece) -> list[Row]:
        """Take a piece, and return its rows; none if it has come before.

        Raises:
            TrtVitError: What a worker has met instead.
            OutputError: The shard's file cannot be written.
        """
        if piece.fault is not None:
            piece.fault.throw()
        if piece.shard in self._journal.commits:
            return []
        shard = self._shards.setdefault(piece.shard, _Gathered())
        if piece.first in shard.pieces:
            return []
        shard.add(piece)
        self._images += len(piece.rows)
        self._failed += count_failed(piece.rows)
        for stage, value in piece.seconds.items():
            self._seconds[stage] += value
        if shard.size == shard.rows:
            started = time.perf_counter()
            self._commit(piece.shard, [rows for _, rows in sorted(shard.pieces.items())])
            self._seconds["write"] += time.perf_counter() - started
        return piece.rows

    def _commit(self, shard: int, pieces: Sequence[Sequence[Row]]) -> None:
        with open_sink(self._journal.file_of(shard), self._k) as sink:
            for rows in pieces:
                sink.write(rows)
        self._journal.commit(shard, sum(map(len, pieces)), sum(map(count_failed, pieces)))
        del self._shards[shard]

    def summary(self, seconds: float) -> Summary:
        """Return what was done in that time."""
        return Summary(self._images, self._failed, seconds, self._seconds)


@dataclass
class _Gathered:
    """What has come of a shard.

    Attributes:
        pieces: Rows, by the number of the first.
        rows: How many there are.
        size: How many there will be, as soon as that is known.
    """

    pieces: dict[int, list[Row]] = field(default_factory=dict)
    rows: int = 0
    size: int | None = None

    def add(self, piece: Piece) -> None:
        self.pieces[piece.first] = piece.rows
        self.rows += len(piece.rows)
        if piece.last:
            self.size = piece.first + len(piece.rows)
