"""Writing result rows: JSON lines, CSV or Parquet, by the output's suffix.

Results take the output's name in one step when all of them are on disk: see ``trt_vit.outputs``.
"""

from __future__ import annotations

import contextlib
import csv
import json
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Protocol

from trt_vit.errors import UsageError
from trt_vit.outputs import naming, open_whole, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from trt_vit.outputs import Output
    from trt_vit.pipeline.rows import Row

_DIGITS = 6
"""Decimal places of a probability in a text format: beyond what float32 softmax means."""


class Sink(Protocol):
    """Somewhere rows go, in the order they are written."""

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows."""
        ...

    def close(self) -> None:
        """Write what is still held back. The file stays open."""
        ...

    def discard(self) -> None:
        """Let go of what is held back, after a failure or after ``close``: the file will be closed."""
        ...


@contextmanager
def open_sink(output: Path, k: int) -> Iterator[Sink]:
    """Open a sink whose rows appear at ``output`` when the block ends without an error, and nowhere otherwise.

    Args:
        output: A path ending in .jsonl, .csv or .parquet.
        k: Predictions of a row that has any.

    Raises:
        UsageError: The suffix is none of these.
        OutputError: The file cannot be written.
    """
    make = _sink_class(output)
    with open_whole(output) as stream:
        sink = _NamingSink(make(stream, k), output)
        try:
            yield sink
            sink.close()
        finally:
            sink.discard()


def write_empty(stream: IO[bytes], output: Output, k: int) -> None:
    """Write what an output without rows holds: nothing, names of columns, or a schema.

    Args:
        stream: Where it goes.
        output: The output, whose suffix names its format.
        k: Predictions that a row would have.
    """
    sink = _sink_class(output)(stream, k)
    try:
        sink.close()
    finally:
        sink.discard()


class _NamingSink:
    """Passes rows on, and says of a failure which output it was."""

    def __init__(self, sink: Sink, output: Path) -> None:
        self._sink = sink
        self._output = output

    def write(self, rows: Iterable[Row]) -> None:
        with naming(self._output):
            self._sink.write(rows)

    def close(self) -> None:
        with naming(self._output):
            self._sink.close()

    def discard(self) -> None:
        self._sink.discard()


def refuse_unknown_format(output: Output) -> None:
    """Refuse an output whose suffix names no format.

    Raises:
        UsageError: It does not.
    """
    _sink_class(output)


def _sink_class(output: Output) -> Callable[[IO[bytes], int], Sink]:
    try:
        return _SINKS[output.suffix.lower()]
    except KeyError:
        message = f"cannot tell the format of {output} from its suffix"
        raise UsageError(message, hint=f"end it in one of {', '.join(_SINKS)}") from None


class JsonLinesSink:
    """One JSON object a line: path, status, error, topk."""

    def __init__(self, stream: IO[bytes], k: int) -> None:  # noqa: ARG002 - a row says itself how many it has
        self._stream = stream

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows."""
        lines = [json.dumps(_document(row), ensure_ascii=False, separators=(", ", ": ")) + "\n" for row in rows]
        self._stream.write("".join(lines).encode())

    def close(self) -> None:
        """Nothing is held back."""

    def discard(self) -> None:
        """Nothing is held back."""


def _document(row: Row) -> dict[str, Any]:
    predictions = [
        {"index": item.index, "label": item.label, "probability": round(item.probability, _DIGITS)} for item in row.topk
    ]
    return {"path": printable(row.path), "status": row.status, "error": row.error, "topk": predictions}


def column_names(k: int) -> list[str]:
    """Return the columns of the flat formats: path, status, error, then index, label and probability of each rank."""
    ranks = [f"top{rank}_{field}" for rank in range(1, k + 1) for field in ("index", "label", "probability")]
    return ["path", "status", "error", *ranks]


class CsvSink:
    """One line a row, as RFC 4180 has it; the first line names the columns."""

    def __init__(self, stream: IO[bytes], k: int) -> None:
        self._stream = stream
        self._width = len(column_names(k))
        self._append([column_names(k)])

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows."""
        self._append(self._cells(row) for row in rows)

    def close(self) -> None:
        """Nothing is held back."""

    def discard(self) -> None:
        """Nothing is held back."""

    def _cells(self, row: Row) -> list[Any]:
        cells: list[Any] = [printable(row.path), row.status, row.error]
        for item in row.topk:
            cells += [item.index, item.label, f"{item.probability:.{_DIGITS}f}"]
        return cells + [None] * (self._width - len(cells))

    def _append(self, lines: Iterable[list[Any]]) -> None:
        text = _Lines()
        csv.writer(text).writerows(lines)
        self._stream.write("".join(text).encode())


class _Lines(list[str]):
    """A list that csv.writer can write to."""

    write = list.append


class ParquetSink:
    """A Parquet file with the flat columns, zstd-compressed, in row groups of bounded size."""

    ROW_GROUP = 65_536
    COMPRESSION = "zstd"

    def __init__(self, stream: IO[bytes], k: int) -> None:
        import pyarrow as pa  # noqa: PLC0415 - only this format needs it
        import pyarrow.parquet as pq  # noqa: PLC0415

        types = {"index": pa.int32(), "label": pa.string(), "probability": pa.float32()}
        fields = [pa.field(name, types.get(name.rpartition("_")[2], pa.string())) for name in column_names(k)]
        self._schema = pa.schema(fields)
        self._table = pa.Table
        self._writer = pq.ParquetWriter(stream, self._schema, compression=self.COMPRESSION)
        self._held: list[Row] = []

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows; they reach the file a row group at a time."""
        self._held.extend(rows)
        if len(self._held) >= self.ROW_GROUP:
            self._write_group()

    def close(self) -> None:
        """Write the last row group and the footer."""
        if self._held:
            self._write_group()
        self._writer.close()

    def discard(self) -> None:
        """Close the writer without the rows that it has not seen."""
        self._held.clear()
        with contextlib.suppress(OSError):
            self._writer.close()

    def _write_group(self) -> None:
        records = [_flat(row) for row in self._held]
        self._writer.write_table(self._table.from_pylist(records, schema=self._schema))
        self._held.clear()


def _flat(row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {"path": printable(row.path), "status": row.status, "error": row.error}
    for rank, item in enumerate(row.topk, start=1):
        record[f"top{rank}_index"] = item.index
        record[f"top{rank}_label"] = item.label
        record[f"top{rank}_probability"] = item.probability
    return record


_SINKS: dict[str, Callable[[IO[bytes], int], Sink]] = {
    ".jsonl": JsonLinesSink,
    ".csv": CsvSink,
    ".parquet": ParquetSink,
}
