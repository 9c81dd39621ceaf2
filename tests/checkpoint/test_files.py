from __future__ import annotations

import hashlib
import logging
import os
import warnings
from pathlib import Path

import pytest

from trt_vit.checkpoint.files import (
    TEXT_LIMIT,
    needs_export_extra,
    open_beside,
    quiet,
    read_json_object,
    refuse_links_outside,
    sha256_of,
    staged,
    writing,
)
from trt_vit.errors import CheckpointError, EnvironmentFault, OutputError


def test_staged_file_replaces_the_old_one(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    output.write_text("old")
    with staged(output) as stage:
        stage.write_text("new")
        assert output.read_text() == "old"
    assert output.read_text() == "new"
    assert list(tmp_path.iterdir()) == [output]


def test_file_of_weights_is_moved_before_the_model_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    rename = type(tmp_path).replace

    def replace(path: Path, target: Path) -> Path:
        moved.append(path.name)
        return rename(path, target)

    monkeypatch.setattr(type(tmp_path), "replace", replace)
    with staged(tmp_path / "a.onnx") as stage:
        stage.write_text("model")
        stage.with_name("a.onnx.data").write_text("weights")
    assert moved == ["a.onnx.data", "a.onnx"]


def test_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    output.write_text("old")
    with pytest.raises(IsADirectoryError), staged(output) as stage:
        stage.parent.write_text("half")
    assert output.read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


def test_output_that_is_a_directory(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    output.mkdir()
    with pytest.raises(OutputError, match="cannot be written") as caught, staged(output) as stage:
        stage.write_text("new")
    assert str(output) in caught.value.message
    assert caught.value.hint


def test_full_disk_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"), writing(tmp_path / "model.onnx"):
        raise OSError(28, "No space left on device")


def test_sha256_of_several_files_is_that_of_their_bytes_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / "b", tmp_path / "a"]
    paths[0].write_bytes(b"first " * 400_000)
    paths[1].write_bytes(b"second")
    assert sha256_of(paths) == hashlib.sha256(b"first " * 400_000 + b"second").hexdigest()


def test_json_object(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": [1]}')
    assert read_json_object(path) == {"a": [1]}


@pytest.mark.parametrize(
    ("content", "message"), [(b"[1]", "expected a JSON object, found list"), (b"\xff", "not JSON"), (b"{", "not JSON")]
)
def test_what_is_not_a_json_object(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json_object(path)
    assert str(path) in caught.value.message


def test_missing_package_names_the_extra() -> None:
    with pytest.raises(EnvironmentFault, match="the package no_such_package is not installed") as caught:  # noqa: SIM117
        with needs_export_extra():
            __import__("no_such_package")
    assert caught.value.hint == "pip install 'trt-vit[export]'"


def test_quiet_moves_prints_and_drops_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("chatter")
    with quiet():
        print("chatter")  # noqa: T201
        warnings.warn("ignored", stacklevel=1)
        enabled = logger.isEnabledFor(logging.WARNING), logger.isEnabledFor(logging.ERROR)
    assert capsys.readouterr() == ("", "chatter\n")
    assert enabled == (False, True)
    assert logger.isEnabledFor(logging.WARNING)


def test_a_name_that_the_libraries_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the name is not UTF-8"), staged(tmp_path / os.fsdecode(b"\xff.onnx")):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' is given twice"),
        (b'{"a": NaN}', "'NaN' is not a number"),
        (b'{"a": 1e999}', "'1e999' is not a number"),
        (b'{"a": ' + b"1" * 400 + b"}", "is not a number of 64 bits"),
        (b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", "nested"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": "\\ud800"}', "is not text"),
    ],
)
def test_json_that_readers_differ_on(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json_object(path)
    assert len(caught.value.message) < 500


def test_what_is_no_file_or_too_large(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is no regular file"):
        read_json_object(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", TEXT_LIMIT + 1)
    with pytest.raises(CheckpointError, match="is larger than 67108864 bytes"):
        read_json_object(tmp_path / "large")


class TestLinks:
    def test_out_of_the_directory(self, tmp_path: Path) -> None:
        checkpoint = tmp_path / "checkpoint"
        checkpoint.mkdir()
        (tmp_path / "secret").touch()
        (checkpoint / "own").touch()
        (checkpoint / "link").symlink_to("own")
        refuse_links_outside(checkpoint)
        (checkpoint / "config.json").symlink_to("../secret")
        with pytest.raises(CheckpointError, match=r"config\.json: is a link to a file outside"):
            refuse_links_outside(checkpoint)
        refuse_links_outside(checkpoint, "link", "own", "none")
        with pytest.raises(CheckpointError, match=r"config\.json: is a link"):
            refuse_links_outside(checkpoint, "config.json")

    def test_the_cache_of_the_hub(self, tmp_path: Path) -> None:
        snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        (tmp_path / "models--a--b" / "blobs").mkdir()
        (tmp_path / "models--a--b" / "blobs" / "content").touch()
        (snapshot / "config.json").symlink_to("../../blobs/content")
        refuse_links_outside(snapshot)
        (tmp_path / "link").symlink_to(snapshot)
        refuse_links_outside(tmp_path / "link")
        (snapshot / "other").symlink_to("../../other")
        with pytest.raises(CheckpointError, match="other: is a link"):
            refuse_links_outside(snapshot)

    def test_a_place_for_blobs_that_is_a_link_itself(self, tmp_path: Path) -> None:
        snapshot = tmp_path / "m" / "snapshots" / "0"
        snapshot.mkdir(parents=True)
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets" / "key").touch()
        (tmp_path / "m" / "blobs").symlink_to(tmp_path / "secrets")
        (snapshot / "config.json").symlink_to("../../blobs/key")
        with pytest.raises(CheckpointError, match=r"config\.json: is a link"):
            refuse_links_outside(snapshot)


class TestBeside:
    @pytest.mark.parametrize(
        "name", ["", ".", "..", "/dev/zero", "../secret", "sub/../../secret", "sub/..", "a\0b", "//x", "./../secret"]
    )
    def test_names_that_lead_elsewhere(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "secret").touch()
        (tmp_path / "model" / "sub").mkdir(parents=True)
        with (
            pytest.raises(CheckpointError, match="not the name of a file beside it"),
            open_beside(tmp_path / "model" / "m.onnx", name),
        ):
            pass

    def test_a_file_below(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "w").write_bytes(b"weights")
        for name in ("sub/w", "./sub//w"):
            with open_beside(tmp_path / "m.onnx", name) as stream:
                assert stream.read() == b"weights"
        with pytest.raises(FileNotFoundError), open_beside(tmp_path / "m.onnx", "none"):
            pass

    @pytest.mark.parametrize("name", ["link", "linked/w", "hard", "pipe", "sub", "dangling"])
    def test_what_is_no_file_of_its_own(self, tmp_path: Path, name: str) -> None:
        root = tmp_path / "model"
        (root / "sub").mkdir(parents=True)
        (tmp_path / "w").write_bytes(b"secret")
        (root / "link").symlink_to(tmp_path / "w")
        (root / "linked").symlink_to(tmp_path)
        (root / "dangling").symlink_to("none")
        (root / "hard").hardlink_to(tmp_path / "w")
        os.mkfifo(root / "pipe")
        opened = len(list(Path("/proc/self/fd").iterdir()))
        with (
            pytest.raises(CheckpointError, match="not a file of its own, but a link, a pipe or a device"),
            open_beside(root / "m.onnx", name),
        ):
            pass
        assert len(list(Path("/proc/self/fd").iterdir())) == opened
