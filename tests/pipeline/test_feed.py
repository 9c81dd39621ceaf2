"""Rows find their shards, whatever the sizes of shards and batches, and whenever an interrupt comes."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

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
    from collections.abc import Callable, Iterator, Sequence
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


class EndAt:
    """Ends in the n-th line of the pipeline's code that is run, as a signal may at any."""

    def __init__(self, line: int, end: Callable[[], None]) -> None:
        self.left = line
        self._end = end

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> EndAt | None:
        if "/trt_vit/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self._end()
        return self

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *_error: object) -> None:
        sys.settrace(self._before)


def run_all(shards: Sequence[ListShard], output: Path, batch: int, depth: int) -> None:
    """Do what a command does, from its plan to its output."""
    with open_journal(output, plan_of(shards), Part(), lambda _note: None, resume=True) as journal:
        if journal.pending and journal.finished is None:
            classify(shards, journal, batch, depth)
        assert journal.finish(assemble) is not None


def interrupted_at(line: int, run: Callable[[], None]) -> bool:
    """Run until an interrupt comes, and what it does on the way out; tell whether it came."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with EndAt(line, interrupt) as trace, suppress(KeyboardInterrupt):
        run()
    gc.collect()  # a lock ends with its file, and that with what the interrupt has left of it in a cycle
    return trace.left <= 0


def killed_at(line: int, run: Callable[[], None]) -> bool:
    """Run in a process that ends at once, wherever it is; tell whether it did."""
    child = os.fork()
    if child == 0:
        with EndAt(line, lambda: os._exit(9)):
            run()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in {0, 9}
    return os.waitstatus_to_exitcode(status) == 9


@pytest.mark.parametrize("ended_at", [interrupted_at, killed_at])
@pytest.mark.parametrize(
    ("sizes", "batch", "depth", "step"), [((5, 0, 3, 4), 2, 3, 37), ((4, 4, 4), 4, 2, 23), ((2, 1), 1, 1, 17)]
)
def test_wherever_a_run_is_ended_it_loses_and_doubles_nothing(
    sizes: tuple[int, ...],
    batch: int,
    depth: int,
    step: int,
    *,
    ended_at: Callable[[int, Callable[[], None]], bool],
    tmp_path: Path,
) -> None:
    """Ends a run at a line and goes on; then some lines later, until it comes to its end by itself."""
    shards = [ListShard(number, size) for number, size in enumerate(sizes)]
    ends, going = 0, True
    while going:
        output = tmp_path / f"{ends}" / "o.jsonl"
        going = ended_at(1 + ends * step, partial(run_all, shards, output, batch, depth))
        ends += going
        with open_journal(output, plan_of(shards), Part(), print, resume=True) as journal:
            if journal.finished is None:
                assert_whole(journal, shards)
        run_all(shards, output, batch, depth)
        assert output.read_text() == "".join(line_of(name) for shard in shards for name in shard.names)
        left = sorted(file.name for file in output.parent.rglob("*") if file.is_file())
        assert left == ["_SUCCESS", "o.jsonl", "plan.json", "plan.lock", "run.lock"]
    assert ends > 20


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
