from __future__ import annotations

import hashlib
import logging
import warnings
from typing import TYPE_CHECKING

import pytest

from trt_vit.checkpoint.files import needs_export_extra, quiet, read_json_object, sha256_of, staged, writing
from trt_vit.errors import CheckpointError, EnvironmentFault, OutputError

if TYPE_CHECKING:
    from pathlib import Path


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
