"""Parquet files with a column of images, as Hugging Face datasets writes them, or of bytes."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

from trt_vit.errors import ImageError, InputError
from trt_vit.images.decode import check_file_size
from trt_vit.images.limits import MAX_BYTES
from trt_vit.outputs import printable
from trt_vit.sources.files import File, reason_of, refuse_to_guess
from trt_vit.sources.item import BrokenItem, HeldItem
from trt_vit.sources.urls import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trt_vit.images.limits import DecodeLimits
    from trt_vit.outputs import Output
    from trt_vit.sources.item import Item

HELD_BYTES = 32 << 20
"""Largest image that is kept from when its part of the file is read to when it is decoded. Larger ones are read again
then, so that the images under way take a bounded memory."""

_BUFFER = 1 << 20
"""Bytes of a column that are read at once: without this, all that a row group has of it."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """What one row holds: the bytes of an image, or None, and what the row calls it, or None."""

    data: bytes | None
    path: str | None


@dataclass(frozen=True, slots=True)
class ParquetShard:
    """Some rows of a Parquet file.

    Attributes:
        table: The file.
        cursor: What the shards of a run read with.
        first: Number of its first row in the file, from 0.
        images: How many rows it has.
    """

    table: Table
    cursor: Cursor
    first: int
    images: int

    def describe(self) -> str:
        """See ``Shard.describe``."""
        name = self.table.file.name
        return f"{name + SEPARATOR + str(self.first)!r} to {self.first + self.images - 1}"

    def digest(self) -> str:
        """See ``Shard.digest``."""
        text = f"{self.table.file.name}\0{self.table.file.stamp()}\0{self.table.column}\0{self.first} {self.images}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def holds(self, output: Output) -> bool:
        """See ``Shard.holds``."""
        return self.table.file.is_output(output)

    def items(self) -> Iterator[Item]:
        """See ``Shard.items``. Where the file is damaged, each row that cannot be read says so."""
        number, end = self.first, self.first + self.images
        try:
            for cell in self.cursor.cells(self.table, number, self.images):
                yield self._item(number, cell)
                number += 1
        except (OSError, ImageError) as error:
            if isinstance(error, OSError):
                refuse_to_guess(self.table.file, error)
            reason = reason_of(error) if isinstance(error, OSError) else str(error)
            for left in range(number, end):
                yield BrokenItem(self._name(left), f"cannot read the file: {reason}")

    def _item(self, number: int, cell: _Cell) -> Item:
        name = self._name(number) + (SEPARATOR + cell.path if cell.path else "")
        if cell.data is None:
            return BrokenItem(name, "no image in this row" + (", only the path of one" if cell.path else ""))
        if len(cell.data) > MAX_BYTES:
            return BrokenItem(name, f"image has {len(cell.data)} bytes, more than the limit of {MAX_BYTES}")
        if len(cell.data) > HELD_BYTES:
            return _CellItem(name, self.table, number)
        return HeldItem(name, cell.data)

    def _name(self, number: int) -> str:
        return f"{self.table.file.name}{SEPARATOR}{number}"


@dataclass(frozen=True, slots=True)
class _CellItem:
    """A row that is read again when its turn comes."""

    name: str
    table: Table
    number: int

    def read(self, limits: DecodeLimits) -> bytes:
        try:
            cell = next(self.table.read(self.number), _Cell(None, None))
        except OSError as error:
            refuse_to_guess(self.table.file, error)
            raise ImageError(f"cannot read the file: {reason_of(error)}") from error
        if cell.data is None:
            raise ImageError("no image in this row")
        check_file_size(len(cell.data), limits)
        return cell.data


@dataclass(frozen=True, slots=True)
class Table:
    """The image column of a Parquet file.

    Attributes:
        file: The file.
        column: Name of the column.
        group_rows: Rows of each row group.
    """

    file: File
    column: str
    group_rows: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(self.group_rows)

    def read(self, first: int) -> Iterator[_Cell]:
        """Give all rows from ``first`` on, by a reader of their own.

        Raises:
            OSError: The file cannot be read.
            ImageError: It is damaged.
        """
        group = begin = 0
        while group < len(self.group_rows) and begin + self.group_rows[group] <= first:
            begin += self.group_rows[group]
            group += 1
        passed = first - begin
        with self.file.open() as stream, _damage(), _open(stream) as parquet:
            for number in range(group, len(self.group_rows)):
                # A row at a time: it costs little beside decoding an image, and rows may be of any size.
                batches = parquet.iter_batches(1, row_groups=[number], columns=[self.column], use_threads=False)
                yield from (_cell(batch.column(0)[0]) for batch in islice(batches, passed, None))
                passed = 0


class Cursor:
    """Where the last shard ended, in the one file that is being read.

    A row group can only be read from its beginning. Shards that follow one another take up where the last one ended,
    so that a file is read once, however large its row groups are.
    """

    def __init__(self) -> None:
        self._at: tuple[Table, int] | None = None
        self._rest: Iterator[_Cell] = iter(())

    def cells(self, table: Table, first: int, count: int) -> Iterator[_Cell]:
        """Give ``count`` rows of a file from ``first`` on. Only one thread may.

        Raises:
            OSError: The file cannot be read.
            ImageError: It is damaged, or has fewer rows than it says.
        """
        if self._at != (table, first):
            self._rest = table.read(first)
        self._at = None  # until all of them have been given
        for _ in range(count):
            cell = next(self._rest, None)
            if cell is None:
                raise ImageError("fewer rows than the file says")
            yield cell
        self._at = (table, first + count)


def open_table(file: File) -> Table:
    """Find the image column of a Parquet file.

    Raises:
        OSError: The file cannot be read.
        ImageError: It is no Parquet file.
        InputError: Nothing tells which column has the images.
    """
    with file.open() as stream, _damage(), _open(stream) as parquet:
        column = _image_column(parquet.schema_arrow, file.name)
        metadata = parquet.metadata
        rows = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
        return Table(file, column, rows)


def parquet_shards(table: Table, cursor: Cursor, size: int) -> list[ParquetShard]:
    """Cut a file into shards of ``size`` rows; the last one may have less."""
    starts = range(0, table.rows, size)
    return [ParquetShard(table, cursor, first, min(size, table.rows - first)) for first in starts]


def _image_column(schema: Any, name: str) -> str:
    """Return ``image`` if it holds images, or the only column that may.

    Bytes of a fixed size are a digest's more often than an image's, and count where no others do.
    """
    import pyarrow as pa  # noqa: PLC0415 - only this format needs it

    found = [column for column in schema if _may_hold_images(column.type)]
    of_any_size = [column for column in found if not pa.types.is_fixed_size_binary(column.type)]
    columns = [column for column in found if column.name == "image"] or of_any_size or found
    if len(columns) == 1:
        return str(columns[0].name)
    listed = ", ".join(f"{column.name} ({column.type})" for column in schema)
    said = "several columns may hold images" if columns else "no column holds images"
    message = f"cannot use {name!r}: {said}: {printable(' '.join(listed.split()))}"
    raise InputError(message, hint="name the one with the images image, or keep only that one of bytes")


def _may_hold_images(kind: Any) -> bool:
    import pyarrow as pa  # noqa: PLC0415 - only this format needs it

    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _is_binary(kind.field(at).type)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa  # noqa: PLC0415 - only this format needs it

    if pa.types.is_dictionary(kind):
        return _is_binary(kind.value_type)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _cell(scalar: Any) -> _Cell:
    value = scalar.as_py()
    if isinstance(value, dict):
        path = value.get("path")
        return _Cell(value["bytes"], path if isinstance(path, str) else None)
    return _Cell(value, None)


def _open(stream: IO[bytes]) -> Any:
    import pyarrow.parquet as pq  # noqa: PLC0415 - only this format needs it

    return pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False)


@contextmanager
def _damage() -> Iterator[None]:
    """Say of what pyarrow finds wrong in the block that the file is damaged."""
    import pyarrow as pa  # noqa: PLC0415 - only this format needs it

    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ImageError(f"broken Parquet: {' '.join(str(error).split())[:200]}") from error
