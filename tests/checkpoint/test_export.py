from __future__ import annotations

import json
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.checkpoints import ARCHITECTURES, CLASSES, write_preprocessor
from trt_vit.checkpoint import export as export_module
from trt_vit.checkpoint.export import agreed_image_size, export_onnx
from trt_vit.checkpoint.files import staged
from trt_vit.checkpoint.graph import max_abs_difference, reference_logits
from trt_vit.checkpoint.source import resolve
from trt_vit.errors import CheckpointError, EnvironmentFault, ExportError, OutputError, UsageError
from trt_vit.images.preprocessing import Preprocessing, ShortestEdge, Squash

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.checkpoint.conftest import Exports
    from trt_vit.checkpoint.export import Export

onnx = pytest.importorskip("onnx", reason="needs the export extra")
onnx_ir = pytest.importorskip("onnx_ir", reason="needs the export extra")
torch = pytest.importorskip("torch", reason="needs the export extra")
transformers = pytest.importorskip("transformers", reason="needs the export extra")
onnxruntime = pytest.importorskip("onnxruntime")

LABELS = tuple(f"kind {index}" for index in range(CLASSES))


def run(path: Path, images: Any) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixel_values": images.numpy()})
    return np.asarray(logits)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_equal_those_of_torch(architecture: str, exports: Exports) -> None:
    export = exports.export(architecture)
    model = transformers.AutoModelForImageClassification.from_pretrained(exports.directory(architecture)).eval()
    assert export.architecture == type(model).__name__
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            expected = model(pixel_values=images).logits.numpy()
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(run(export.path, images), expected, rtol=0, atol=2e-6)
    assert export.max_abs_difference is not None
    assert export.max_abs_difference < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_graph_is_one_a_compiler_can_fuse(architecture: str, exports: Exports) -> None:
    graph = onnx.load(exports.export(architecture).path).graph
    nodes = Counter(node.op_type for node in graph.node)
    makers = {output: node.op_type for node in graph.node for output in node.output}
    masked = [makers.get(node.input[0]) for node in graph.node if node.op_type == "Softmax"]
    assert not nodes.keys() & {"IsNaN", "Where", "Resize", "If", "Loop", "ScatterND", "Constant", "ReduceL2"}
    assert nodes["LayerNormalization"] >= 5
    if architecture not in {"beit", "swin"}:  # whose position biases are added to the scores
        assert set(masked) == {"MatMul"}


