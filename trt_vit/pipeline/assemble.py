"""One output of many shards, in their order and in bounded memory."""

from __future__ import annotations

import glob
import os
import shutil
from pathlib import Path
from typing import IO, TYPE_CHECKING

from trt_vit.errors import ArtifactError
from trt_vit.outputs import naming, open_whole
from trt_vit.pipeline.commits import sha256_of
from trt_vit.pipeline.sinks import ParquetSink, write_empty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trt_vit.pipeline.commits import Commit
    from trt_vit.pipeline.journal import Journal


def assemble(journal: Journal) -> None:
    """Write the output from the files of its shards.

    Raises:
        OutputError: It cannot be written.
        ArtifactError: A shard's file is not what was written.
    """
    join = _JOINS[journal.output.suffix.lower()]
    if isinstance(journal.output, Path):
        with naming(journal.output):
            _remove_left(journal.output)
    with open_whole(journal.output) as stream, naming(journal.output):
        if journal.commits:
            join(_checked(journal), stream)
        else:  # inputs that hold no image make no shard
            write_empty(stream, journal.output, journal.plan.settings["top_k"])


def _remove_left(output: Path) -> None:
    """Remove what processes that were killed here have left of the output; its journal is held, so that none is."""
    place = Path(os.path.realpath(output))
    for partial in place.parent.glob(f".{glob.escape(place.name)}.????????.partial"):
        partial.unlink(missing_ok=True)


def _checked(journal: Journal) -> Iterator[Path]:
    """Give the files of all shards in their order, each when it has been compared with what was written."""
    for shard in sorted(journal.commits):
        _check(journal, journal.commits[shard])
        yield journal.file_of(shard)


def _check(journal: Journal, commit: Commit) -> None:
    """Compare a shard's file with what was written; if it is something else, it is removed and so done again."""
    file = journal.file_of(commit.shard)
    if sha256_of(file) != commit.sha256:
        journal.forget(commit.shard)
        raise ArtifactError(f"{file} is not what was written (its sha256 differs)", hint="run the command again")


def _join_lines(files: Iterator[Path], stream: IO[bytes]) -> None:
    for file in files:
        with file.open("rb") as source:
            shutil.copyfileobj(source, stream)


def _join_tables(files: Iterator[Path], stream: IO[bytes]) -> None:
    """The first line names the columns; it is the same everywhere and holds no line break."""
    for number, file in enumerate(files):
        with file.open("rb") as source:
            header = source.readline()
            if number == 0:
                stream.write(header)
            shutil.copyfileobj(source, stream)


def _join_parquet(files: Iterator[Path], stream: IO[bytes]) -> None:
    """Rows are read a shard at a time and written in row groups of the usual size."""
    import pyarrow as pa  # noqa: PLC0415 - only this format needs it
    import pyarrow.parquet as pq  # noqa: PLC0415

    writer, held, rows = None, [], 0
    try:
        for file in files:
            table = pq.read_table(file)
            writer = writer or pq.ParquetWriter(stream, table.schema, compression=ParquetSink.COMPRESSION)
            held.append(table)
            rows += len(table)
            if rows >= ParquetSink.ROW_GROUP:
                writer.write_table(pa.concat_tables(held), row_group_size=ParquetSink.ROW_GROUP)
                held, rows = [], 0
        if writer is not None and held:
            writer.write_table(pa.concat_tables(held), row_group_size=ParquetSink.ROW_GROUP)
    finally:
        if writer is not None:
            writer.close()


_JOINS: dict[str, Callable[[Iterator[Path], IO[bytes]], None]] = {
    ".jsonl": _join_lines,
    ".csv": _join_tables,
    ".parquet": _join_parquet,
}
