from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from trt_vit.engine import bundle as bundles
from trt_vit.engine.bundle import Bundle, new_bundle
from trt_vit.errors import ArtifactError, OutputError, UsageError
from trt_vit.reading import read_file

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


EMPTY = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}


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
        (lambda document: changed(document, files={"/x": {"sha256": "0" * 64, "bytes": 1}}), "not a plain file name"),
        (lambda document: changed(document, files={"x" * 200: {}}), "not a plain file name"),
        (lambda document: changed(document, files={"x": {"sha256": "0" * 64, "bytes": 2**60}}), "less than or equal"),
        (lambda document: changed(document, files={"x": EMPTY | {"\x1b[31m\n": 1}}), r"files.x.\x1b[31m\n: Extra"),
        (lambda document: changed(document, format="x" * 10**6), "xxx'; this version"),
        (lambda document: '{"format": ' + "[" * 900 + "]" * 900 + "}", "is not JSON"),
        (lambda document: json.dumps(document)[:-1] + ', "precision": "int8"}', "the key 'precision' is given twice"),
        (lambda document: changed(document, versions={"numpy\x1b[2J": "2"}), r"'numpy\x1b[2J' holds a control"),
        (lambda document: changed(document, created="now\n"), r"created: Value error, 'now\n' holds a control"),
        (lambda document: changed(document, created="\ud800"), r"'\ud800' is not text"),
        (lambda document: changed(document, model=document["model"] | {"height": 2**14 + 1}), "model.height: Input"),
        (lambda document: changed(document, model=document["model"] | {"classes": 10**12}), "model.classes: Input"),
        (lambda document: changed(document, model=document["model"] | {"classes": 10**300}), "not a number of 64 bits"),
        (lambda document: changed(document, engine=document["engine"] | {"int8_coverage": float("nan")}), "'NaN'"),
    ],
)
def test_a_damaged_manifest_is_refused(copy: Path, damage: Callable[[dict[str, Any]], str], message: str) -> None:
    file = copy / "manifest.json"
    file.write_text(damage(json.loads(file.read_text())))
    with pytest.raises(ArtifactError) as caught:
        Bundle.open(copy)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


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


@pytest.mark.parametrize("name", ["manifest.json", "engine.bin", "labels.json"])
def test_a_file_that_is_a_link_is_refused(copy: Path, name: str) -> None:
    (copy / name).rename(copy.parent / "elsewhere")
    (copy / name).symlink_to(copy.parent / "elsewhere")
    with pytest.raises(ArtifactError, match=rf"{name}: is a symbolic link"):
        Bundle.open(copy).verify()


def test_a_link_to_a_bundle_is_a_bundle(copy: Path, openvino_bundle: Bundle) -> None:
    (copy.parent / "latest").symlink_to(copy)
    opened = Bundle.open(copy.parent / "latest")
    opened.verify()
    assert opened.sha256 == openvino_bundle.sha256


@pytest.mark.parametrize("name", ["manifest.json", "engine.bin"])
def test_a_pipe_is_refused_without_waiting_for_it(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(ArtifactError, match=rf"{name}: is no regular file"):
        Bundle.open(copy).verify()


def test_what_was_read_is_what_was_compared(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is exchanged after it was compared changes nothing: it is not read a second time."""
    reads: list[str] = []

    def read_once(file: Path, limit: int, *, follow: bool) -> bytes:
        reads.append(file.name)
        data = read_file(file, limit, follow=follow)
        file.write_bytes(b"exchanged")
        return data

    opened = Bundle.open(copy)
    before = (copy / "engine.bin").read_bytes()
    monkeypatch.setattr(bundles, "read_file", read_once)
    assert opened.read("engine.bin") == before
    assert reads == ["engine.bin"]


def with_file(copy: Path, name: str, data: bytes) -> Bundle:
    """Return a bundle whose manifest agrees with a file that was put in place of another."""
    (copy / name).write_bytes(data)
    document = json.loads((copy / "manifest.json").read_bytes())
    document["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (copy / "manifest.json").write_text(json.dumps(document))
    return Bundle.open(copy)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a\x1b[31m", *"bcdefg"], r"labels.json: 0: Value error, 'a\x1b[31m' holds a control character"),
        (["a\n", *"bcdefg"], "holds a control character"),
        (["a\ud800", *"bcdefg"], r"'a\ud800' is not text"),
        ([1, *"bcdefg"], "0: Input should be a valid string"),
        ({}, "labels.json: document: Input should be"),
    ],
)
def test_labels_that_a_terminal_should_not_see_are_refused(copy: Path, labels: object, message: str) -> None:
    opened = with_file(copy, "labels.json", json.dumps(labels).encode())
    with pytest.raises(ArtifactError) as caught:
        opened.labels()
    assert message in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"resize": {"kind": "squash", "size": [32, 33]}}', "does not give the 32x32 pixels of the engine"),
        ('{"resize": null}', "does not give the 32x32 pixels"),
        ('{"resize": {"kind": "shortest_edge", "edge": 1000000}, "crop": [32, 32]}', "less than or equal to 16384"),
        ('{"resize": {"kind": "\\u001b[31m"}}', r"Input tag '\x1b[31m' found"),
        (f'{{"resize": {{"kind": "{"x" * 5000}"}}}}', "Input tag 'xxx"),
        ('{"resize": null, "crop": [32, 32], "mean": [NaN, 0, 0], "std": [1, 1, 1]}', "'NaN' is not a number"),
        ('{"resize": null, "crop": [32, 32], "crop": [32, 32]}', "'crop' is given twice"),
        ("{", "preprocessing.json is not JSON"),
        ("[" * 100_000, "is not JSON: it is nested too deeply"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(copy: Path, text: str, message: str) -> None:
    opened = with_file(copy, "preprocessing.json", text.encode())
    with pytest.raises(ArtifactError) as caught:
        opened.preprocessing()
    assert message in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_documents_have_a_limit(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle.open(copy)
    monkeypatch.setattr(bundles, "_DOCUMENT_LIMIT", 20)
    with pytest.raises(ArtifactError, match=r"labels\.json is larger than 20 bytes"):
        opened.labels()
    with pytest.raises(ArtifactError, match=r"manifest\.json: is larger than 20 bytes"):
        Bundle.open(copy)


def test_a_directory_that_a_manifest_lists_is_not_deleted(copy: Path) -> None:
    document = json.loads((copy / "manifest.json").read_bytes())
    document["files"]["thesis"] = {"sha256": "0" * 64, "bytes": 1}
    (copy / "manifest.json").write_text(json.dumps(document))
    (copy / "thesis").mkdir()
    (copy / "thesis" / "thesis.tex").touch()
    with pytest.raises(OutputError, match="holds thesis, which is not of the bundle"), new_bundle(copy):
        pass
    assert (copy / "thesis" / "thesis.tex").exists()


def test_a_place_that_the_libraries_cannot_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the name is not UTF-8"), new_bundle(tmp_path / os.fsdecode(b"\xff")):
        pass
    assert list(tmp_path.iterdir()) == []
