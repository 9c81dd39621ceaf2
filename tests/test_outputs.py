"""Outputs behind URLs: whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trt_vit.errors import EnvironmentFault, OutputError
from trt_vit.outputs import Output, RemoteOutput, open_whole, parse_output, size_of
from trt_vit.parts import Part
from trt_vit.pipeline.journal import directory_of, open_journal
from trt_vit.pipeline.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

fsspec = pytest.importorskip("fsspec", reason="needs fsspec")

OUTPUT = RemoteOutput("memory://out/rows.jsonl")


@pytest.fixture(autouse=True)
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()
    assert not filesystem._intrans


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("a//b.csv", Path("a/b.csv")),
        ("s3://bucket/a//b.csv", RemoteOutput("s3://bucket/a//b.csv")),
        ("file:///a/b.csv", Path("/a/b.csv")),
        ("file://a/b.csv", Path("a/b.csv")),
        ("LOCAL:///a b%20.csv", Path("/a b%20.csv")),
        ("./s3://b.csv", Path("s3:/b.csv")),
    ],
)
def test_an_output_is_a_path_or_a_url(text: str, output: Output) -> None:
    assert parse_output(text) == output


def test_what_is_told_of_a_url_holds_no_secret() -> None:
    output = RemoteOutput("https://user:word@host/a.b/rows.PARQUET?sig=word&id=1")
    assert (output.name, str(output), output.suffix) == (
        *["https://host/a.b/rows.PARQUET?id=1"] * 2,
        ".PARQUET",
    )
    assert "word" not in repr(output)
    assert RemoteOutput("s3://bucket.csv/a").suffix == ""


def test_an_output_appears_when_it_is_whole(memory: Any) -> None:
    with open_whole(OUTPUT) as stream:
        stream.write(b"first\n")
        stream.flush()
        assert size_of(OUTPUT) is None
        stream.write(b"second\n")
    assert memory.cat_file("/out/rows.jsonl") == b"first\nsecond\n"
    assert size_of(OUTPUT) == 13


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_output_that_fails_leaves_what_was_there(memory: Any, error: type[BaseException]) -> None:
    for before in (None, b"earlier"):
        if before is not None:
            memory.pipe_file("/out/rows.jsonl", before)
        with pytest.raises(error), open_whole(OUTPUT) as stream:
            stream.write(b"half")
            raise error
        assert size_of(OUTPUT) == (None if before is None else len(before))
    with open_whole(OUTPUT) as stream:
        stream.write(b"whole")
    assert memory.cat_file("/out/rows.jsonl") == b"whole"


def test_a_table_is_written_to_a_url(memory: Any) -> None:
    table = pa.table({"a": list(range(1000))})
    with open_whole(RemoteOutput("memory://out/t.parquet")) as stream, pq.ParquetWriter(stream, table.schema) as writer:
        writer.write_table(table)
    with memory.open("/out/t.parquet") as stream:
        assert pq.read_table(stream).equals(table)


@pytest.mark.parametrize("when", ["open", "write", "close", "commit"])
def test_whatever_keeps_it_from_being_written_names_it(memory: Any, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    kind = type(memory.open("/x", "wb"))

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room\nat https://user:word@host")

    monkeypatch.setattr(type(memory) if when == "open" else kind, when, fail)
    with pytest.raises(OutputError) as caught, open_whole(RemoteOutput("memory://u:word@out/rows.csv")) as stream:
        stream.write(b"row")
    assert caught.value.message == "cannot write memory://out/rows.csv: no room at https://host"


def test_an_output_that_cannot_be_asked_for_is_an_error(monkeypatch: pytest.MonkeyPatch, memory: Any) -> None:
    def fail(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(type(memory), "info", fail)
    with pytest.raises(OutputError, match=r"cannot write memory://out/rows.jsonl: permission denied"):
        size_of(OUTPUT)


def test_the_size_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    assert size_of(tmp_path / "a") == 3
    for path in (tmp_path / "b", tmp_path / "a" / "b", tmp_path / "\0"):
        assert size_of(path) is None


def test_a_buffered_file_that_is_not_whole_is_never_sent(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows nothing of transactions sends a file when it is closed, or freed."""
    sent = []

    from fsspec.spec import AbstractBufferedFile

    class Careless(AbstractBufferedFile):  # type: ignore[misc]
        def _initiate_upload(self) -> None:
            pass

        def _upload_chunk(self, final: bool = False) -> bool:  # noqa: FBT001, FBT002 - as fsspec has it
            sent.append((self.buffer.getvalue(), final))
            return True

    monkeypatch.setattr(type(memory), "_open", lambda self, path, mode, **_: Careless(self, path, mode))
    with pytest.raises(ValueError, match="stop"), open_whole(OUTPUT) as stream:
        stream.write(b"half")
        raise ValueError("stop")
    del stream
    assert sent == []
    with open_whole(OUTPUT) as stream:
        stream.write(b"whole")
    assert sent == [(b"whole", True)]


def test_the_journal_of_a_url_lies_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = directory_of(RemoteOutput("s3://key:word@bucket/rows.csv"))
    assert found.parent == tmp_path / "trt-vit" / "runs"
    assert len(found.name) == 64
    assert found == directory_of(RemoteOutput("s3://bucket/rows.csv"))
    assert found != directory_of(RemoteOutput("s3://bucket//rows.csv"))
    assert directory_of(tmp_path / "rows.csv") == tmp_path / ".rows.csv.journal"


REMOTE = RemoteOutput("memory://a/x.jsonl")


def hold_remote() -> None:
    with open_journal(REMOTE, Plan([], "b", {"top_k": 1}), Part(), print, resume=True):
        pass


@pytest.mark.parametrize("how", ["link", "others"])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_journal_is_not_kept_where_others_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, level: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hold_remote()
    journal = directory_of(REMOTE)
    place = (journal.parent.parent, journal.parent, journal)[level]
    if how == "link":
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.chmod(0o777)
    with pytest.raises(OutputError) as caught:
        hold_remote()
    assert caught.value.message.startswith(f"cannot keep a journal in the cache {place}: it is a link")
    assert "XDG_CACHE_HOME" in caught.value.hint
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    hold_remote()


def test_a_journal_that_no_cache_can_hold_names_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    place = tmp_path / "file" / "trt-vit" / "runs"
    with pytest.raises(OutputError, match=f"cannot keep a journal in the cache {place}: ") as caught:
        hold_remote()
    assert "XDG_CACHE_HOME" in caught.value.hint


def test_there_is_no_cache_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(EnvironmentFault, match="no home directory"):
        hold_remote()


def test_what_ended_it_is_told_even_if_letting_go_fails(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(type(memory.open("/x", "wb")), "discard", fail)
    with pytest.raises(KeyboardInterrupt), open_whole(OUTPUT) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
