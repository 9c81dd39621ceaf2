from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from trt_vit.errors import OutputError
from trt_vit.serving.repository import Added, TritonModel, add_models

FIRST = TritonModel("a", {"config.pbtxt": b"of a", "labels.txt": b"cat\n"}, {"model.xml": b"graph", "model.bin": b""})
SECOND = TritonModel("b", {"config.pbtxt": b"of b"}, {})
MODELS = (FIRST, SECOND)


def tree(directory: Path) -> dict[str, bytes]:
    """Return all files by their relative paths, and directories, which end with a slash."""
    return {
        f"{path.relative_to(directory)}{'' if path.is_file() else '/'}": path.read_bytes() if path.is_file() else b""
        for path in directory.rglob("*")
    }


WHOLE = {
    "a/": b"",
    "a/config.pbtxt": b"of a",
    "a/labels.txt": b"cat\n",
    "a/1/": b"",
    "a/1/model.xml": b"graph",
    "a/1/model.bin": b"",
    "b/": b"",
    "b/config.pbtxt": b"of b",
    "b/1/": b"",
}


def test_a_repository_is_made_where_there_is_none(tmp_path: Path) -> None:
    repository = tmp_path / "new" / "models"
    added = add_models(repository, MODELS)
    assert added == Added(1, ("a/1/model.bin", "a/1/model.xml", "a/config.pbtxt", "a/labels.txt", "b/config.pbtxt"))
    assert tree(repository) == WHOLE
    assert [path.name for path in repository.parent.iterdir()] == ["models"]


def test_files_can_be_read_by_the_server(tmp_path: Path) -> None:
    """Which is often another user: nothing has the mode of a temporary directory."""
    old = os.umask(0o022)
    try:
        add_models(tmp_path, MODELS)
    finally:
        os.umask(old)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_dir()}
    assert modes == {0o755}
    assert (tmp_path / "a" / "1" / "model.xml").stat().st_mode & 0o777 == 0o644


def test_a_model_that_is_there_gets_the_next_version(tmp_path: Path) -> None:
    add_models(tmp_path, MODELS)
    added = add_models(tmp_path, (TritonModel("a", FIRST.shared, {"model.xml": b"other"}), SECOND))
    assert added == Added(2, ("a/2/model.xml",))
    assert tree(tmp_path) == WHOLE | {"a/2/": b"", "a/2/model.xml": b"other", "b/2/": b""}


def test_all_get_the_same_version_one_above_the_latest(tmp_path: Path) -> None:
    add_models(tmp_path, (FIRST,))
    for name in ("9", "10", "011", "12x", "old"):
        (tmp_path / "a" / name).mkdir()
    assert add_models(tmp_path, MODELS).version == 11
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"config.pbtxt", "11"}


@pytest.mark.parametrize(
    ("changed", "content", "message"),
    [
        ("b/config.pbtxt", b"of c", "b is another model: its config.pbtxt differs"),
        ("a/labels.txt", b"dog\n", "a is another model: its labels.txt differs"),
        ("a/labels.txt", None, "a is there, and is no model that has a labels.txt"),
    ],
)
def test_another_model_keeps_its_name(tmp_path: Path, changed: str, content: bytes | None, message: str) -> None:
    add_models(tmp_path, MODELS)
    if content is None:
        (tmp_path / changed).unlink()
    else:
        (tmp_path / changed).write_bytes(content)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=message) as caught:
        add_models(tmp_path, MODELS)
    assert "--name" in caught.value.hint
    assert tree(tmp_path) == before


def test_a_file_or_a_dangling_link_has_the_name(tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="b is there"):
        add_models(tmp_path, MODELS)
    (tmp_path / "b").unlink()
    (tmp_path / "b").write_text("a file")
    with pytest.raises(OutputError, match="b is there"):
        add_models(tmp_path, MODELS)
    assert tree(tmp_path) == {"b": b"a file"}


def test_the_repository_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(OutputError, match="models is a file"):
        add_models(tmp_path / "models", MODELS)


def test_a_place_that_cannot_be_written() -> None:
    with pytest.raises(OutputError, match="cannot write to the model repository /proc/models") as caught:
        add_models(Path("/proc/models"), MODELS)
    assert "REPOSITORY" in caught.value.hint


@pytest.mark.parametrize("versions", [0, 1])
@pytest.mark.parametrize("reason", [OSError("disk is gone"), KeyboardInterrupt()])
def test_a_failure_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, versions: int, reason: BaseException
) -> None:
    repository = tmp_path / "models"
    for _ in range(versions):
        add_models(repository, MODELS)
    before = tree(tmp_path)
    rename = Path.rename

    def fail_at_b(self: Path, target: Any) -> Path:
        if Path(target).parts[-1 - versions] == "b":
            assert (repository / "a" / str(versions + 1) / "model.xml").exists()
            raise reason
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_at_b)
    with pytest.raises(KeyboardInterrupt if isinstance(reason, KeyboardInterrupt) else OutputError):
        add_models(repository, MODELS)
    assert tree(tmp_path) == before | {"models/": b""}


def test_a_repository_whose_parent_is_closed_is_written_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when it is mounted into a container."""
    repository, places = tmp_path / "models", list[Path]()
    rename = Path.rename

    def note_place(self: Path, target: Any) -> Path:
        places.append(self)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", note_place)
    add_models(repository, MODELS)
    assert all(repository not in place.parents for place in places)
    places.clear()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    add_models(repository, MODELS)
    assert len(places) == 2
    assert all(repository in place.parents for place in places)
    assert {path.name for path in repository.iterdir()} == {"a", "b"}
