"""Tar archives, whole and hostile, on a disk and behind a URL."""

from __future__ import annotations

import io
import itertools
import os
import tarfile
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.sources.archives import png, rows_of, tar_of
from trt_vit.errors import EnvironmentFault, ImageError
from trt_vit.images.limits import NO_FURTHER_LIMITS
from trt_vit.sources import faults, remote, tar_shard
from trt_vit.sources.files import File, LocalFile, RemoteFile
from trt_vit.sources.tar import BLOCK, MAX_EXTENSION, TarError, TarReader
from trt_vit.sources.tar_shard import TarShard

if TYPE_CHECKING:
    from collections.abc import Callable

fsspec = pytest.importorskip("fsspec", reason="needs fsspec")

END = bytes(2 * BLOCK)


@pytest.fixture
def place(put: Callable[[str, bytes], File]) -> Callable[[bytes], File]:
    """Puts an archive on a disk, or behind a URL."""
    return lambda data: put("a.tar", data)


def read(file: File) -> list[tuple[str, bytes | str]]:
    """Rows of an archive, with its own name left out."""
    return [(name.removeprefix(file.name), data) for name, data in rows_of([TarShard(file)])]


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(data), kind) + padded(data)


def pax(records: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    lines = b""
    for key, value in records.items():
        body = f" {key}={value}\n".encode()
        length = next(size for size in itertools.count(len(body)) if size == len(str(size)) + len(body))
        lines += str(length).encode() + body
    return member("pax", lines, kind)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_come_in_the_order_of_the_archive(place: Callable[[bytes], File], form: int) -> None:
    images = {"b/2.png": png(2), "a.PNG": png(1), "long/" * 18 + "name.jpg": png(3), "./0.webp": png(4)}
    file = place(tar_of({"b/2.json": b"{}", **images, "a.txt": b"text"}, form))
    assert read(file) == [(f"::{name}", data) for name, data in images.items()]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_names_of_any_bytes(place: Callable[[bytes], File], form: int) -> None:
    names = ["x" * 300 + ".png", "höhe.png", os.fsdecode(b"\xff\xfe.png"), "new\nline.png"]
    assert [name for name, _ in read(place(tar_of({name: png(0) for name in names}, form)))] == [
        f"::{name}" for name in names
    ]


def test_names_are_only_names(place: Callable[[bytes], File], tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"of the machine")
    names = ["/etc/a.png", "../secret.png", str(tmp_path / "secret.png"), "a::b.png"]
    rows = read(place(tar_of({name: png(number) for number, name in enumerate(names)})))
    assert rows == [(f"::{name}", png(number)) for number, name in enumerate(names)]
    assert sorted(path.name for path in tmp_path.iterdir()) in (["a.tar", "secret.png"], ["secret.png"])


def test_what_macos_adds_and_directories_are_no_images(place: Callable[[bytes], File]) -> None:
    data = member("d.png", b"", tarfile.DIRTYPE) + member("__MACOSX/a.png", b"x") + member("d/._a.png", b"x")
    assert read(place(data + member("a.png", b"image") + END)) == [("::a.png", b"image")]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a FIFO"),
    ],
)
def test_what_is_no_plain_file_is_a_row_that_says_so(place: Callable[[bytes], File], kind: bytes, said: str) -> None:
    # A link has no data, whatever its size says.
    data = header("a.png", 700, kind) + member("b.png", b"image") + END
    assert read(place(data)) == [("::a.png", f"not a plain file but {said}"), ("::b.png", b"image")]


def test_sparse_files_of_three_formats_are_passed_over(place: Callable[[bytes], File]) -> None:
    old = bytearray(header("a.png", 10, tarfile.GNUTYPE_SPARSE))
    old[482] = 1
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old)
    more = bytearray(BLOCK)
    more[504] = 1
    data = bytes(old) + bytes(more) + bytes(BLOCK) + padded(b"0123456789")
    data += pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b.png"})
    data += member("GNUSparseFile.0/b.png", b"map") + pax({"GNU.sparse.map": "0,1"}) + member("c.png", b"data")
    said = "not a plain file but a sparse file"
    rows = [("::a.png", said), ("::b.png", said), ("::c.png", said), ("::d.png", b"image")]
    assert read(place(data + member("d.png", b"image") + END)) == rows


