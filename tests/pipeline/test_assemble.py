"""An output made of shards is the output of a run that has none."""

from __future__ import annotations

import csv
import json
import tempfile
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_vit.parts import Part
from trt_vit.pipeline.assemble import assemble
from trt_vit.pipeline.journal import open_journal
from trt_vit.pipeline.plan import Plan, PlannedShard
from trt_vit.pipeline.rows import Prediction, Row, count_failed
from trt_vit.pipeline.sinks import ParquetSink, open_sink

if TYPE_CHECKING:
    from collections.abc import Sequence

K = 2
NAMES = st.text(st.characters(codec="utf-8") | st.sampled_from('\n\r",=\0-\udcff'), min_size=1, max_size=6)
TOPK = st.lists(st.builds(Prediction, st.integers(0, 9), NAMES.filter(str.isprintable), st.floats(0, 1)), max_size=K)
ROWS = st.lists(st.builds(Row, NAMES, st.none() | st.just("broken"), TOPK.map(tuple)), max_size=12)


def write_unsharded(output: Path, rows: Sequence[Row]) -> None:
    with open_sink(output, K) as sink:
        sink.write(rows)


def write_sharded(output: Path, rows: Sequence[Row], cuts: Sequence[int]) -> None:
    """Write rows as shards that end at ``cuts``, the last of them where the rows end."""
    ends = [*sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    plan = Plan([PlannedShard(None, str(number), "") for number in range(len(ends))], "b", {})
    with open_journal(output, plan, Part(), print, resume=True) as journal:
        for shard, (first, end) in enumerate(zip([0, *ends], ends, strict=False)):
            write_unsharded(journal.file_of(shard), rows[first:end])
            journal.commit(shard, end - first, count_failed(rows[first:end]))
        finished = journal.finish(assemble)
    assert finished is not None
    assert (finished.images, finished.failed) == (len(rows), count_failed(rows))
    assert finished.bytes == output.stat().st_size


@settings(deadline=None, max_examples=40)
@given(ROWS, st.lists(st.integers(0, 12), max_size=5), st.sampled_from([".jsonl", ".csv", ".CSV"]))
def test_lines_are_the_same_bytes(rows: list[Row], cuts: list[int], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        one, other = Path(name) / f"one{suffix}", Path(name) / f"other{suffix}"
        write_unsharded(one, rows)
        write_sharded(other, rows, cuts)
        assert other.read_bytes() == one.read_bytes()


@settings(deadline=None, max_examples=40)
@given(ROWS, st.lists(st.integers(0, 12), max_size=5))
def test_tables_are_the_same_rows_in_bounded_groups(rows: list[Row], cuts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParquetSink, "ROW_GROUP", 4)
        one, other = Path(name) / "one.parquet", Path(name) / "other.parquet"
        write_unsharded(one, rows)
        write_sharded(other, rows, cuts)
        assert pq.read_table(other).equals(pq.read_table(one))
        assert pq.read_schema(other).equals(pq.read_schema(one))
        metadata = pq.read_metadata(other)
        groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        assert all(size <= 4 for size in groups)
        assert len(groups) <= 2 * len(rows) / 4 + 1
        if groups:
            assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_directory_that_looks_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    output = tmp_path / "run=1" / "o.parquet"
    write_sharded(output, [Row("a", None, ()), Row("b", "broken", ())], [1])
    assert pq.ParquetFile(output).schema_arrow.names[:4] == ["path", "status", "error", "top1_index"]
    assert "run" not in pq.ParquetFile(output).schema_arrow.names


def test_the_formats_tell_the_same(tmp_path: Path) -> None:
    rows = [Row('a\n"b",=c\udcff', None, (Prediction(1, "x, y", 0.5),)), Row("-d", "broken", ())]
    for suffix in ("jsonl", "csv", "parquet"):
        write_sharded(tmp_path / f"o.{suffix}", rows, [0, 1])
    expected = ['a\n"b",=c\\xff', "-d"]
    lines = (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["path"] for line in lines] == expected
    with (tmp_path / "o.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == expected
    assert pq.read_table(tmp_path / "o.parquet")["path"].to_pylist() == expected


def test_what_killed_processes_have_left_of_an_output_is_removed(tmp_path: Path) -> None:
    """Of this output, and of what its symbolic link points to; not of its neighbours."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "o[1].jsonl").symlink_to(tmp_path / "deep" / "real.jsonl")
    left = tmp_path / "deep" / ".real.jsonl.abcdefgh.partial"
    others = [tmp_path / "deep" / ".real.jsonl.x.abcdefgh.partial", tmp_path / ".o1.jsonl.abcdefgh.partial"]
    for file in (left, *others):
        file.write_text("half")
    write_sharded(tmp_path / "o[1].jsonl", [Row("a", "broken", ())], [])
    assert not left.exists()
    assert all(file.exists() for file in others)
    again = tmp_path / "deep" / ".o[1].csv.abcdefgh.partial"
    again.write_text("half")
    write_sharded(tmp_path / "deep" / "o[1].csv", [Row("a", "broken", ())], [])
    assert not again.exists()


def test_memory_holds_a_row_group_and_a_shard_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that wait for a row group to be full are never more than that and the last shard's."""
    import pyarrow as pa

    monkeypatch.setattr(ParquetSink, "ROW_GROUP", 5)
    concat, sizes = pa.concat_tables, []

    def concat_tables(tables: Sequence[pa.Table]) -> pa.Table:
        sizes.append(sum(map(len, tables)))
        return concat(tables)

    monkeypatch.setattr(pa, "concat_tables", concat_tables)
    rows = [Row(str(number), "broken", ()) for number in range(40)]
    write_sharded(tmp_path / "o.parquet", rows, list(accumulate([3] * 13)))
    assert max(sizes) < 5 + 3
    assert sum(sizes) == 40
