"""What tests/engine/test_plan_cache.py does not cover through the cache of plans."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import pytest

from trt_vit.caches import FileCache, cache_directory, digest_of, make_private, only_ours, read_ours, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def cache_in(directory: Path, limit: int = 10**6) -> FileCache:
    return FileCache(directory / "cache", limit)


def save(text: str, *more: str) -> Callable[[Path], None]:
    def write(entry: Path) -> None:
        for name in ("a.txt", *more):
            (entry / name).write_text(text, encoding="utf-8")

    return write


def load(entry: Path) -> str:
    return (entry / "a.txt").read_text(encoding="utf-8")


def test_several_files_are_stored_together(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    cache.put("key", save("one", "b.txt", "c.txt"))
    assert cache.get("key", lambda entry: sorted(file.name for file in entry.glob("*.txt"))) == [
        "a.txt",
        "b.txt",
        "c.txt",
    ]
    cache.put("key", save("two"))
    assert cache.get("key", lambda entry: [file.name for file in entry.glob("*.txt")]) == ["a.txt"]


def test_what_nobody_stored_is_not_loaded(tmp_path: Path) -> None:
    def refuse(_: Path) -> None:
        raise AssertionError("loaded")

    cache = cache_in(tmp_path)
    assert cache.get("key", refuse) is None
    cache.put("key", save("one"))
    cache.directory.chmod(0o770)
    assert cache.get("key", refuse) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError,
        FileNotFoundError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        BadZipFile,
        UnicodeError,
        RuntimeError,
        NotImplementedError,  # what zipfile makes of damaged flags and versions
    ],
)
def test_files_that_cannot_be_read_are_as_good_as_none(tmp_path: Path, error: type[Exception]) -> None:
    def damaged(_: Path) -> str:
        raise error

    cache = cache_in(tmp_path)
    cache.put("key", save("one"))
    assert cache.get("key", damaged) is None
    assert cache.get("key", load) == "one"


def test_a_mistake_of_ours_is_not_taken_for_damage(tmp_path: Path) -> None:
    def mistaken(_: Path) -> str:
        raise AssertionError

    cache = cache_in(tmp_path)
    cache.put("key", save("one"))
    with pytest.raises(AssertionError):
        cache.get("key", mistaken)


def test_what_is_not_written_whole_is_not_stored_and_the_old_stays(tmp_path: Path) -> None:
    def halfway(error: type[Exception]) -> Callable[[Path], None]:
        def write(entry: Path) -> None:
            save("two")(entry)
            raise error

        return write

    cache = cache_in(tmp_path)
    cache.put("key", save("one"))
    cache.put("key", halfway(OSError))  # a full disk is no error
    assert cache.get("key", load) == "one"
    with pytest.raises(ValueError):
        cache.put("key", halfway(ValueError))
    assert cache.get("key", load) == "one"
    assert [entry.name for entry in cache.directory.iterdir()] == ["key"]


def test_what_is_loaded_is_used_last(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, limit=25)
    for age, key in enumerate("ab"):
        cache.put(key, save("x" * 10))
        os.utime(cache.directory / key, (age, age))
    assert cache.get("a", lambda _: None) is None  # what is of no use counts as used, too
    cache.put("c", save("x" * 10))
    assert {entry.name for entry in cache.directory.iterdir()} == {"a", "c"}


def test_damage_does_not_count_as_use(tmp_path: Path) -> None:
    def damaged(_: Path) -> str:
        raise ValueError

    cache = cache_in(tmp_path, limit=25)
    for age, key in enumerate("ab"):
        cache.put(key, save("x" * 10))
        os.utime(cache.directory / key, (age, age))
    cache.get("a", damaged)
    cache.put("c", save("x" * 10))
    assert {entry.name for entry in cache.directory.iterdir()} == {"b", "c"}


def test_what_is_larger_than_the_limit_is_stored_alone(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, limit=25)
    cache.put("small", save("x"))
    cache.put("large", save("x" * 100))
    assert [entry.name for entry in cache.directory.iterdir()] == ["large"]
    assert cache.get("large", load) == "x" * 100


def test_entries_are_their_owners_alone(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    cache.put("key", save("one"))
    assert stat.S_IMODE((cache.directory / "key").stat().st_mode) == 0o700


def test_writers_of_one_key_do_not_mix(tmp_path: Path) -> None:
    """Whoever comes last, the files of an entry are of one writer."""
    cache = cache_in(tmp_path)
    start = threading.Barrier(4)

    def write(text: str) -> None:
        start.wait()
        for _ in range(20):
            cache.put("key", save(text, "b.txt"))

    threads = [threading.Thread(target=write, args=(text,)) for text in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = cache.get("key", lambda entry: (load(entry), (entry / "b.txt").read_text("utf-8"))) or ("", "-")
    assert first == second
    assert [entry.name for entry in cache.directory.iterdir()] == ["key"]


def test_a_digest_is_of_a_graph_and_the_weights_beside_it(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"graph")
    alone = digest_of(model)
    (tmp_path / "other.onnx").write_bytes(b"another")
    assert digest_of(model) == alone
    (tmp_path / "m.onnx.data").write_bytes(b"weights")
    with_weights = digest_of(model)
    assert with_weights != alone
    (tmp_path / "m.onnx.data").write_bytes(b"Weights")
    assert digest_of(model) not in {alone, with_weights}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "m.onnx").write_bytes(b"graph")
    assert digest_of(elsewhere / "m.onnx") == alone


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "trt-vit"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "trt-vit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == tmp_path / "home" / ".cache" / "trt-vit"


def test_missing_directories_are_made_private_and_others_left(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_private(tmp_path / "a" / "b")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")] == [
        0o755,
        0o700,
        0o700,
    ]


@pytest.mark.parametrize(("mode", "ours"), [(0o700, True), (0o755, True), (0o720, False), (0o702, False)])
def test_only_what_nobody_else_can_write_is_ours(tmp_path: Path, mode: int, ours: bool) -> None:  # noqa: FBT001
    directory = tmp_path / "d"
    directory.mkdir()
    directory.chmod(mode)
    assert only_ours(directory) == ours


def test_a_file_is_not_a_directory_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o600)
    assert not only_ours(tmp_path / "file")


def test_a_replaced_file_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / "file"
    replace_file(file, b"one")
    replace_file(file, b"two")
    assert file.read_bytes() == b"two"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        replace_file(file, b"three")
    assert file.read_bytes() == b"two"
    assert list(file.parent.iterdir()) == [file]


def test_a_name_with_the_letters_of_a_pattern_is_a_name(tmp_path: Path) -> None:
    model = tmp_path / "m[1].onnx"
    model.write_bytes(b"graph")
    before = digest_of(model)
    model.write_bytes(b"another")
    assert digest_of(model) != before


def open_to_others(directory: Path) -> Path:
    directory.mkdir()
    directory.chmod(0o777)
    return directory


def linked(directory: Path) -> Path:
    directory.with_suffix(".real").mkdir(mode=0o700)
    directory.symlink_to(directory.with_suffix(".real"))
    return directory


@pytest.mark.parametrize("make", [open_to_others, linked])
@pytest.mark.parametrize("below", [".", "cache"])
def test_nothing_is_left_where_others_could_have_put_it(
    tmp_path: Path, make: Callable[[Path], Path], below: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = make(tmp_path / "place")
    cache = FileCache(place / below, 10**6)
    cache.put("key", save("one"))
    assert cache.get("key", load) is None
    assert not (place / below / "key").exists()
    with pytest.raises(OSError, match="others can write to it"):
        replace_file(place / below / "file", b"data")
    assert not (place / below / "file").exists()
    (told,) = {record.getMessage() for record in caplog.records}
    assert len(caplog.records) == 1
    assert told == (
        f"note: the cache {cache.directory} is not used: it is a link, or others can write to it or to "
        f"{cache.directory.absolute().parent}"
    )


def test_the_directory_above_counts_when_it_is_opened_later(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "root" / "cache", 10**6)
    cache.put("key", save("one"))
    assert cache.get("key", load) == "one"
    (tmp_path / "root").chmod(0o770)
    assert cache.get("key", load) is None
    (tmp_path / "root").chmod(0o1777)  # as /tmp: others cannot move what is not theirs
    assert cache.get("key", load) == "one"


def test_a_linked_directory_is_not_cleared(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / ".old.partial").mkdir(parents=True)
    os.utime(other / ".old.partial", (0, 0))
    (tmp_path / "cache").symlink_to(other)
    cache_in(tmp_path).put("key", save("one"))
    assert [entry.name for entry in other.iterdir()] == [".old.partial"]


def test_a_cached_file_is_read_where_only_we_can_write(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "file"
    assert read_ours(file, 10) is None
    replace_file(file, b"data")
    assert read_ours(file, 10) == b"data"
    assert read_ours(file, 3) is None
    file.with_name("link").symlink_to(file)
    assert read_ours(file.with_name("link"), 10) is None
    file.parent.chmod(0o777)
    assert read_ours(file, 10) is None
