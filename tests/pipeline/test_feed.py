"""Rows find their shards, whatever the sizes of shards and batches, and whenever an interrupt comes."""

from __future__ import annotations

import sys
import tempfile
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_vit.parts import Part
from trt_vit.pipeline import run
from trt_vit.pipeline.assemble import assemble
from trt_vit.pipeline.feed import Feed, ShardSink, open_shard_sink
from trt_vit.pipeline.journal import open_journal
from trt_vit.pipeline.lanes import BatchResult
from trt_vit.pipeline.plan import Plan, PlannedShard
from trt_vit.pipeline.rows import Row
from trt_vit.pipeline.stages import StageSeconds
from trt_vit.sources.item import FileItem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from trt_vit.outputs import Output
    from trt_vit.pipeline.journal import Journal
    from trt_vit.sources.item import Item
    from trt_vit.sources.shard import Shard

SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 7]), min_size=1, max_size=6)


@dataclass(frozen=True)
class ListShard:
    """A shard whose images are only names."""

    number: int
    size: int

    @property
    def images(self) -> int | None:
        return None

    @property
    def names(self) -> list[str]:
        return [f"{self.number}-{item}" for item in range(self.size)]

    def describe(self) -> str:
        return f"shard {self.number}"

    def digest(self) -> str:
        return f"{self.number} {self.size}"

    def holds(self, file: Output) -> bool:
        return False

    def items(self) -> Iterator[Item]:
        return map(FileItem, self.names)


@dataclass(frozen=True)
class FakeLanes:
    """Answers at once: an image's row is an error with its own name."""

    depth: int
    stages: Sequence[str] = ("write",)

    def start(self, number: int, items: Sequence[Item]) -> Future[BatchResult]:
        answer: Future[BatchResult] = Future()
        answer.set_result(BatchResult([row_of(item.name) for item in items], StageSeconds(())))
        return answer


@dataclass(frozen=True)
class FakeClassifier:
    batch_size: int


def row_of(name: str) -> Row:
    return Row(name, f"error of {name}", ())


def line_of(name: str) -> str:
    return f'{{"path": "{name}", "status": "error", "error": "error of {name}", "topk": []}}\n'


def plan_of(shards: Sequence[Shard]) -> Plan:
    return Plan([PlannedShard(None, shard.digest(), shard.describe()) for shard in shards], "bundle", {})


def classify(shards: Sequence[ListShard], journal: Journal, batch: int, depth: int) -> None:
    """Run the hot loop over what is pending, with lanes that answer at once."""

    @contextmanager
    def open_lanes(*_arguments: Any) -> Iterator[FakeLanes]:
        yield FakeLanes(depth)

    feed = Feed(shards, journal.pending)
    with pytest.MonkeyPatch.context() as patch, open_shard_sink(journal, feed, 1) as sink:
        patch.setattr(run, "open_lanes", open_lanes)
        run.classify(feed.items(), FakeClassifier(batch), sink, lambda _rows: None)  # type: ignore[arg-type]


def assert_whole(journal: Journal, shards: Sequence[ListShard]) -> None:
    """Check that what is committed is right: the rows of the shard, each once, in order."""
    for number, commit in journal.commits.items():
        names = shards[number].names
        assert journal.file_of(number).read_text() == "".join(map(line_of, names))
        assert (commit.images, commit.failed) == (len(names), len(names))


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(1, 9), st.integers(1, 4), st.sets(st.integers(0, 5)))
def test_rows_find_their_shards(sizes: list[int], batch: int, depth: int, done: set[int]) -> None:
    shards = [ListShard(number, size) for number, size in enumerate(sizes)]
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "o.jsonl"
        with open_journal(output, plan_of(shards), Part(), print, resume=True) as journal:
            for shard in (shard for shard in shards if shard.number in done):
                journal.file_of(shard.number).write_text("".join(map(line_of, shard.names)))
                journal.commit(shard.number, shard.size, shard.size)
            assert journal.pending == [shard.number for shard in shards if shard.number not in done]
            classify(shards, journal, batch, depth)
            assert journal.pending == []
            assert_whole(journal, shards)
            assert journal.finish(assemble) is not None
        assert output.read_text() == "".join(line_of(name) for shard in shards for name in shard.names)