def test_a_pax_header_tells_the_size_and_one_for_all_the_rest(place: Callable[[bytes], File]) -> None:
    data = pax({"comment": "nothing"}, tarfile.XGLTYPE) + pax({"size": "5", "path": "a.png"})
    data += header("other", 0) + padded(b"image") + member("b.png", b"second") + END
    assert read(place(data)) == [("::a.png", b"image"), ("::b.png", b"second")]


def test_an_archive_without_members_has_no_rows(place: Callable[[bytes], File]) -> None:
    assert read(place(END)) == []
    assert read(place(tar_of({}))) == []
    assert read(place(tar_of({"a.txt": b"text"}))) == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty file"),
        (b"text", "not a tar archive"),
        (b"\x1f\x8b\x08" + b"gzip" * 200, "not a tar archive"),
        (png(0, 64), "not a tar archive"),
    ],
)
def test_what_is_no_archive_is_one_row(place: Callable[[bytes], File], data: bytes, said: str) -> None:
    assert read(place(data)) == [("", said)]


WHOLE = member("a.png", b"first") + member("b.png", b"x" * 1000)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (WHOLE, "truncated tar: its end is missing, and whatever preceded that"),
        (WHOLE + header("c.png", 9)[:100], "truncated tar: its end is missing, and whatever preceded that"),
        (WHOLE + header("c.png", 9) + b"12345678", "truncated tar: it ends in 'c.png'"),
        (WHOLE + header("c.txt", 9) + b"12345678", "truncated tar: it ends in 'c.txt'"),
        (WHOLE + header("c.png", 2**40), "truncated tar: it ends in 'c.png'"),
        (WHOLE + header("long", 600, b"L") + b"c" * 512, "truncated tar: it ends in 'long'"),
        (WHOLE + b"rubbish!" * 64 + END, "damaged tar: no header at byte 2560, and what follows was not read"),
        (WHOLE + header("long", MAX_EXTENSION + 1, b"L"), "damaged tar: a header of 1048577 bytes at byte 3072"),
        (WHOLE + header("p", 2**60, b"x"), f"damaged tar: a header of {2**60} bytes at byte 3072"),
        (WHOLE + header("p", -512, b"x"), "damaged tar: a header of -512 bytes at byte 3072"),
        (WHOLE + header("c.png", -512), "damaged tar: the size of 'c.png' is -512"),
        (WHOLE + header("c.png", 2**70), f"damaged tar: the size of 'c.png' is {2**70}"),
        (WHOLE + member("p", b"0 path=x\n", b"x"), "damaged tar: the pax header at byte 2560 is none"),
        (WHOLE + member("p", b"99 path=x\n", b"x"), "damaged tar: the pax header at byte 2560 is none"),
        (WHOLE + member("p", b"path", b"x"), "damaged tar: the pax header at byte 2560 is none"),
        (WHOLE + pax({"size": "-1"}) + header("c.png"), "damaged tar: the size of 'c.png' is '-1'"),
        (WHOLE + pax({"size": "9" * 5000}) + header("c.png"), f"damaged tar: the size of 'c.png' is '{'9' * 5000}'"),
        (WHOLE + END + WHOLE + END, "more data follows the end of the tar, and was not read"),
    ],
)
def test_what_is_wrong_is_a_row_after_those_that_could_be_read(
    place: Callable[[bytes], File], data: bytes, said: str
) -> None:
    assert read(place(data)) == [("::a.png", b"first"), ("::b.png", b"x" * 1000), ("", said)]


def test_a_stream_of_unknown_length_that_cannot_seek() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 100))  # less than was asked for

    reader = TarReader(Pipe(WHOLE + header("c.txt", 1000) + bytes(100)), None)
    found: list[tuple[str, bytes | None]] = []
    with pytest.raises(TarError, match="its end is missing"):
        found.extend((entry.name, reader.read(entry) if entry.name == "b.png" else None) for entry in reader.members())
    assert found == [("a.png", None), ("b.png", b"x" * 1000), ("c.txt", None)]


