"""Parquet files of images, of several layouts, whole and damaged, on a disk and behind a URL."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.sources.archives import png, rows_of, table_of
from trt_vit.errors import ImageError, InputError
from trt_vit.images.limits import NO_FURTHER_LIMITS
from trt_vit.sources import parquet
from trt_vit.sources.files import File, LocalFile
from trt_vit.sources.open import open_shards
from trt_vit.sources.parquet import Cursor, ParquetShard, Table, open_table, parquet_shards

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

fsspec = pytest.importorskip("fsspec", reason="needs fsspec")

IMAGES = [png(number) for number in range(10)]


@pytest.fixture
def place(put: Callable[[str, bytes], File]) -> Callable[[bytes], File]:
    """Puts a file on a disk, or behind a URL."""
    return lambda data: put("a.parquet", data)


def shards_of(file: File, size: int) -> list[ParquetShard]:
    return parquet_shards(open_table(file), Cursor(), size)


def read(file: File, size: int = 100) -> list[tuple[str, bytes | str]]:
    """Rows of a file, with its own name left out."""
    return [(name.removeprefix(file.name), data) for name, data in rows_of(shards_of(file, size))]


def hugging_face(images: list[bytes]) -> list[dict[str, Any]]:
    return [{"bytes": image, "path": f"{number}.png"} for number, image in enumerate(images)]


@pytest.mark.parametrize("groups", [1, 3, 4, 100])
@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_rows_of_a_dataset_are_cut_into_shards_of_known_sizes(
    place: Callable[[bytes], File], groups: int, size: int
) -> None:
    file = place(table_of(hugging_face(IMAGES), row_group_size=groups))
    shards = shards_of(file, size)
    assert [shard.images for shard in shards] == [min(size, 10 - first) for first in range(0, 10, size)]
    expected = [(f"{file.name}::{number}::{number}.png", image) for number, image in enumerate(IMAGES)]
    assert rows_of(shards) == expected
    # In any order, as where shards are left from an earlier run.
    for shard in reversed(shards):
        assert rows_of([shard]) == expected[shard.first : shard.first + shard.images]


def test_a_file_is_read_once_however_large_its_row_groups_are(
    place: Callable[[bytes], File], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    original = Table.read

    def counted(self: Table, first: int) -> Any:
        begun.append(first)
        return original(self, first)

    monkeypatch.setattr(Table, "read", counted)
    shards = shards_of(place(table_of(hugging_face(IMAGES))), 2)
    assert len(rows_of(shards)) == 10
    assert begun == [0]
    assert len(rows_of([shards[0], shards[1], shards[3], shards[4]])) == 8
    assert begun == [0, 0, 6]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("name", ["image", "jpg", "a.b"])
def test_the_only_column_of_bytes_is_taken(place: Callable[[bytes], File], kind: pa.DataType, name: str) -> None:
    rows = read(place(table_of(IMAGES, kind, name)))
    assert rows == [(f"::{number}", image) for number, image in enumerate(IMAGES)]


ENCODED = pa.dictionary(pa.int32(), pa.binary())


@pytest.mark.parametrize("name", ["image", "jpg"])
def test_bytes_of_a_dictionary_and_of_a_fixed_size_are_taken(place: Callable[[bytes], File], name: str) -> None:
    encoded = pa.array([*IMAGES, None, IMAGES[0]]).dictionary_encode()
    rows = read(place(table_of(encoded, ENCODED, name, row_group_size=5)), 4)
    assert [row for _, row in rows] == [*IMAGES, "no image in this row", IMAGES[0]]
    alike = [image[:50] for image in IMAGES]
    assert [row for _, row in read(place(table_of(alike, pa.binary(50), name)))] == alike
    column = pa.StructArray.from_arrays([encoded.slice(0, 2), pa.array(["a", None])], ["bytes", "path"])
    assert read(place(table_of(column, column.type, name))) == [("::0::a", IMAGES[0]), ("::1", IMAGES[1])]


def test_a_digest_beside_the_images_is_none(place: Callable[[bytes], File]) -> None:
    digests = pa.array([b"d" * 32] * len(IMAGES), pa.binary(32))
    assert [row for _, row in read(place(table_of(IMAGES, pa.binary(), "jpg", sha256=digests)))] == IMAGES


def test_image_is_taken_among_several(place: Callable[[bytes], File]) -> None:
    file = place(table_of(hugging_face(IMAGES[:1]), mask=pa.array([b"mask"]), image2=pa.array([b"x"])))
    assert read(file) == [("::0::0.png", IMAGES[0])]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"a": pa.array([b"1"]), "b": pa.array([b"2"])}, "several columns may hold images: a (binary), b (binary)"),
        (
            {"a": pa.array([b"1"], pa.binary(1)), "b": pa.array([b"2"], pa.binary(1))},
            "several columns may hold images: a (fixed_size_binary[1]), b (fixed_size_binary[1])",
        ),
        ({"a": [1], "image": ["path"]}, "no column holds images: a (int64), image (string)"),
        ({}, "no column holds images: "),
        ({"image": pa.array([{"bytes": "x"}])}, "no column holds images: image (struct<bytes: string>)"),
    ],
)
def test_columns_that_do_not_tell_are_listed(
    place: Callable[[bytes], File], columns: dict[str, Any], said: str
) -> None:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    file = place(stream.getvalue())
    with pytest.raises(InputError) as caught:
        open_table(file)
    assert caught.value.message == f"cannot use {file.name!r}: {said}"


def test_rows_without_an_image_say_so(place: Callable[[bytes], File]) -> None:
    cells = [None, {"bytes": None, "path": "a.png"}, {"bytes": b"", "path": None}, {"bytes": b"x", "path": "b\n::c"}]
    assert read(place(table_of(cells))) == [
        ("::0", "no image in this row"),
        ("::1::a.png", "no image in this row, only the path of one"),
        ("::2", b""),
        ("::3::b\n::c", b"x"),
    ]


def test_a_file_without_rows_has_none(place: Callable[[bytes], File]) -> None:
    assert shards_of(place(table_of([])), 10) == []


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not Parquet" * 50, table_of(hugging_face(IMAGES))[:-20]])
def test_what_is_no_parquet_is_one_row(place: Callable[[bytes], File], data: bytes) -> None:
    file = place(data)
    with pytest.raises(ImageError, match="broken Parquet: "):
        open_table(file)
    if isinstance(file, LocalFile):
        shards = open_shards([file.name], 10)
        assert [shard.images for shard in shards] == [1]
        ((name, said),) = rows_of(shards)
        assert name == file.name
        assert isinstance(said, str)
        assert said.startswith("broken Parquet: ")
        assert "\n" not in said


def test_rows_of_a_damaged_row_group_are_each_an_error(place: Callable[[bytes], File]) -> None:
    data = table_of(hugging_face(IMAGES), row_group_size=5, compression="none")
    before = data.index(IMAGES[5])  # where its page's header is
    rows = read(place(data[: before - 60] + b"\xff" * 60 + data[before:]), 4)
    assert rows[:5] == [(f"::{number}::{number}.png", IMAGES[number]) for number in range(5)]
    assert [name for name, _ in rows[5:]] == [f"::{number}" for number in range(5, 10)]
    assert all(str(said).startswith("cannot read the file: ") for _, said in rows[5:])
    assert all("\n" not in str(said) for _, said in rows[5:])


def test_images_that_are_large_are_read_again_when_their_turn_comes(
    place: Callable[[bytes], File], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "HELD_BYTES", 100)
    (shard,) = shards_of(place(table_of([b"a" * 100, b"b" * 101, b"c" * 102], pa.binary())), 10)
    small, large, larger = shard.items()
    shard.table.file.open().close()
    monkeypatch.setattr(Table, "read", lambda self, first: iter([parquet._Cell(b"again %d" % first, None)]))
    assert small.read(NO_FURTHER_LIMITS) == b"a" * 100
    assert large.read(NO_FURTHER_LIMITS) == b"again 1"
    assert larger.read(NO_FURTHER_LIMITS) == b"again 2"


def test_a_digest_changes_with_the_file_and_its_place_in_it(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(table_of(hugging_face(IMAGES)))
    first, second = shards_of(LocalFile(str(path)), 5)
    assert first.digest() != second.digest()
    assert first.digest() == shards_of(LocalFile(str(path)), 5)[0].digest()
    assert first.digest() != shards_of(LocalFile(str(path)), 6)[0].digest()
    before = first.digest()
    path.write_bytes(table_of(hugging_face(IMAGES[:9])))
    assert first.digest() != before
    assert first.describe() == f"'{path}::0' to 4"
    assert first.holds(path)
