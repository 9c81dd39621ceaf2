"""``trt-vit export-triton``: a bundle becomes three models of a repository, whatever its runtime."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.serving.conftest import files_of, remade
from tests.serving.fake_backend import Backend
from tests.serving.test_preprocess import picture
from trt_vit.cli import run
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.runtime.registry import open_runtime
from trt_vit.serving.export import export_triton

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trt_vit.engine.bundle import Bundle

LABELS = b"".join(f"kind {index}\n".encode() for index in range(7))
ENGINES = {
    "tensorrt": {"model.plan": "engine.plan"},
    "onnxruntime": {"model.onnx": "engine.onnx"},
    "openvino": {"model.xml": "engine.xml", "model.bin": "engine.bin"},
}


@pytest.fixture(params=list(ENGINES))
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """A bundle for each runtime that Triton has a backend for; only the plan for TensorRT is no real one."""
    found: Bundle = request.getfixturevalue(f"{request.param}_bundle")
    return found


def test_the_layout_is_the_one_that_triton_looks_for(bundle: Bundle, tmp_path: Path) -> None:
    exported = export_triton(bundle, tmp_path / "models", "vit")
    engine = ENGINES[bundle.manifest.runtime]
    assert sorted(exported.files) == files_of(tmp_path / "models")
    assert files_of(tmp_path / "models") == sorted(
        [
            *(f"vit/1/{name}" for name in engine),
            "vit/config.pbtxt",
            "vit/labels.txt",
            "vit_ensemble/config.pbtxt",
            "vit_ensemble/labels.txt",
            "vit_preprocess/1/model.py",
            "vit_preprocess/1/preprocessing.json",
            "vit_preprocess/config.pbtxt",
        ]
    )
    assert (tmp_path / "models" / "vit_ensemble" / "1").is_dir()


def test_files_are_byte_for_byte_what_was_built(bundle: Bundle, tmp_path: Path) -> None:
    export_triton(bundle, tmp_path, "vit")
    sources = {f"vit/1/{name}": source for name, source in ENGINES[bundle.manifest.runtime].items()}
    sources["vit_preprocess/1/preprocessing.json"] = "preprocessing.json"
    for name, source in sources.items():
        content = (tmp_path / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == bundle.manifest.files[source].sha256
    assert (tmp_path / "vit/labels.txt").read_bytes() == (tmp_path / "vit_ensemble/labels.txt").read_bytes() == LABELS


def test_configurations_name_their_directories(
    bundle: Bundle, tmp_path: Path, parse_config: Callable[[str], Any]
) -> None:
    export_triton(bundle, tmp_path, "vit")
    configs = [parse_config(file.read_text(encoding="utf-8")) for file in sorted(tmp_path.glob("*/config.pbtxt"))]
    assert [config.name for config in configs] == ["vit", "vit_ensemble", "vit_preprocess"]
    engine, ensemble, preprocess = configs
    batches = bundle.manifest.runtime != "openvino"
    assert [config.max_batch_size for config in configs] == [8 if batches else 0, 8, 8]
    assert list(engine.dynamic_batching.preferred_batch_size) == ([4] if batches else [])
    assert [step.model_name for step in ensemble.ensemble_scheduling.step] == ["vit_preprocess", "vit"]
    assert [list(preprocess.output[0].dims), list(ensemble.output[0].dims)] == [[3, 32, 32], [7]]
    assert {engine.output[0].label_filename, ensemble.output[0].label_filename} == {"labels.txt"}


def test_openvino_finds_the_tensors_that_it_is_told_of(
    openvino_bundle: Bundle, tmp_path: Path, parse_config: Callable[[str], Any]
) -> None:
    """As Triton's backend compares them: the one name that OpenVINO gives, and the shape, with its open batch."""
    import openvino

    export_triton(openvino_bundle, tmp_path, "vit")
    config = parse_config((tmp_path / "vit" / "config.pbtxt").read_text(encoding="utf-8"))
    model = openvino.Core().read_model(tmp_path / "vit" / "1" / "model.xml")
    for told, port in ((config.input[0], model.input(0)), (config.output[0], model.output(0))):
        assert told.name == port.get_any_name()
        assert list(told.dims) == [-1 if size.is_dynamic else size.get_length() for size in port.get_partial_shape()]
        assert port.get_node().layout.empty  # with a batch in it, the backend would set a largest batch of its own


