"""INT8 engines for a CPU from the command line: built end to end, looked at, and refused."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from tests.quantize.graphs import quantized
from trt_vit.checkpoint.load import to_onnx
from trt_vit.cli import run
from trt_vit.engine.bundle import Bundle
from trt_vit.graph.rewrite import rewrite
from trt_vit.quantize.linear import linear_layers
from trt_vit.quantize.search import Score

if TYPE_CHECKING:
    from collections.abc import Mapping

CIFAR = Path(__file__).parents[2] / "examples" / "vit-cifar10"
LAYERS = 26
"""Of the bundled checkpoint: the patches, the classifier, and 4 in each of 6 layers, q, k and v being one."""


@dataclass(frozen=True)
class Built:
    """What a build has left and said."""

    path: Path
    code: int
    document: Mapping[str, Any]
    said: list[str]


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Built]:
    """INT8 engines of the bundled checkpoint by runtime, built one after the other with one cache."""
    root = tmp_path_factory.mktemp("int8")
    built = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        for runtime in ("openvino", "onnxruntime"):
            output, errors = io.StringIO(), io.StringIO()
            arguments = ["--precision", "int8", "--calibration", str(CIFAR / "samples"), "--runtime", runtime]
            arguments += ["--calibration-images", "64"]
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                code = run(["build-engine", str(CIFAR), "-o", str(root / runtime), *arguments, "--json"])
            said = errors.getvalue().splitlines()
            assert code == 0, said
            built[runtime] = Built(root / runtime, code, json.loads(output.getvalue()), said)
    return built


@pytest.fixture(scope="session")
def quantized_onnx(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny ViT as an .onnx file that holds Q/DQ nodes."""
    root = tmp_path_factory.mktemp("quantized")
    original = ir.load(to_onnx(str(checkpoint), root / "m.onnx").path)
    model, _ = rewrite(original)
    quantized(model, [np.random.default_rng(0).standard_normal((8, 3, 32, 32), dtype=np.float32)], weights="int7")
    model.metadata_props.update(original.metadata_props)
    ir.save(model, root / "quantized.onnx")
    return root / "quantized.onnx"


def build(source: Path, output: Path, *more: str | Path) -> int:
    """Build an INT8 engine in ONNX Runtime, unless the arguments say otherwise."""
    usual = [] if "--runtime" in more else ["--runtime", "onnxruntime"]
    usual += [] if "--precision" in more else ["--precision", "int8"]
    return run(["build-engine", str(source), "-o", str(output), *usual, *map(str, more)])


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_an_int8_engine_agrees_with_fp32(engines: Mapping[str, Built], runtime: str) -> None:
    built = engines[runtime]
    document, quantization = built.document, built.document["quantization"]
    assert (document["runtime"], document["precision"]) == (runtime, "int8")
    assert (quantization["images"], quantization["held_back"]) == (64, 32)
    assert (quantization["min_agreement"], quantization["reached"]) == (0.98, True)
    assert quantization["agreement"] >= 0.98
    assert quantization["expected_agreement"] >= 0.98
    assert document["int8_coverage"] >= 0.9
    assert document["against_fp32"]["agreement"] > 0.9
    assert document["against_fp32"]["cosine"] > 0.99
    assert not any(line.startswith("warning: ") for line in built.said)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_the_plan_accounts_for_every_layer(engines: Mapping[str, Built], runtime: str) -> None:
    document = engines[runtime].document
    plan = document["plan"]
    assert len(plan) == LAYERS
    assert {row["precision"] for row in plan} <= {"int8", "fp32"}
    for row in plan:
        assert (row["reason"] is None) == (row["precision"] == "int8")
        assert row["cost"] > 0
        assert row["amax"] > 0
        assert not row["attention"]
    assert document["left_out"] == {row["layer"]: row["reason"] for row in plan if row["reason"]}
    # ONNX Runtime has a convolution in INT8 only where codes come out of it too.
    run_so = plan if runtime == "openvino" else plan[1:]
    share = sum(row["macs"] for row in run_so if row["precision"] == "int8") / sum(row["macs"] for row in plan)
    assert document["int8_coverage"] == pytest.approx(share)