def test_a_member_beyond_the_limit_is_a_row_and_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as stream:
        stream.write(header("huge.png", 2**30 + 1))
        stream.seek(2**30 + 512, os.SEEK_CUR)
        stream.write(member("b.png", b"image") + END)
    tracemalloc.start()
    rows = read(LocalFile(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    assert rows == [
        ("::huge.png", f"file has {2**30 + 1} bytes, more than the limit of {2**30}"),
        ("::b.png", b"image"),
    ]


def test_headers_in_a_row_take_no_stack(place: Callable[[bytes], File]) -> None:
    bomb = pax({"comment": "x"}) * 3000 + pax({"key": "y" * 1_000_000}, tarfile.XGLTYPE)
    assert read(place(bomb + member("a.png", b"image") + END)) == [("::a.png", b"image")]


def test_headers_in_a_row_take_no_memory() -> None:
    bombs = (pax({f"GNU.sparse.{number}": "" for number in range(start, 30_000, 20)}, b"g") for start in range(20))
    stream = io.BytesIO(b"".join(bombs) + member("a.png", b"image") + END)
    tracemalloc.start()
    assert [entry.kind for entry in TarReader(stream, None).members()] == ["a sparse file"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 512 << 10  # a few times the largest header, and not all of them


def test_members_that_are_large_are_asked_for_again_when_their_turn_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_shard, "HELD_BYTES", 100)
    data = tar_of({"a.png": b"a" * 100, "b.png": b"b" * 101})
    fsspec.filesystem("memory").pipe_file("/tar/large.tar", data)
    shard = TarShard(RemoteFile("memory://tar/large.tar", len(data), "1"))
    small, large = shard.items()
    fsspec.filesystem("memory").rm("/tar/large.tar")
    assert small.read(NO_FURTHER_LIMITS) == b"a" * 100
    with pytest.raises(ImageError, match="cannot read the file: no such file"):
        large.read(NO_FURTHER_LIMITS)
    fsspec.filesystem("memory").pipe_file("/tar/large.tar", data)
    assert large.read(NO_FURTHER_LIMITS) == b"b" * 101
    fsspec.filesystem("memory").pipe_file("/tar/large.tar", data[:1536])
    with pytest.raises(ImageError, match="only 0 of its 101 bytes are there"):
        large.read(NO_FURTHER_LIMITS)


def test_a_file_that_cannot_be_opened_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    assert read(LocalFile(str(path))) == [("", "cannot read the file: No such file or directory")]
    os.mkfifo(path)
    assert read(LocalFile(str(path))) == [("", "cannot read the file: not a regular file")]
    assert read(RemoteFile("memory://no/such.tar")) == [("", "cannot read the file: no such file")]
    assert read(LocalFile("a\0.tar")) == [("", "cannot read the file: not a file name: embedded null byte")]


def test_a_connection_that_breaks_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 1024:
                raise faults.RemoteError("timed out")
            return super().read(size)

    monkeypatch.setattr(remote, "open_reading", lambda url: Breaking(WHOLE))
    items = TarShard(RemoteFile("memory://tar/a.tar")).items()
    assert next(items).read(NO_FURTHER_LIMITS) == b"first"
    with pytest.raises(EnvironmentFault, match=r"cannot read memory://tar/a\.tar: timed out"):
        next(items)


def test_a_digest_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of({"a.png": b"1"}))
    shard = TarShard(LocalFile(str(path)))
    before = shard.digest()
    assert shard.digest() == before
    assert shard.images is None
    os.utime(path, ns=(1, 1))
    assert shard.digest() != before
    assert shard.describe() == repr(str(path))


def test_an_archive_is_told_from_an_output(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(END)
    (tmp_path / "link.tar").symlink_to(path)
    assert TarShard(LocalFile(str(path))).holds(tmp_path / "link.tar")
    assert not TarShard(LocalFile(str(path))).holds(tmp_path / "b.jsonl")
    assert not TarShard(LocalFile(str(path))).holds(Path("none.tar"))