def test_everything_a_manifest_needs(exports: Exports) -> None:
    export = exports.export("vit")
    directory = exports.directory("vit")
    assert (export.source, export.revision, export.batch) == (str(directory), None, None)
    assert (export.input_name, export.output_name, export.opset) == ("pixel_values", "logits", 18)
    assert (export.image_size, export.classes, export.labels) == ((32, 32), CLASSES, LABELS)
    assert (export.architecture, export.model_type) == ("ViTForImageClassification", "vit")
    assert export.preprocessing == Preprocessing(resize=Squash(size=(32, 32)), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert export.versions["torch"] == torch.__version__
    assert export.versions["transformers"] == transformers.__version__


def test_file_describes_itself_and_names_no_path_of_this_machine(exports: Exports) -> None:
    export = exports.export("vit")
    model = onnx.load(export.path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    checkpoint = json.loads(metadata["trt_vit.checkpoint"])
    assert json.loads(metadata["trt_vit.labels"]) == list(LABELS)
    assert Preprocessing.model_validate_json(metadata["trt_vit.preprocessing"]) == export.preprocessing
    assert checkpoint["weights_sha256"] == export.weights_sha256
    assert checkpoint["architecture"] == "ViTForImageClassification"
    assert [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch", 3, 32, 32,
    ]  # fmt: skip
    assert not any(node.metadata_props for node in model.graph.node)
    assert b"site-packages" not in export.path.read_bytes()


def test_nothing_but_the_file_is_left_and_nothing_is_printed(
    exports: Exports, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = resolve(str(exports.directory("vit")))
    output = tmp_path / "new" / "model.onnx"
    export_onnx(checkpoint, output)
    assert capfd.readouterr().out == ""
    assert list(output.parent.iterdir()) == [output]
    assert output.read_bytes() == exports.export("vit").path.read_bytes()


def traced(export: Export) -> Any:
    """What torch's exporter returned, read back: exporting again takes seconds."""
    return torch.onnx.ONNXProgram(onnx_ir.load(export.path), None)


def test_weights_too_large_for_one_file_go_beside_it(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = traced(exports.export("vit"))
    monkeypatch.setattr(export_module, "trace", lambda *_args, **_options: program)
    monkeypatch.setattr(export_module, "MAX_EMBEDDED_BYTES", 1000)
    export = export_onnx(resolve(str(exports.directory("vit"))), tmp_path / "a" / "model.onnx")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"model.onnx", "model.onnx.data"}
    assert export.path.stat().st_size < 40_000
    moved = (tmp_path / "a").rename(tmp_path / "b") / "model.onnx"
    images = torch.randn(2, 3, 32, 32)
    np.testing.assert_array_equal(run(moved, images), run(exports.export("vit").path, images))


@pytest.mark.slow
def test_dinov2_takes_the_size_of_its_preprocessing(exports: Exports) -> None:
    config = json.loads((exports.directory("dinov2") / "config.json").read_text())
    assert (config["image_size"], exports.export("dinov2").image_size) == (56, (32, 32))


@pytest.mark.slow
def test_newer_opset_and_given_files(exports: Exports, tmp_path: Path) -> None:
    preprocessor = write_preprocessor(tmp_path, image_processor_type="CLIPImageProcessor", crop_size=32)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("abcdefg"))
    export = export_onnx(
        resolve(str(exports.directory("vit"))),
        tmp_path / "model.onnx",
        preprocessor=preprocessor,
        labels=labels,
        opset=20,
    )
    assert export.labels == tuple("abcdefg")
    assert export.preprocessing.resize == ShortestEdge(edge=224)
    assert [entry.version for entry in onnx.load(export.path).opset_import if entry.domain == ""] == [20]


def test_graph_that_disagrees_with_torch_is_not_kept(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    directory = shutil.copytree(exports.directory("vit"), tmp_path / "vit")
    weights = safetensors.load_file(directory / "model.safetensors")
    weights["classifier.bias"][3] = float("nan")
    safetensors.save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    program = traced(exports.export("vit"))
    monkeypatch.setattr(export_module, "trace", lambda *_args, **_options: program)
    with pytest.raises(ExportError, match="differ from torch's by nan") as caught:
        export_onnx(resolve(str(directory)), tmp_path / "out" / "model.onnx")
    assert "finite" in caught.value.hint
    assert list((tmp_path / "out").iterdir()) == []


def test_difference_from_other_weights_is_seen(exports: Exports, tmp_path: Path) -> None:
    model = onnx.load(exports.export("vit").path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.bias"))
    changed = onnx.numpy_helper.to_array(bias) + np.float32(0.25)
    bias.CopyFrom(onnx.numpy_helper.from_array(changed, bias.name))
    onnx.save(model, tmp_path / "changed.onnx")
    module = transformers.AutoModelForImageClassification.from_pretrained(exports.directory("vit")).eval()
    references = reference_logits(module, (32, 32))
    assert [reference.logits.shape for reference in references] == [(1, CLASSES), (3, CLASSES)]
    assert max_abs_difference(tmp_path / "changed.onnx", references) == pytest.approx(0.25, abs=1e-5)


def test_graph_that_does_not_run_is_an_export_error(exports: Exports, tmp_path: Path) -> None:
    module = transformers.AutoModelForImageClassification.from_pretrained(exports.directory("vit")).eval()
    references = reference_logits(module, (32, 32))
    model = onnx.load(exports.export("vit").path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(ExportError, match=r"broken.onnx: ONNX Runtime does not run"):
        max_abs_difference(tmp_path / "broken.onnx", references)


def test_preprocessing_of_another_size(exports: Exports, tmp_path: Path) -> None:
    preprocessor = write_preprocessor(tmp_path, image_processor_type="ViTImageProcessor", size=[32, 48])
    with pytest.raises(CheckpointError, match=r"gives 32x48 pixels .*, but the model takes 32x32") as caught:
        export_onnx(resolve(str(exports.directory("vit"))), tmp_path / "model.onnx", preprocessor=preprocessor)
    assert str(preprocessor) in caught.value.message
    assert "--preprocessor FILE" in caught.value.hint


def test_preprocessing_without_one_size() -> None:
    with pytest.raises(CheckpointError, match="every image another size") as caught:
        agreed_image_size(Preprocessing(resize=ShortestEdge(edge=32)), (32, 32), where="vit")
    assert "crop_size" in caught.value.hint


@pytest.mark.parametrize("opset", [17, 99])
def test_opset_out_of_range(opset: int, exports: Exports, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"opset {opset}") as caught:
        export_onnx(resolve(str(exports.directory("vit"))), tmp_path / "model.onnx", opset=opset)
    assert "18 to" in caught.value.hint


def test_output_below_a_file(exports: Exports, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written") as caught, staged(tmp_path / "file" / "x"):
        pytest.fail("staged")
    assert str(tmp_path / "file" / "x") in caught.value.message


@pytest.mark.parametrize("package", ["torch", "onnx", "onnxscript"])
def test_missing_package_of_the_extra(
    package: str, exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = resolve(str(exports.directory("vit")))
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(EnvironmentFault, match=package) as caught:
        export_onnx(checkpoint, tmp_path / "model.onnx")
    assert caught.value.hint == "pip install 'trt-vit[export]'"
