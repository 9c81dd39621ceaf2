from __future__ import annotations

import errno
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from trt_vit.engine.bundle import Bundle, new_bundle
from trt_vit.errors import ArtifactError, OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def copy(openvino_bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(openvino_bundle.path, tmp_path / "copy")


def test_it_holds_what_a_run_needs(openvino_bundle: Bundle) -> None:
    openvino_bundle.verify()
    assert openvino_bundle.labels() == tuple(f"kind {index}" for index in range(7))
    assert openvino_bundle.preprocessing().output_size == (32, 32)
    files = sorted(path.name for path in openvino_bundle.path.iterdir())
    assert files == ["engine.bin", "engine.xml", "labels.json", "manifest.json", "preprocessing.json"]


def test_its_digest_is_that_of_the_manifest(copy: Path, openvino_bundle: Bundle) -> None:
    assert Bundle.open(copy).sha256 == openvino_bundle.sha256
    (copy / "manifest.json").write_text((copy / "manifest.json").read_text() + "\n")
    assert Bundle.open(copy).sha256 != openvino_bundle.sha256


@pytest.mark.parametrize("name", ["engine.bin", "engine.xml", "labels.json", "preprocessing.json"])
def test_a_changed_file_is_refused(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{name} is not what the manifest says") as caught:
        Bundle.open(copy).verify()
    assert caught.value.exit_code == 5


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "engine.bin").unlink()
    with pytest.raises(ArtifactError, match=r"engine\.bin: No such file"):
        Bundle.open(copy).read("engine.bin")


def test_a_file_the_manifest_does_not_list_is_never_read(copy: Path) -> None:
    (copy / "extra").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="lists no extra"):
        Bundle.open(copy).read("extra")


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no bundle at") as caught:
        Bundle.open(tmp_path / "none")
    assert caught.value.exit_code == 2


def test_a_directory_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a bundle"):
        Bundle.open(tmp_path)


def changed(document: dict[str, Any], **changes: Any) -> str:
    return json.dumps(document | changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: "{", "is not JSON"),
        (lambda _: "[]", "is not a manifest"),
        (lambda _: "[" * 100_000, "is not JSON"),
        (lambda document: changed(document, format=2), "has format 2; this version reads format 3"),
        (lambda document: changed(document, surprise=1), "surprise: Extra inputs"),
        (lambda document: changed(document, runtime="magic"), "runtime: Input should be"),
        (lambda document: changed(document, files={"../x": {"sha256": "0" * 64, "bytes": 1}}), "not a plain file name"),
        (lambda document: changed(document, files={"x": {"sha256": "0", "bytes": 1}}), "files.x.sha256"),
    ],
)
def test_a_damaged_manifest_is_refused(copy: Path, damage: Callable[[dict[str, Any]], str], message: str) -> None:
    file = copy / "manifest.json"
    file.write_text(damage(json.loads(file.read_text())))
    with pytest.raises(ArtifactError) as caught:
        Bundle.open(copy)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_that_do_not_fit_the_classes_are_refused(copy: Path, openvino_bundle: Bundle) -> None:
    labels = (copy / "labels.json").read_bytes()
    model = openvino_bundle.manifest.model.model_copy(update={"classes": 8})
    manifest = openvino_bundle.manifest.model_copy(update={"model": model})
    assert labels
    with pytest.raises(ArtifactError, match="7 labels for 8 classes"):
        Bundle(copy, manifest, "").labels()


class StopError(Exception):
    pass


def test_a_build_that_fails_leaves_the_earlier_bundle(copy: Path) -> None:
    before = Bundle.open(copy).sha256
    with pytest.raises(StopError), new_bundle(copy) as work:
        (work / "manifest.json").write_text("half")
        raise StopError
    assert Bundle.open(copy).sha256 == before
    assert list(copy.parent.iterdir()) == [copy]


def test_a_build_replaces_the_earlier_bundle(copy: Path) -> None:
    with new_bundle(copy) as work:
        (work / "manifest.json").write_text("new")
    assert [path.name for path in copy.iterdir()] == ["manifest.json"]
    assert list(copy.parent.iterdir()) == [copy]


def test_a_directory_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match="something else than a bundle"), new_bundle(tmp_path):
        pass


def test_a_directory_with_a_manifest_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(OutputError, match="something else than a bundle"), new_bundle(tmp_path):
        pass
    assert (tmp_path / "manifest.json").read_text() == '{"name": "a web page"}'


def test_a_bundle_with_results_in_it_is_not_replaced(copy: Path) -> None:
    (copy / "predictions.csv").touch()
    with pytest.raises(OutputError, match=r"holds predictions\.csv"), new_bundle(copy):
        pass
    assert (copy / "predictions.csv").exists()


def test_a_full_disk_is_an_error_of_the_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write a bundle to .*No space left"), new_bundle(tmp_path / "b"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_has_grown_is_refused(copy: Path) -> None:
    with (copy / "engine.bin").open("ab") as stream:
        stream.write(b"!")
    with pytest.raises(ArtifactError, match="not what the manifest says"):
        Bundle.open(copy).read("engine.bin")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"), new_bundle(tmp_path / "file"):
        pass
    with pytest.raises(OutputError, match="cannot write a bundle"), new_bundle(tmp_path / "file" / "bundle"):
        pass
