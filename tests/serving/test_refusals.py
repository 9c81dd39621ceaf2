"""What ``trt-vit export-triton`` refuses, and what it makes of names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import files_of, remade
from trt_vit.cli import run
from trt_vit.engine.bundle import Bundle, record, write_manifest
from trt_vit.engine.manifest import BatchProfile
from trt_vit.errors import ArtifactError, UsageError
from trt_vit.serving.export import Exported, default_name, export_triton


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("vit-cifar10.bundle", "vit-cifar10.bundle"),
        ("a model", "a_model"),
        ('x" } evil {', "x_evil_"),
        ("..hidden", "hidden"),
        ("-rf", "rf"),
        ("née", "n_e"),
        ("two\nlines", "two_lines"),
        ("日本", "model"),
        ("_", "model"),
        ("x" * 255, "x" * 200),
    ],
)
def test_a_directory_of_any_name_gives_a_name(directory: str, name: str, tmp_path: Path) -> None:
    assert default_name(tmp_path / directory) == name


def test_the_name_of_a_directory_that_is_no_text(tmp_path: Path) -> None:
    assert default_name(tmp_path / b"a\xffb".decode("utf-8", "surrogateescape")) == "a_b"


def test_the_working_directory_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert default_name(Path()) == "here"


def test_a_bundle_of_a_hostile_name(openvino_bundle: Bundle, tmp_path: Path) -> None:
    hostile = remade(openvino_bundle, tmp_path / 'x"\n}..')
    assert export_triton(hostile, tmp_path / "models").model == "x_.."
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"x_..", "x_.._preprocess", "x_.._ensemble"}


@pytest.mark.parametrize("name", ["", "..", "a/b", "/abs", "-a", ".a", "a b", 'a"', "né", "a\n", "x" * 201])
def test_a_name_that_no_model_can_have(name: str, openvino_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a model's name"):
        export_triton(openvino_bundle, tmp_path / "models", name)
    assert not (tmp_path / "models").exists()


def test_the_longest_name_has_room_for_its_companions(openvino_bundle: Bundle, tmp_path: Path) -> None:
    name = "x" * 200
    exported = export_triton(openvino_bundle, tmp_path, name)
    assert exported == Exported(name, 1, exported.files)
    assert (tmp_path / f"{name}_preprocess").is_dir()


def test_tensorrt_for_rtx_has_no_backend(openvino_bundle: Bundle, tmp_path: Path) -> None:
    rtx = remade(openvino_bundle, tmp_path / "b", {"engine.plan": b"plan"}, runtime="tensorrt-rtx")
    with pytest.raises(UsageError, match="an engine for tensorrt-rtx, which Triton has no backend for") as caught:
        export_triton(rtx, tmp_path / "models")
    assert "--runtime tensorrt, onnxruntime or openvino" in caught.value.hint
    assert not (tmp_path / "models").exists()


def test_a_plan_that_takes_no_single_image(openvino_bundle: Bundle, tmp_path: Path) -> None:
    changes = {"runtime": "tensorrt", "batch": BatchProfile(min=2, opt=4, max=8)}
    plan = remade(openvino_bundle, tmp_path / "b", {"engine.plan": b"plan"}, **changes)
    with pytest.raises(UsageError, match="takes 2 images or more at once"):
        export_triton(plan, tmp_path / "models")
    other = remade(openvino_bundle, tmp_path / "c", batch=changes["batch"])
    assert export_triton(other, tmp_path / "models").version == 1


@pytest.mark.parametrize("file", ["engine.xml", "engine.bin", "labels.json", "preprocessing.json"])
def test_a_file_that_was_changed_is_not_served(file: str, openvino_bundle: Bundle, tmp_path: Path) -> None:
    changed = remade(openvino_bundle, tmp_path / "b")
    with (changed.path / file).open("ab") as stream:
        stream.write(b" ")
    assert run(["export-triton", str(changed.path), str(tmp_path / "models")]) == 5
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("change", [{"height": 48}, {"classes": 8}, {"input_name": "x"}, {"output_name": "x"}])
def test_an_engine_that_is_not_the_manifests(
    runtime: str, change: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle: Bundle = request.getfixturevalue(f"{runtime}_bundle")
    other = remade(bundle, tmp_path / "b", model=bundle.manifest.model.model_copy(update=change))
    with pytest.raises(ArtifactError, match=r"the engine has pixel_values .*, the manifest says"):
        export_triton(other, tmp_path / "models")


def test_an_engine_of_a_fixed_batch_is_not_served(openvino_bundle: Bundle, tmp_path: Path) -> None:
    import openvino

    model = openvino.Core().read_model(openvino_bundle.path / "engine.xml")
    model.reshape([4, 3, 32, 32])
    openvino.save_model(model, tmp_path / "fixed.xml", compress_to_fp16=False)
    files = {f"engine.{kind}": (tmp_path / f"fixed.{kind}").read_bytes() for kind in ("xml", "bin")}
    fixed = remade(openvino_bundle, tmp_path / "b", files)
    with pytest.raises(ArtifactError, match=r"pixel_values f32 \[4, 3, 32, 32\]"):
        export_triton(fixed, tmp_path / "models")


def test_openvino_cannot_read_the_engine(openvino_bundle: Bundle, tmp_path: Path) -> None:
    broken = remade(openvino_bundle, tmp_path / "b", {"engine.xml": b"<net>", "engine.bin": b""})
    with pytest.raises(ArtifactError, match="OpenVINO cannot load"):
        export_triton(broken, tmp_path / "models")


def test_preprocessing_for_another_size_is_not_served(openvino_bundle: Bundle, tmp_path: Path) -> None:
    preprocessing = openvino_bundle.preprocessing().model_copy(update={"crop": (48, 48)})
    other = remade(openvino_bundle, tmp_path / "b")
    (other.path / "preprocessing.json").write_text(preprocessing.model_dump_json())
    files = other.manifest.files | {"preprocessing.json": record(other.path / "preprocessing.json")}
    write_manifest(other.path, other.manifest.model_copy(update={"files": files}))
    with pytest.raises(ArtifactError, match="does not give the 32x32 pixels of the engine"):
        export_triton(Bundle.open(other.path), tmp_path / "models")


@pytest.mark.parametrize("below", ["", "models", "models/of/mine"])
def test_a_repository_in_the_bundle_would_break_it(below: str, openvino_bundle: Bundle, tmp_path: Path) -> None:
    own = remade(openvino_bundle, tmp_path / "b")
    with pytest.raises(UsageError, match="lies in the bundle"):
        export_triton(own, own.path / below, "vit")
    own.verify()
    assert set(files_of(own.path)) == {"manifest.json", *own.manifest.files}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{bundle}"], 2, "REPOSITORY"),
        (["{tmp}/none", "{tmp}/models"], 2, "no bundle at"),
        (["{tmp}", "{tmp}/models"], 5, "is not a bundle"),
        (["{bundle}", "{tmp}/models", "--name", "a/b"], 2, "--name 'a/b' is not a model's name"),
        (["{bundle}", "{bundle}/models"], 2, "lies in the bundle"),
        (["{bundle}", "{bundle}/manifest.json"], 2, "lies in the bundle"),
        (["{bundle}", "{tmp}/file"], 1, "is a file"),
        (["{bundle}", "/proc/models"], 1, "cannot write to the model repository /proc/models"),
        (["{bundle}", "{tmp}/" + "x" * 300], 1, "cannot write to the model repository"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(  # noqa: PLR0917 - fixtures
    arguments: list[str],
    code: int,
    message: str,
    openvino_bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    capsys.readouterr()
    places = {"bundle": openvino_bundle.path, "tmp": tmp_path}
    assert run(["export-triton", *(argument.format(**places) for argument in arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "models").exists()
