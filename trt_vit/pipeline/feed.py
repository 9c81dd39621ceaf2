"""The images of the shards that are still to do, and the sink that commits each shard when its rows are there."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from trt_vit.pipeline.rows import count_failed
from trt_vit.pipeline.sinks import open_sink

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from trt_vit.pipeline.journal import Journal
    from trt_vit.pipeline.rows import Row
    from trt_vit.pipeline.sinks import Sink
    from trt_vit.sources.item import Item
    from trt_vit.sources.shard import Shard


class Feed:
    """Gives the images of some shards, and knows how many each had.

    Args:
        shards: All shards of the run.
        pending: Which of them are to do.

    Attributes:
        sizes: How many images each shard had whose images have all been given, by its number.
    """

    def __init__(self, shards: Sequence[Shard], pending: Sequence[int]) -> None:
        self.pending = pending
        self.sizes: dict[int, int] = {}
        self._shards = shards
        self._given: deque[str] = deque()

    def items(self) -> Iterator[Item]:
        """Give the images, shard after shard."""
        for number in self.pending:
            count = 0
            for item in self._shards[number].items():
                count += 1
                self._given.append(item.name)
                yield item
            self.sizes[number] = count

    def gave(self, rows: Sequence[Row]) -> bool:
        """Tell whether rows are those of the next images that it gave, in their order. It is asked once for each."""
        return all(self._given and self._given.popleft() == row.path for row in rows)


@contextmanager
def open_shard_sink(journal: Journal, feed: Feed, k: int) -> Iterator[ShardSink]:
    """Open a sink for what a feed gives. What has been committed stays, however the block ends.

    Args:
        journal: The run's journal.
        feed: The images whose rows will come.
        k: Predictions of a row that has any.
    """
    sink = ShardSink(journal, feed, k)
    try:
        yield sink
        sink.close()
    finally:
        sink.discard()


class ShardSink:
    """A sink that writes each shard to a file of its own, and commits it with its last row.

    Rows come in the order of the feed's images, and a shard's last row comes after its last image was given: so it is
    known by then how many it has. An interrupt breaks that order: the rows that are being written when it comes are
    lost, while those behind them still come. So a shard is committed only if nothing is missing before its end.
    """

    def __init__(self, journal: Journal, feed: Feed, k: int) -> None:
        self._journal = journal
        self._feed = feed
        self._k = k
        self._left = iter(feed.pending)
        self._shard = next(self._left, None)
        self._open: ExitStack | None = None
        self._sink: Sink | None = None
        self._rows = self._failed = 0
        self._missing = False

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows, and commit what they complete. Where rows before them are missing, they are dropped.

        Raises:
            OutputError: A file cannot be written.
        """
        if self._missing:
            return
        self._missing = True  # until all of these are written
        rest = list(rows)
        if not self._feed.gave(rest):
            return
        while rest:
            size = self._feed.sizes.get(self._current)
            part = rest if size is None else rest[: size - self._rows]
            self._append(part)
            rest = rest[len(part) :]
            self._commit_complete()
        self._missing = False

    def close(self) -> None:
        """Commit what has no rows at all."""
        if self._missing:
            raise AssertionError("the rows are not those of the images")
        self._commit_complete()

    def discard(self) -> None:
        """Let go of a shard that is not complete."""
        if self._open is not None:
            # As if the block ended with an error, which leaves no file.
            self._open.__exit__(_Abandoned, _Abandoned(), None)
            self._open = None

    @property
    def _current(self) -> int:
        if self._shard is None:
            raise AssertionError("more rows than images")
        return self._shard

    def _append(self, rows: Sequence[Row]) -> None:
        self._writer().write(rows)
        self._rows += len(rows)
        self._failed += count_failed(rows)

    def _writer(self) -> Sink:
        if self._open is None or self._sink is None:
            self._open = ExitStack()
            self._sink = self._open.enter_context(open_sink(self._journal.file_of(self._current), self._k))
        return self._sink

    def _commit_complete(self) -> None:
        while self._shard is not None and self._feed.sizes.get(self._shard) == self._rows:
            self._writer()  # a shard without images has a file too
            opened, self._open = self._open, None
            if opened is not None:
                opened.close()
            self._journal.commit(self._shard, self._rows, self._failed)
            self._shard = next(self._left, None)
            self._rows = self._failed = 0


class _Abandoned(Exception):  # noqa: N818 - nobody sees it
    """A shard that will not be completed."""