@pytest.mark.slow
def test_a_second_engine_takes_what_the_first_has_measured(engines: Mapping[str, Built]) -> None:
    assert "calibrating" in engines["openvino"].said
    assert "calibrating" not in engines["onnxruntime"].said
    assert all("quantizing layer by layer" in built.said for built in engines.values())
    first, second = (engines[runtime].document["plan"] for runtime in ("openvino", "onnxruntime"))
    assert [(row["layer"], row["amax"]) for row in first] == [(row["layer"], row["amax"]) for row in second]


@pytest.mark.slow
def test_inspect_prints_coverage_and_plan(engines: Mapping[str, Built], capsys: pytest.CaptureFixture[str]) -> None:
    built = engines["openvino"]
    capsys.readouterr()
    assert run(["inspect", str(built.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == built.document
    assert run(["inspect", str(built.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (coverage,) = (line.split() for line in lines if line.startswith("int8_coverage"))
    assert float(coverage[1]) == pytest.approx(built.document["int8_coverage"], abs=1e-5)
    assert "  min_agreement: 0.98" in lines
    start = lines.index("plan")
    header = lines[start + 1].split()
    assert header[:5] == ["layer", "precision", "macs", "amax", "equalized"]
    rows = [line.split() for line in lines[start + 2 : start + 2 + LAYERS]]
    plan = built.document["plan"]
    assert [row[:3] for row in rows] == [[row["layer"], row["precision"], str(row["macs"])] for row in plan]


@pytest.mark.slow
def test_int8_engines_of_both_runtimes_say_the_same(
    engines: Mapping[str, Built], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    paths = [str(engines[runtime].path) for runtime in ("onnxruntime", "openvino")]
    assert run(["compare", *paths, "--images", str(CIFAR / "samples"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["failed"]) == (200, 0)
    assert document["agreement"] >= 0.97
    assert document["mean_cosine"] > 0.99


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Score, "reaches", lambda *_: False)


@pytest.mark.usefixtures("unreachable")
def test_an_engine_that_falls_short_is_left_with_exit_code_3(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bundle"
    assert build(checkpoint, output, "--calibration", images, "--min-agreement", "0.9", "--json") == 3
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["quantization"]["min_agreement"], document["quantization"]["reached"]) == (0.9, False)
    lines = captured.err.splitlines()
    assert lines[-1] == "error: the engine falls short of --min-agreement 0.9"
    assert any(line.startswith("warning: that is short of --min-agreement 0.9, ") for line in lines)
    bundle = Bundle.open(output)
    bundle.verify()
    assert bundle.manifest.quantization is not None
    assert not bundle.manifest.quantization.reached
    results = tmp_path / "o.jsonl"
    assert run(["classify", str(output), str(images), "-o", str(results)]) == 0
    assert len(results.read_text(encoding="utf-8").splitlines()) == 11


@pytest.mark.usefixtures("unreachable")
def test_no_agreement_asked_for_is_never_short(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(checkpoint, tmp_path / "b", "--calibration", images, "--min-agreement", "0", "--json") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert {row["precision"] for row in document["plan"]} == {"int8"}
    assert document["left_out"] == {}
    assert (document["quantization"]["reached"], document["quantization"]["held_back"]) == (True, None)
    assert "measuring what each layer costs" not in captured.err.splitlines()


def test_fewer_images_than_asked_are_said(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for index, path in enumerate(sorted(images.rglob("*.*"))):
        (broken / path.name).write_bytes(path.read_bytes() if index > 1 else b"no image")
    arguments = ("--calibration", broken, "--calibration-images", "10", "--min-agreement", "0", "--json")
    assert build(checkpoint, tmp_path / "b", *arguments) == 0
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert "warning: 2 calibration images cannot be read and are passed over" in lines
    assert f"warning: 9 calibration images, not 10: {broken}" in lines
    assert json.loads(captured.out)["quantization"]["images"] == 9


@pytest.mark.parametrize(("count", "few"), [("1", True), ("8", False)])
def test_few_images_are_enough_to_build_and_said(  # noqa: PLR0917 - fixtures
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    count: str,
    few: bool,  # noqa: FBT001
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--calibration", images, "--calibration-images", count, "--min-agreement", "0")
    assert build(checkpoint, tmp_path / "b", *arguments) == 0
    warning = f"warning: {count} calibration images are too few to hold any back"
    assert any(line.startswith(warning) for line in capsys.readouterr().err.splitlines()) == few


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_graph_that_came_quantized_is_taken_as_it_is(
    quantized_onnx: Path, images: Path, tmp_path: Path, runtime: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--runtime", runtime, "--calibration", images, "--json")
    assert build(quantized_onnx, tmp_path / "b", *arguments) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    lines = captured.err.splitlines()
    assert "warning: calibration images mean nothing for a graph that came quantized" in lines
    assert "taking the graph as it is" in lines
    quantization = document["quantization"]
    assert (quantization["calibration"], quantization["images"], quantization["reached"]) == (None, 0, True)
    assert document["plan"] == []
    convolution, *_ = macs = [layer.macs for layer in linear_layers(ir.load(quantized_onnx))]
    rest = 0 if runtime == "openvino" else convolution
    assert document["int8_coverage"] == pytest.approx(1 - rest / sum(macs))


def test_a_graph_that_came_quantized_needs_no_images(quantized_onnx: Path, tmp_path: Path) -> None:
    assert build(quantized_onnx, tmp_path / "b") == 0


def test_images_mean_nothing_for_fp32(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(checkpoint, tmp_path / "b", "--precision", "fp32", "--calibration", images) == 0
    assert "warning: calibration images mean nothing for fp32" in capsys.readouterr().err.splitlines()
    assert Bundle.open(tmp_path / "b").manifest.quantization is None


def places(**paths: Path) -> dict[str, Path]:
    """Directories that cannot be calibrated on, beside those given."""
    root = paths["tmp"]
    for name in ("empty", "broken"):
        (root / name).mkdir()
    for name in ("a.png", "b.jpg"):
        (root / "broken" / name).write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(root / "image.png")
    return paths


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{checkpoint}", "--calibration", "{tmp}/empty"], 1, "no image in"),
        (["{checkpoint}", "--calibration", "{tmp}/broken"], 1, "none of the 2 images in"),
        (["{checkpoint}", "--calibration", "{tmp}/none"], 2, "is not a directory"),
        (["{checkpoint}", "--calibration", "{tmp}/image.png"], 2, "is not a directory"),
        (["{checkpoint}"], 2, "int8 needs images to measure ranges on"),
        (["{onnx}", "--precision", "fp32"], 2, "holds Q/DQ nodes: it is no fp32 graph"),
        (["{checkpoint}", "--calibration", "{images}", "--min-agreement", "1.5"], 2, "--min-agreement"),
        (["{checkpoint}", "--calibration", "{images}", "--min-agreement", "-0.1"], 2, "--min-agreement"),
        (["{checkpoint}", "--calibration", "{images}", "--ranges", "minmax"], 2, "--ranges"),
        (["{checkpoint}", "--calibration", "{images}", "--calibration-images", "0"], 2, "--calibration-images"),
        (
            ["{checkpoint}", "--calibration", "{images}", "--quantize-attention"],
            2,
            "--quantize-attention means nothing for onnxruntime",
        ),
        (
            ["{checkpoint}", "--calibration", "{images}", "--quantize-attention", "--runtime", "openvino"],
            2,
            "--quantize-attention means nothing for openvino",
        ),
        (["{checkpoint}", "--calibration", "{images}", "--precision", "fp8"], 2, "not in fp8"),
    ],
)
def test_what_cannot_be_quantized_is_one_line_and_an_exit_code(  # noqa: PLR0917 - fixtures
    arguments: list[str],
    code: int,
    message: str,
    checkpoint: Path,
    quantized_onnx: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = places(checkpoint=checkpoint, onnx=quantized_onnx, images=images, tmp=tmp_path)
    source, *more = (argument.format(**names) for argument in arguments)
    capsys.readouterr()
    assert build(Path(source), tmp_path / "b", *more) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    *phases, line = captured.err.splitlines()
    assert set(phases) <= {"reading the model", "choosing calibration images"}
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "b").exists()
