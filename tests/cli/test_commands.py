"""The commands as a user runs them: what they print where, and the exit code."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trt_vit import __version__
from trt_vit.cli import run
from trt_vit.cli.console import print_document

if TYPE_CHECKING:
    from trt_vit.engine.bundle import Bundle


def one_error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that says what is wrong and, in brackets, how to mend it; phases may stand before it."""
    captured = capsys.readouterr()
    assert captured.out == ""
    *phases, line = captured.err.splitlines()
    assert set(phases) <= {"reading the model"}
    assert line.startswith("error: ")
    assert line.endswith(")")
    assert "Traceback" not in line
    return line


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"trt-vit {__version__}\n"


@pytest.mark.parametrize("command", ["doctor", "export", "build-engine", "classify", "inspect"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert "Usage: trt-vit" in capsys.readouterr().out


def test_what_a_list_holds_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    run(["classify", "--help"])
    assert "the path or URL of a file on each line" in " ".join(capsys.readouterr().out.split())


def test_classify_json(
    openvino_bundle: Bundle, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    arguments = ["classify", str(openvino_bundle.path), str(images), "-o", str(output), "--top-k", "3", "--json"]
    assert run(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    contract = ["images", "ok", "failed", "seconds", "images_per_second", "output", "stages"]
    assert list(document) == [*contract, "resumed", "complete"]
    assert (document["resumed"], document["complete"]) == (0, True)
    assert (document["images"], document["ok"], document["failed"], document["output"]) == (11, 11, 0, str(output))
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["path"] for row in rows] == sorted(str(path) for path in images.rglob("*.*"))
    assert {len(row["topk"]) for row in rows} == {3}


def test_more_labels_than_classes_are_capped(openvino_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert run(["classify", str(openvino_bundle.path), str(images), "-o", str(output), "--top-k", "50"]) == 0
    row = json.loads(output.read_text(encoding="utf-8").splitlines()[0])
    assert len(row["topk"]) == 7
    assert sum(item["probability"] for item in row["topk"]) == pytest.approx(1, abs=1e-5)


def test_a_pipeline_recipe_and_a_flag_over_it(openvino_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"inputs: ['{images}']\noutput: here.csv\ntop_k: 2\n", encoding="utf-8")
    assert run(["classify", str(openvino_bundle.path), "--pipeline", str(recipe), "--top-k", "1"]) == 0
    header = (tmp_path / "here.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "path,status,error,top1_index,top1_label,top1_probability"


def test_failures_cost_a_row_and_max_failures_the_exit_code(
    openvino_bundle: Bundle, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_text("no image", encoding="utf-8")
    arguments = ["classify", str(openvino_bundle.path), str(images), str(broken), "-o", str(tmp_path / "o.jsonl")]
    assert run(arguments) == 0
    assert run([*arguments, "--max-failures", "1"]) == 0
    assert run([*arguments, "--max-failures", "0"]) == 3
    assert "1 images failed, more than --max-failures 0" in capsys.readouterr().err
    last = json.loads((tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert (last["path"], last["status"], last["topk"]) == (str(broken), "error", [])
    assert "not an image" in last["error"]


def test_no_image_that_can_be_read(openvino_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").touch()
    output = tmp_path / "o.jsonl"
    arguments = ["classify", str(openvino_bundle.path), str(tmp_path), "-o", str(output)]
    assert run(arguments) == 0
    assert f"warning: no image could be classified; the reasons are in {output}" in capsys.readouterr().err
    assert run([*arguments, "--max-failures", "0"]) == 3
    assert json.loads(output.read_text(encoding="utf-8"))["error"] == "empty file"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["classify", "{bundle}", "{tmp}/none", "-o", "{tmp}/o.csv"], 2, "none"),
        (["classify", "{bundle}", "{tmp}/empty", "-o", "{tmp}/o.csv"], 1, "empty"),
        (["classify", "{bundle}", "{images}", "-o", "{tmp}/o.txt"], 2, "cannot tell the format"),
        (["classify", "{bundle}", "{images}", "-o", "/proc/o.csv"], 1, "cannot write /proc/o.csv"),
        (["classify", "{bundle}", "{images}"], 2, "--output is missing"),
        (["classify", "{bundle}", "-o", "{tmp}/o.csv"], 2, "INPUT is missing"),
        (["classify", "{bundle}", "{images}", "-o", "{tmp}/o.csv", "--batch-size", "9"], 2, "1 to 8"),
        (["classify", "{bundle}", "{images}", "-o", "{tmp}/o.csv", "--top-k", "0"], 2, "--top-k"),
        (["classify", "{bundle}", "{images}", "-o", "{tmp}/o.csv", "--decode", "best"], 2, "'exact' or 'fast'"),
        (["classify", "{bundle}", "{images}", "-o", "{tmp}/o.csv", "--topk", "2"], 2, "No such option: --topk"),
        (["classify", "{bundle}", "{images}", "-o", "{tmp}/o.csv", "--metrics", "s3://b/x.prom"], 2, "not to a URL"),
        (["classify", "{tmp}/none", "{images}", "-o", "{tmp}/o.csv"], 2, "no bundle at"),
        (["classify", "{changed}", "{images}", "-o", "{tmp}/o.csv"], 5, "is not what the manifest says"),
        (["classify", "{tmp}/empty", "{images}", "-o", "{tmp}/o.csv"], 5, "is not a bundle"),
        (["inspect", "{changed}"], 5, "is not what the manifest says"),
        (["inspect"], 2, "BUNDLE"),
        (["export", "{headless}", "-o", "{tmp}/m.onnx"], 1, "head"),
        (["export", "./no-such-model", "-o", "{tmp}/m.onnx"], 2, "no-such-model"),
        (["build-engine", "{tmp}/none.yaml"], 2, "none.yaml"),
        (["build-engine", "{tmp}/empty", "-o", "{tmp}/b"], 1, "config.json"),
        (["build-engine", "{tmp}/empty", "-o", "{changed}/engine.bin"], 1, "engine.bin is a file"),
        (["build-engine", "{tmp}/empty", "-o", "{images}"], 1, "something else than a bundle"),
        (["build-engine", "{headless}", "--precision", "int7"], 2, "'fp32', 'fp16', 'bf16', 'int8' or 'fp8'"),
        (["frobnicate"], 2, "frobnicate"),
        (["export", "{tmp}/none.yaml", "-o", "{tmp}/m.onnx"], 2, "none.yaml"),
        (["export", "{headless}", "-o", "{tmp}/empty"], 1, "is a directory"),
        (["build-engine", "~nobody-of-this-name/x"], 2, "~nobody-of-this-name/x"),
        (["build-engine", "x" * 300, "-o", "{tmp}/b"], 2, "neither a path that exists nor a Hugging Face id"),
        (["inspect", "x" * 300], 2, "no bundle at"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(  # noqa: PLR0917 - fixtures
    arguments: list[str],
    code: int,
    message: str,
    openvino_bundle: Bundle,
    images: Path,
    headless: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    changed = shutil.copytree(openvino_bundle.path, tmp_path / "changed")
    with (changed / "engine.bin").open("ab") as stream:
        stream.write(b"!")
    places = {
        "bundle": openvino_bundle.path,
        "images": images,
        "tmp": tmp_path,
        "changed": changed,
        "headless": headless,
    }
    capsys.readouterr()
    assert run([argument.format(**places) for argument in arguments]) == code
    assert message in one_error_line(capsys)
    assert not list(tmp_path.glob("o.*"))


@pytest.fixture(scope="session")
def headless(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose classifier was left out when it was saved."""
    from safetensors.numpy import load_file, save_file

    directory = shutil.copytree(checkpoint, tmp_path_factory.mktemp("headless") / "vit")
    weights = load_file(directory / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier.")}
    assert len(kept) == len(weights) - 2
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_no_arguments_is_a_question_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "build-engine" in capsys.readouterr().out


def test_an_input_is_not_overwritten(openvino_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.csv"
    picture.write_bytes(next(images.rglob("*.jpg")).read_bytes())
    before = picture.read_bytes()
    assert run(["classify", str(openvino_bundle.path), str(picture), "-o", str(picture)]) == 2
    assert picture.read_bytes() == before


def test_a_linked_output_keeps_its_link(openvino_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "real.csv")
    assert run(["classify", str(openvino_bundle.path), str(images), "-o", str(link)]) == 0
    assert link.is_symlink()
    assert len((tmp_path / "real.csv").read_text(encoding="utf-8").splitlines()) == 12


def test_names_that_are_no_text(openvino_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(openvino_bundle.path, tmp_path / "\udcff.bundle")
    output, metrics = tmp_path / "\udcff.jsonl", tmp_path / "run.prom"
    assert run(["classify", str(bundle), str(images), "-o", str(output), "--metrics", str(metrics)]) == 0
    assert output.exists()
    assert 'output="' + str(tmp_path) + "/\\\\xff.jsonl" in metrics.read_text(encoding="utf-8")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_inputs_without_images_make_an_empty_output_of_its_format(
    openvino_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    none, output = tmp_path / "none.parquet", tmp_path / f"o.{suffix}"
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), none)
    arguments = ["classify", str(openvino_bundle.path), str(none), "-o", str(output), "--top-k", "1"]
    assert run(arguments) == 0
    assert capsys.readouterr().err == f"wrote {output}: 0 images, 0 failed\n"
    columns = ["path", "status", "error", "top1_index", "top1_label", "top1_probability"]
    if suffix == "parquet":
        assert pq.read_table(output).column_names == columns
    else:
        assert output.read_text(encoding="utf-8") == (",".join(columns) + "\n" if suffix == "csv" else "")
    assert run(arguments) == 0
    assert capsys.readouterr().err == f"{output} was written before: 0 images, 0 failed\n"
    assert run(["classify", str(openvino_bundle.path), str(none), "-o", str(none)]) == 2


def test_a_run_that_only_makes_the_output_says_that_it_wrote_it(
    openvino_bundle: Bundle,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All shards were done when the last one ended, which had no room for the output."""
    output = tmp_path / "o.jsonl"
    arguments = ["classify", str(openvino_bundle.path), str(images), "-o", str(output)]

    def no_room(_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patch:
        patch.setattr("trt_vit.pipeline.classify.assemble", no_room)
        assert run(arguments) == 1
    capsys.readouterr()
    assert run(arguments) == 0
    assert capsys.readouterr().err == f"resuming: 11 images are done already\nwrote {output}: 11 images, 0 failed\n"
    assert run(arguments) == 0
    assert capsys.readouterr().err == f"{output} was written before: 11 images, 0 failed\n"


def test_an_engine_recipe_can_be_exported(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"source: '{checkpoint}'\nprecision: bf16\n", encoding="utf-8")
    assert run(["export", str(recipe), "-o", str(tmp_path / "m.onnx")]) == 0
    assert (tmp_path / "m.onnx").is_file()


def test_a_full_disk_is_one_line(openvino_bundle: Bundle) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    command = [sys.executable, "-m", "trt_vit", "inspect", str(openvino_bundle.path), "--json"]
    with full.open("wb") as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_inspect_json_is_the_contract(openvino_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(openvino_bundle.path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["bundle"], document["sha256"]) == (str(openvino_bundle.path), openvino_bundle.sha256)


def test_inspect_for_a_person(openvino_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(openvino_bundle.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "batch                     1, 4, 8" in lines
    assert "  architecture: ViTForImageClassification" in lines


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["runtimes"] == ["openvino", "onnxruntime"]
    assert document["packages"]["torch"].startswith("2.")
    assert document["findings"] == []
    assert run(["doctor"]) == 0
    assert "runtimes      openvino, onnxruntime" in capsys.readouterr().out


def test_what_acts_on_a_terminal_is_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "a\x1b[31m\nb"]) == 2
    assert r"no bundle at a\x1b[31m\nb" in one_error_line(capsys)
    print_document({"name": "a\x1b[31m", "list": ["b\n"], "inner": {"c\x07": "d\x9b"}}, as_json=False)
    assert capsys.readouterr().out.splitlines() == [r"name   a\x1b[31m", r"list   b\n", "inner", r"  c\x07: d\x9b"]