def test_onnx_runtime_finds_the_tensors_that_it_is_told_of(
    onnxruntime_bundle: Bundle, tmp_path: Path, parse_config: Callable[[str], Any]
) -> None:
    import onnxruntime

    export_triton(onnxruntime_bundle, tmp_path, "vit")
    config = parse_config((tmp_path / "vit" / "config.pbtxt").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(tmp_path / "vit" / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    ((taken,), (given,)) = session.get_inputs(), session.get_outputs()
    for told, port in ((config.input[0], taken), (config.output[0], given)):
        assert told.name == port.name
        assert isinstance(port.shape[0], str)
        assert list(told.dims) == port.shape[1:]


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_the_ensemble_answers_as_the_bundle_does(
    runtime: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle: Bundle = request.getfixturevalue(f"{runtime}_bundle")
    export_triton(bundle, tmp_path, "vit")
    output = {"name": "pixels", "dims": [3, 32, 32]}
    files = [picture(seed, 30 + seed, 50) for seed in range(3)]
    (pixels,) = Backend(monkeypatch, tmp_path / "vit_preprocess", 1, output).infer([files])
    assert isinstance(pixels, np.ndarray)
    options = RuntimeOptions(batch_size=3, lanes=1, threads=1)
    expected = open_runtime(bundle.manifest.runtime, bundle.engine_files(), options).lanes[0].infer(pixels)
    np.testing.assert_allclose(served_logits(tmp_path / "vit" / "1", pixels), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(expected[0], expected[1], rtol=1e-3)


def served_logits(version: Path, pixels: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """Run what is served with the library that Triton's backend loads it with."""
    if (version / "model.onnx").exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])
        return session.run(["logits"], {"pixel_values": pixels})[0]
    import openvino

    return openvino.Core().compile_model(version / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pixels)[0]


def test_the_same_model_again_is_its_next_version(bundle: Bundle, tmp_path: Path) -> None:
    assert export_triton(bundle, tmp_path, "vit").version == 1
    before = files_of(tmp_path)
    exported = export_triton(bundle, tmp_path, "vit")
    assert exported.version == 2
    assert set(files_of(tmp_path)) - set(before) == set(exported.files)
    assert all("/2/" in file for file in exported.files)


def test_another_bundle_does_not_become_a_version(
    openvino_bundle: Bundle, onnxruntime_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_triton(openvino_bundle, tmp_path, "vit")
    before = files_of(tmp_path)
    assert run(["export-triton", str(onnxruntime_bundle.path), str(tmp_path), "--name", "vit"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"error: {tmp_path / 'vit'} is another model: its config.pbtxt differs "
        "(choose another --name, or another REPOSITORY)\n"
    )
    assert files_of(tmp_path) == before


def test_json_is_one_document(openvino_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = tmp_path / "models"
    assert run(["export-triton", str(openvino_bundle.path), str(repository), "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert list(document) == ["repository", "model", "version", "files"]
    assert (document["repository"], document["model"], document["version"]) == (str(repository), "openvino", 1)
    assert sorted(document["files"]) == files_of(repository)
    assert captured.err == f"wrote {repository}: version 1 of openvino, openvino_preprocess, openvino_ensemble\n"


def test_for_a_person(openvino_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export-triton", str(openvino_bundle.path), str(tmp_path), "--name", "v.1-a_B"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "version 1 of v.1-a_B, v.1-a_B_preprocess, v.1-a_B_ensemble" in captured.err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export-triton", "--help"]) == 0
    assert "Usage: trt-vit export-triton" in capsys.readouterr().out


def test_openvino_is_asked_for_the_name_that_it_gives(
    openvino_bundle: Bundle, tmp_path: Path, parse_config: Callable[[str], Any]
) -> None:
    import openvino

    model = openvino.Core().read_model(openvino_bundle.path / "engine.xml")
    model.output(0).add_names({"a name before logits"})
    openvino.save_model(model, tmp_path / "named.xml", compress_to_fp16=False)
    files = {f"engine.{kind}": (tmp_path / f"named.{kind}").read_bytes() for kind in ("xml", "bin")}
    export_triton(remade(openvino_bundle, tmp_path / "b", files), tmp_path / "models", "vit")
    given = openvino.Core().read_model(tmp_path / "models" / "vit" / "1" / "model.xml").output(0).get_any_name()
    configs = [
        parse_config((tmp_path / "models" / name / "config.pbtxt").read_text()) for name in ("vit", "vit_ensemble")
    ]
    assert configs[0].output[0].name == given
    assert dict(configs[1].ensemble_scheduling.step[1].output_map) == {given: "logits"}
