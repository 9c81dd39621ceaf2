"""From what the user names to shards: paths, standard input, URLs and archives."""

from __future__ import annotations

import io
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.sources.archives import rows_of, table_of, tar_of
from trt_vit.errors import EnvironmentFault, InputError, UsageError
from trt_vit.outputs import RemoteOutput
from trt_vit.sources import files
from trt_vit.sources.open import open_shards
from trt_vit.sources.shard import FileShard, RemoteShard

if TYPE_CHECKING:
    from collections.abc import Iterator

fsspec = pytest.importorskip("fsspec", reason="needs fsspec")


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty file system in memory, and an empty working directory."""
    monkeypatch.chdir(tmp_path)
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield filesystem
    filesystem.store.clear()


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode())


def names_of(*inputs: str, size: int = 100) -> list[str]:
    return [name for name, _ in rows_of(open_shards(inputs, size))]


def say(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_files_are_grouped_and_archives_stand_in_their_place(memory: Any) -> None:
    make("d/a.jpg", "d/b.jpg", "e.jpg", "f.jpg")
    Path("x.tar").write_bytes(tar_of({"m.png": b"m"}))
    Path("y.PARQUET").write_bytes(table_of([{"bytes": b"p", "path": None}] * 3))
    memory.pipe({"/r/a.jpg": b"ra", "/r/b.jpg": b"rb"})
    shards = open_shards(["d", "e.jpg", "x.tar", "y.PARQUET", "memory://r", "f.jpg"], 2)
    assert [type(shard).__name__ for shard in shards] == [
        *("FileShard", "FileShard", "TarShard", "ParquetShard", "ParquetShard", "RemoteShard", "FileShard")
    ]
    assert [shard.images for shard in shards] == [2, 1, None, 2, 1, 2, 1]
    assert rows_of(shards) == [
        *(("d/a.jpg", b"d/a.jpg"), ("d/b.jpg", b"d/b.jpg"), ("e.jpg", b"e.jpg"), ("x.tar::m.png", b"m")),
        *(("y.PARQUET::0", b"p"), ("y.PARQUET::1", b"p"), ("y.PARQUET::2", b"p")),
        *(("memory://r/a.jpg", b"ra"), ("memory://r/b.jpg", b"rb"), ("f.jpg", b"f.jpg")),
    ]


def test_what_is_named_twice_is_taken_once(memory: Any) -> None:
    make("a.jpg", "b.jpg")
    Path("x.tar").write_bytes(tar_of({"m.png": b"m"}))
    memory.pipe({"/r/a.jpg": b""})
    inputs = ["a.jpg", "x.tar", "./a.jpg", "b.jpg", ".//x.tar", "memory://r/a.jpg", "memory://r"]
    assert names_of(*inputs) == ["a.jpg", "x.tar::m.png", "b.jpg", "memory://r/a.jpg"]


def test_a_url_of_a_file_on_a_disk_is_its_path() -> None:
    make("d/a.jpg", "d/b c%20.jpg")
    below = [f"{Path.cwd()}/d/a.jpg", f"{Path.cwd()}/d/b c%20.jpg"]
    (shard,) = open_shards([f"file://{Path.cwd()}/d"], 9)
    assert isinstance(shard, FileShard)
    assert [item.name for item in shard.items()] == below
    Path("l.txt").write_text(f"file://{below[1]}\nd/a.jpg\n")
    assert names_of("l.txt", f"local://{below[0]}") == [below[1], "d/a.jpg", below[0]]


def test_a_list_holds_paths_urls_and_archives(memory: Any) -> None:
    make("a.jpg")
    Path("x.tar").write_bytes(tar_of({"m.png": b"m"}))
    memory.pipe({"/r/a.jpg": b"", "/r/x.tar": tar_of({"n.png": b"n"}), "/r/l.txt": b"memory://r/a.jpg\r\na.jpg\n\n"})
    Path("l.txt").write_text("memory://r/x.tar\na.jpg\nmemory://r/a.jpg\nx.tar\nmemory://r/none\nnone.tar\n")
    rows = [
        *("memory://r/x.tar::n.png", "a.jpg", "memory://r/a.jpg", "x.tar::m.png", "memory://r/none", "none.tar"),
    ]
    assert names_of("l.txt") == rows
    assert dict(rows_of(open_shards(["l.txt"], 9)))["memory://r/none"] == "cannot read the file: no such file"
    assert names_of("memory://r/l.txt") == ["memory://r/a.jpg", "a.jpg"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a.jpg\nb c.jpg\r\n\nmemory://r/a.jpg\n", ["a.jpg", "b c.jpg", "memory://r/a.jpg"]),
        (b"a.jpg\0new\nline.jpg\0\0c.jpg", ["a.jpg", "new\nline.jpg", "c.jpg"]),
        (b"a.jpg\r\0 .jpg\0 \0\r\0", ["a.jpg\r", " .jpg", " ", "\r"]),
        (b"\xef\xbb\xbfa.jpg\n", ["a.jpg"]),
        (b"\xef\xbb\xbfa.jpg\0", ["\ufeffa.jpg"]),
        (b"\xff.jpg", ["\udcff.jpg"]),
    ],
)
def test_standard_input_is_a_list(monkeypatch: pytest.MonkeyPatch, data: bytes, expected: list[str]) -> None:
    say(monkeypatch, data)
    assert names_of("-") == expected


def test_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        open_shards(["-"], 9)


def test_standard_input_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    make("x.jpg", "y.jpg")
    say(monkeypatch, b"a.jpg\n")
    assert names_of("x.jpg", "-", "y.jpg") == ["x.jpg", "a.jpg", "y.jpg"]
    with pytest.raises(UsageError, match="- is named twice"):
        open_shards(["-", "x.jpg", "-"], 9)
    with pytest.raises(InputError, match="no image in '-'"):
        open_shards(["x.jpg", "-"], 9)


def test_a_url_is_searched_as_a_directory_is(memory: Any) -> None:
    names = ["b.jpg", "a/z.jpg", "a.jpg", "a/y/x.JPG", "B.jpg", "a!.jpg"]
    others = ["notes.csv", "._a.jpg", "__MACOSX/a.jpg", "c.jpg.part", "x.tar", "a/x.parquet"]
    memory.pipe({f"/d/{name}": b"" for name in names + others})
    make(*(f"d/{name}" for name in names + others))
    below = ["B.jpg", "a/y/x.JPG", "a/z.jpg", "a!.jpg", "a.jpg", "b.jpg"]
    assert names_of("d") == [f"d/{name}" for name in below]
    assert names_of("memory://d") == [f"memory://d/{name}" for name in below]
    assert names_of("memory://d/") == [f"memory://d/{name}" for name in below]


def test_globs_of_urls(memory: Any) -> None:
    memory.pipe({f"/g/{name}": b"" for name in ("a.jpg", "b.png", "c/d.jpg", "[e].jpg", "f.csv", "._g.jpg")})
    memory.pipe({"/g/0.tar": tar_of({"m.png": b""}), "/g/1.tar": tar_of({"n.png": b""})})
    assert names_of("memory://g/*.jpg") == ["memory://g/[e].jpg", "memory://g/a.jpg"]
    assert names_of("memory://g/**/*.jpg") == ["memory://g/[e].jpg", "memory://g/a.jpg", "memory://g/c/d.jpg"]
    assert names_of("memory://g/?.*") == ["memory://g/a.jpg", "memory://g/b.png"]
    assert names_of("memory://g/[e].jpg") == ["memory://g/[e].jpg"]
    assert names_of("memory://?/[ab].*") == ["memory://g/a.jpg", "memory://g/b.png"]
    assert names_of("memory://g/*.tar") == ["memory://g/0.tar::m.png", "memory://g/1.tar::n.png"]


def test_a_glob_finds_archives_where_it_ends_so() -> None:
    for name in ("b.tar", "a.tar", "c.TAR"):
        Path(name).write_bytes(tar_of({"m.png": b""}))
    make("x.jpg")
    assert names_of("*") == ["x.jpg"]
    assert names_of("*.tar") == ["a.tar::m.png", "b.tar::m.png"]


def test_what_names_nothing(memory: Any) -> None:
    memory.pipe({"/d/a.csv": b"", "/d/l.txt": b"\n"})
    with pytest.raises(UsageError, match=r"no such file or directory: 'memory://d/none\.jpg'"):
        open_shards(["memory://d/none.jpg"], 9)
    for url in ("memory://d", "memory://d/*.jpg", "memory://d/l.txt"):
        with pytest.raises(InputError, match="no image in"):
            open_shards([url], 9)
    with pytest.raises(UsageError, match="the scheme nosuch:// is unknown"):
        open_shards(["nosuch://d/a.jpg"], 9)
    with pytest.raises(UsageError, match="it holds ::"):
        open_shards(["zip://a.jpg::memory://d/a.zip"], 9)
    Path("a::b.tar").write_bytes(tar_of({}))
    with pytest.raises(UsageError, match="the name of an archive may not hold ::"):
        open_shards(["a::b.tar"], 9)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_scheme: str) -> None:
        raise ImportError("Install it")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(EnvironmentFault) as caught:
        open_shards(["s3://user:word@bucket/a.jpg"], 9)
    assert str(caught.value) == "cannot open 's3://bucket/a.jpg': a package for s3:// is missing (pip install s3fs)"
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(EnvironmentFault, match=r"fsspec is not installed \(pip install 'trt-vit\[remote\]'\)"):
        open_shards(["s3://bucket/a.jpg"], 9)


def test_a_digest_tells_when_a_file_was_written(memory: Any) -> None:
    memory.pipe({"/d/a.jpg": b"1", "/d/b.jpg": b"2"})
    first, second = (shard.digest() for shard in open_shards(["memory://d"], 1))
    again, named = open_shards(["memory://d"], 1), open_shards(["memory://d/b.jpg"], 1)
    assert [shard.digest() for shard in again] == [first, second]
    time.sleep(0.001)
    memory.pipe_file("/d/b.jpg", b"3")
    after = [shard.digest() for shard in open_shards(["memory://d"], 1)]
    assert after[0] == first
    assert after[1] != second
    assert open_shards(["memory://d/b.jpg"], 1)[0].digest() != named[0].digest()


def test_a_listing_is_not_asked_for_each_file_and_a_list_many_at_once(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe({f"/d/{number}.jpg": b"" for number in range(8)})
    asked: list[str] = []
    together = threading.Barrier(8)
    original = type(memory).info

    def info(self: Any, path: str, **options: Any) -> Any:
        asked.append(path)
        if path.endswith(".jpg"):
            together.wait(10)  # all eight are under way, or this fails
        return original(self, path, **options)

    monkeypatch.setattr(type(memory), "info", info)
    assert len(names_of("memory://d")) == 8
    assert asked == ["/d"]
    Path("l.txt").write_text("".join(f"memory://d/{number}.jpg\n" for number in range(8)))
    (shard,) = open_shards(["l.txt"], 9)
    assert sorted(asked[1:]) == [f"/d/{number}.jpg" for number in range(8)]
    assert isinstance(shard, RemoteShard)
    assert [file.mark == "-" for file in shard.items()] == [False] * 8


def test_an_output_is_told_from_the_inputs(memory: Any) -> None:
    memory.pipe({"/d/a.csv": b"1", "/d/b.csv": b"2"})
    (shard,) = open_shards(["memory://d/a.csv"], 9)
    assert shard.holds(RemoteOutput("memory://d/a.csv"))
    assert not shard.holds(RemoteOutput("memory://d/b.csv"))
    assert not shard.holds(Path("a.csv"))
    Path("x.csv").write_bytes(b"")
    (local,) = open_shards(["x.csv"], 9)
    assert local.holds(Path("x.csv"))
    assert not local.holds(RemoteOutput("memory://x.csv"))


def test_an_output_that_links_to_an_input_is_that_input() -> None:
    make("img.dat", "other.jpg")
    Path("res.csv").symlink_to("img.dat")
    Path("hard.csv").hardlink_to("img.dat")
    (shard,) = open_shards(["other.jpg", "img.dat"], 9)
    assert shard.holds(Path("res.csv"))
    assert shard.holds(Path("hard.csv"))


def test_an_input_that_links_to_an_output_is_that_output() -> None:
    make("photo.jpg", "rows.csv")
    Path("link.png").symlink_to("photo.jpg")
    (shard,) = open_shards(["link.png", "photo.jpg"], 9)
    assert shard.holds(Path("photo.jpg"))
    (shard,) = open_shards(["link.png"], 9)
    assert shard.holds(Path("photo.jpg"))
    assert not shard.holds(Path("rows.csv"))


def test_a_path_is_not_looked_at_that_cannot_be_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    make("other.jpg", "img.csv", "x.csv")
    (shard,) = open_shards(["other.jpg", "img.csv"], 9)
    asked: list[str] = []
    identity = files._identity

    def ask(path: str) -> tuple[int, int] | None:
        asked.append(path)
        return identity(path)

    monkeypatch.setattr(files, "_identity", ask)
    assert not shard.holds(Path("x.csv"))
    assert asked == ["x.csv", "img.csv"]
    assert not shard.holds(Path("none.csv"))
    assert asked[2:] == ["none.csv"]


def test_shards_say_what_they_are(memory: Any) -> None:
    memory.pipe({"/d/a.jpg": b"1", "/d/b.jpg": b"2"})
    assert [shard.describe() for shard in open_shards(["memory://d"], 9)] == [
        "'memory://d/a.jpg' to 'memory://d/b.jpg'"
    ]
