from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from trt_vit.cli import run
from trt_vit.engine.build import build
from trt_vit.engine.progress import Quiet
from trt_vit.settings import BuildSettings

if TYPE_CHECKING:
    from pathlib import Path

    from trt_vit.engine.bundle import Bundle


def compare(first: Bundle | Path, second: Bundle | Path, images: Path, *more: str) -> int:
    places = [str(getattr(bundle, "path", bundle)) for bundle in (first, second)]
    return run(["compare", *places, "--images", str(images), *more])


def test_a_bundle_against_itself(openvino_bundle: Bundle, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(openvino_bundle, openvino_bundle, images, "--json") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert list(document) == [
        "images",
        "failed",
        "agreement",
        "mean_cosine",
        "min_cosine",
        "max_abs_difference",
        "per_class",
    ]
    assert (document["images"], document["failed"], document["agreement"]) == (11, 0, 1.0)
    assert document["mean_cosine"] == pytest.approx(1)
    assert document["min_cosine"] == pytest.approx(1)
    assert document["max_abs_difference"] == 0
    assert sum(row["images"] for row in document["per_class"]) == 11
    for row in document["per_class"]:
        assert list(row) == ["index", "label", "images", "agreement"]
        assert (row["label"], row["agreement"]) == (f"kind {row['index']}", 1.0)
    assert captured.err.splitlines() == ["comparing"]


def test_for_a_person(
    openvino_bundle: Bundle, onnxruntime_bundle: Bundle, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(openvino_bundle, onnxruntime_bundle, images) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["images              11", "failed              0", "agreement           1"]
    assert [line.split()[0] for line in lines[3:7]] == ["mean_cosine", "min_cosine", "max_abs_difference", "per_class"]
    assert lines[7].split() == ["index", "label", "images", "agreement"]
    assert all(line.split()[1] == "kind" for line in lines[8:])


def test_a_broken_image_is_counted_and_warned_about(
    openvino_bundle: Bundle, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = next(images.rglob("*.jpg"))
    (tmp_path / "good.jpg").write_bytes(good.read_bytes())
    (tmp_path / "bad.jpg").write_text("no image", encoding="utf-8")
    assert compare(openvino_bundle, openvino_bundle, tmp_path, "--json") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["images"], document["failed"]) == (1, 1)
    warning = f"warning: 1 images could not be used: {tmp_path / 'bad.jpg'}: not an image"
    assert any(line.startswith(warning) for line in captured.err.splitlines())


def test_no_image_that_can_be_used(openvino_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").touch()
    assert compare(openvino_bundle, openvino_bundle, tmp_path) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("error: none of the 1 images can be used: ")


def test_different_labels_are_a_usage_error(
    openvino_bundle: Bundle, checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("abcdefg"), encoding="utf-8")
    settings = BuildSettings(source=str(checkpoint), output=tmp_path / "b", runtime="onnxruntime", labels=labels)
    other = build(settings, Quiet())
    assert compare(openvino_bundle, other, images) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {openvino_bundle.path} and {other.path} do not have the same classes")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{bundle}", "{bundle}"], 2, "--images"),
        (["{bundle}", "--images", "{images}"], 2, "BUNDLE_B"),
        (["{bundle}", "{tmp}/none", "--images", "{images}"], 2, "no bundle at"),
        (["{tmp}", "{bundle}", "--images", "{images}"], 5, "is not a bundle"),
        (["{bundle}", "{bundle}", "--images", "{tmp}/none"], 2, "no such file or directory"),
        (["{bundle}", "{bundle}", "--images", "{tmp}"], 1, "no image in"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(  # noqa: PLR0917 - fixtures
    arguments: list[str],
    code: int,
    message: str,
    openvino_bundle: Bundle,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"bundle": openvino_bundle.path, "images": images, "tmp": tmp_path}
    capsys.readouterr()
    assert run(["compare", *(argument.format(**places) for argument in arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "--help"]) == 0
    assert "Usage: trt-vit compare" in capsys.readouterr().out