class InterruptAt:
    """Raises KeyboardInterrupt in the n-th line of the pipeline's code that is run, as a signal may at any."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> InterruptAt | None:
        if "/trt_vit/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize(
    ("sizes", "batch", "depth", "step"), [((5, 0, 3, 4), 2, 3, 13), ((4, 4, 4), 4, 2, 7), ((2, 1), 1, 1, 3)]
)
def test_an_interrupt_at_any_line_commits_nothing_that_is_not_whole(
    sizes: tuple[int, ...], batch: int, depth: int, step: int, tmp_path: Path
) -> None:
    """Interrupts the run at a line, lets it drain, and goes on; then some lines later, until it is not interrupted."""
    shards = [ListShard(number, size) for number, size in enumerate(sizes)]
    line, interrupted = 1, 0
    while True:
        output = tmp_path / f"{line}.jsonl"
        with open_journal(output, plan_of(shards), Part(), print, resume=True) as journal:
            trace = InterruptAt(line)
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                with suppress(KeyboardInterrupt):
                    classify(shards, journal, batch, depth)
            finally:
                sys.settrace(before)
            interrupted += trace.left <= 0
            assert_whole(journal, shards)
        with open_journal(output, plan_of(shards), Part(), print, resume=True) as journal:
            assert_whole(journal, shards)
            classify(shards, journal, batch, depth)
            assert journal.finish(assemble) is not None
        assert output.read_text() == "".join(line_of(name) for shard in shards for name in shard.names)
        if trace.left > 0:
            break
        line += step
    assert interrupted > 20


def open_sink_of(tmp_path: Path, *sizes: int) -> tuple[Feed, Journal, Any]:
    shards = [ListShard(number, size) for number, size in enumerate(sizes)]
    context = open_journal(tmp_path / "o.jsonl", plan_of(shards), Part(), print, resume=True)
    return Feed(shards, range(len(sizes))), context.__enter__(), context


def test_rows_behind_missing_ones_are_dropped(tmp_path: Path) -> None:
    """As when an interrupt comes between taking a batch's rows and writing them."""
    feed, journal, context = open_sink_of(tmp_path, 4, 4)
    deque(feed.items(), maxlen=0)
    sink = ShardSink(journal, feed, 1)
    sink.write([row_of("0-2"), row_of("0-3")])  # 0-0 and 0-1 have not come
    sink.write([row_of("1-0"), row_of("1-1")])
    assert journal.commits == {}
    with pytest.raises(AssertionError, match="not those of the images"):
        sink.close()
    sink.discard()
    context.__exit__(None, None, None)
    assert [file.name for file in (tmp_path / ".o.jsonl.journal").iterdir() if file.suffix == ".partial"] == []


def test_more_rows_than_images_are_refused(tmp_path: Path) -> None:
    feed, journal, context = open_sink_of(tmp_path, 1)
    deque(feed.items(), maxlen=0)
    sink = ShardSink(journal, feed, 1)
    sink.write([row_of("0-0"), row_of("0-1")])
    with pytest.raises(AssertionError, match="not those of the images"):
        sink.close()
    context.__exit__(None, None, None)


def test_a_shard_that_is_not_complete_leaves_no_file(tmp_path: Path) -> None:
    feed, journal, context = open_sink_of(tmp_path, 3)
    items = feed.items()
    next(items)
    with pytest.raises(RuntimeError, match="stop"), open_shard_sink(journal, feed, 1) as sink:
        sink.write([row_of("0-0")])
        assert len(list((tmp_path / ".o.jsonl.journal").glob(".*.partial"))) == 1
        raise RuntimeError("stop")
    context.__exit__(None, None, None)
    assert list((tmp_path / ".o.jsonl.journal").glob("*.jsonl")) == []
    assert list((tmp_path / ".o.jsonl.journal").glob(".*.partial")) == []
