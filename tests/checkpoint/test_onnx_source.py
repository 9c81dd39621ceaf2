from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pytest

from tests.support.checkpoints import CLASSES, write_preprocessor
from trt_vit.checkpoint import onnx_source
from trt_vit.checkpoint.files import sha256_of
from trt_vit.checkpoint.load import to_onnx
from trt_vit.errors import CheckpointError, EnvironmentFault
from trt_vit.images.preprocessing import Squash

if TYPE_CHECKING:
    from pathlib import Path

    from tests.checkpoint.conftest import Exports

onnx = pytest.importorskip("onnx", reason="needs the export extra")
onnxruntime = pytest.importorskip("onnxruntime")


class Flags(TypedDict):
    preprocessor: Path
    labels: Path


def classifier(
    path: Path,
    *,
    image: tuple[Any, ...] = ("batch", 3, 8, 8),
    logits: tuple[Any, ...] = ("batch", 4),
    dtype: int = 1,
    inputs: int = 1,
    outputs: int = 1,
) -> Path:
    """Write a model that averages each channel and multiplies it by a weight, with as many extra ends as wanted."""
    helper = onnx.helper
    weight = onnx.numpy_helper.from_array(
        np.arange(12, dtype=helper.tensor_dtype_to_np_dtype(dtype)).reshape(3, 4), "weight"
    )
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "weight"], ["out0"]),
        *(helper.make_node("Identity", ["out0"], [f"out{index}"]) for index in range(1, outputs)),
    ]
    ends = [helper.make_tensor_value_info("image", dtype, image)]
    ends += [helper.make_tensor_value_info(f"extra{index}", dtype, image) for index in range(1, inputs)]
    made = [helper.make_tensor_value_info(f"out{index}", dtype, logits) for index in range(outputs)]
    graph = helper.make_graph(nodes, "classifier", ends, made, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="by-hand")
    onnx.save(model, path)
    return path


@pytest.fixture
def flags(tmp_path: Path) -> Flags:
    labels = tmp_path / "given" / "labels.txt"
    preprocessor = write_preprocessor(tmp_path / "given", image_processor_type="ViTImageProcessor", size=8)
    labels.write_text("a\nb\nc\nd\n")
    return {"preprocessor": preprocessor, "labels": labels}


def test_given_preprocessing_and_labels(tmp_path: Path, flags: Flags) -> None:
    source = classifier(tmp_path / "model.onnx")
    export = to_onnx(str(source), tmp_path / "copy.onnx", **flags)
    assert export.preprocessing.resize == Squash(size=(8, 8))
    assert (export.labels, export.classes, export.image_size) == (("a", "b", "c", "d"), 4, (8, 8))
    assert (export.input_name, export.output_name, export.batch, export.opset) == ("image", "out0", None, 17)
    assert (export.architecture, export.max_abs_difference, export.parameters) == (None, None, 12)
    assert (export.weights_sha256, export.versions) == (sha256_of([source]), {"by-hand": ""})


def test_the_copy_computes_the_same_and_needs_no_flags(tmp_path: Path, flags: Flags) -> None:
    source = classifier(tmp_path / "model.onnx")
    first = to_onnx(str(source), tmp_path / "first" / "model.onnx", **flags)
    second = to_onnx(str(first.path), tmp_path / "second" / "model.onnx")
    assert (second.preprocessing, second.labels) == (first.preprocessing, first.labels)
    images = np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)
    expected = images.mean(axis=(2, 3)) @ np.arange(12, dtype=np.float32).reshape(3, 4)
    (logits,) = onnxruntime.InferenceSession(second.path).run(None, {"image": images})
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_an_exported_file_keeps_what_it_knows(exports: Exports, tmp_path: Path) -> None:
    export = exports.export("vit")
    copy = to_onnx(str(export.path), tmp_path / "copy.onnx")
    assert (copy.preprocessing, copy.labels) == (export.preprocessing, export.labels)
    assert (copy.architecture, copy.model_type) == ("ViTForImageClassification", "vit")
    assert (copy.input_name, copy.output_name, copy.opset) == ("pixel_values", "logits", 18)
    assert (copy.image_size, copy.classes, copy.batch) == ((32, 32), CLASSES, None)


def test_flags_go_before_the_metadata(exports: Exports, tmp_path: Path) -> None:
    preprocessor = write_preprocessor(tmp_path, image_processor_type="ViTImageProcessor", size=32, resample=3)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("abcdefg"))
    source = str(exports.export("vit").path)
    copy = to_onnx(source, tmp_path / "copy.onnx", preprocessor=preprocessor, labels=labels)
    assert (copy.preprocessing.filter, copy.labels) == ("bicubic", tuple("abcdefg"))


def test_files_beside_the_model(tmp_path: Path) -> None:
    source = classifier(tmp_path / "model.onnx")
    write_preprocessor(tmp_path, size=8)
    (tmp_path / "config.json").write_text('{"model_type": "vit", "id2label": {"0": "w", "1": "x", "2": "y", "3": "z"}}')
    export = to_onnx(str(source), tmp_path / "out" / "copy.onnx")
    assert (export.labels, export.preprocessing.resize) == (("w", "x", "y", "z"), Squash(size=(8, 8)))


def test_fixed_batch_is_reported(tmp_path: Path, flags: Flags) -> None:
    source = classifier(tmp_path / "model.onnx", image=(2, 3, 8, 8), logits=(2, 4))
    assert to_onnx(str(source), tmp_path / "copy.onnx", **flags).batch == 2


def test_no_preprocessing(tmp_path: Path) -> None:
    source = classifier(tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match="how to prepare images") as caught:
        to_onnx(str(source), tmp_path / "copy.onnx")
    assert str(source) in caught.value.message
    assert "--preprocessor FILE" in caught.value.hint


def test_no_labels(tmp_path: Path, flags: Flags) -> None:
    source = classifier(tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match="names its 4 classes") as caught:
        to_onnx(str(source), tmp_path / "copy.onnx", preprocessor=flags["preprocessor"])
    assert "--labels FILE" in caught.value.hint


def test_preprocessing_of_another_size(tmp_path: Path, flags: Flags) -> None:
    source = classifier(tmp_path / "model.onnx", image=("batch", 3, 8, 16))
    with pytest.raises(CheckpointError, match=r"gives 8x8 pixels .*, but the model takes 8x16"):
        to_onnx(str(source), tmp_path / "copy.onnx", **flags)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": 2}, "expected one input, found 2: image, extra1"),
        ({"outputs": 2}, "expected one output, found 2: out0, out1"),
        ({"image": ("batch", 1, 8, 8)}, r"\[\?, 1, 8, 8\], not \[batch, 3, height, width\]"),
        ({"image": ("batch", 8, 8, 3)}, r"\[\?, 8, 8, 3\]"),
        ({"image": (3, 8, 8)}, r"\[3, 8, 8\]"),
        ({"image": ("batch", 3, "height", "width")}, "no fixed height and width"),
        ({"logits": ("batch", 4, 1)}, r"\[\?, 4, 1\], not \[batch, classes\]"),
        ({"logits": ("batch", "classes")}, r"\[\?, \?\]"),
        ({"dtype": 10}, "image is FLOAT16, not float32"),
    ],
)
def test_other_graphs_are_refused(changes: dict[str, Any], message: str, tmp_path: Path, flags: Flags) -> None:
    source = classifier(tmp_path / "model.onnx", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        to_onnx(str(source), tmp_path / "copy.onnx", **flags)
    assert str(source) in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "copy.onnx").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model at all", b"\x00" * 64, b"\x08\x08" + b"\xff" * 64],
    ids=["empty", "text", "zeros", "ff"],
)
def test_garbage(content: bytes, tmp_path: Path, flags: Flags) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        to_onnx(str(source), tmp_path / "copy.onnx", **flags)
    assert str(source) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_truncated_file(keep: float, exports: Exports, tmp_path: Path) -> None:
    content = exports.export("vit").path.read_bytes()
    source = tmp_path / "model.onnx"
    source.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CheckpointError, match="truncated"):
        to_onnx(str(source), tmp_path / "copy.onnx")


def with_external_weights(path: Path) -> Path:
    model = onnx.load(classifier(path))
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_external_weights_are_taken_into_the_copy(tmp_path: Path, flags: Flags) -> None:
    source = with_external_weights(tmp_path / "model.onnx")
    export = to_onnx(str(source), tmp_path / "out" / "copy.onnx", **flags)
    assert [path.name for path in export.path.parent.iterdir()] == ["copy.onnx"]
    (weight,) = onnx.load(export.path).graph.initializer
    assert onnx.numpy_helper.to_array(weight).tolist() == np.arange(12.0).reshape(3, 4).tolist()
    assert export.weights_sha256 == sha256_of([source, tmp_path / "weights.bin"])


def test_large_weights_stay_beside_the_copy(tmp_path: Path, flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_source, "MAX_EMBEDDED_BYTES", 10)
    source = classifier(tmp_path / "model.onnx")
    model = onnx.load(source)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.zeros((3, 1000), np.float32), "weight"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1000
    onnx.save(model, source)
    flags["labels"].write_text("\n".join(f"n{index}" for index in range(1000)))
    export = to_onnx(str(source), tmp_path / "out" / "copy.onnx", **flags)
    assert {path.name for path in export.path.parent.iterdir()} == {"copy.onnx", "copy.onnx.data"}
    moved = (tmp_path / "out").rename(tmp_path / "moved") / "copy.onnx"
    assert onnx.numpy_helper.to_array(onnx.load(moved).graph.initializer[0]).shape == (3, 1000)


def test_external_weights_that_are_missing(tmp_path: Path, flags: Flags) -> None:
    source = with_external_weights(tmp_path / "model.onnx")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(CheckpointError, match=r"weights.bin") as caught:
        to_onnx(str(source), tmp_path / "copy.onnx", **flags)
    assert "beside" in caught.value.hint


@pytest.mark.parametrize("location", ["../secret.bin", "{outside}/secret.bin", "link.bin"])
def test_external_weights_outside_the_directory(location: str, tmp_path: Path, flags: Flags) -> None:
    (tmp_path / "secret.bin").write_bytes(np.arange(12, dtype=np.float32).tobytes())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link.bin").symlink_to(tmp_path / "secret.bin")
    source = with_external_weights(tmp_path / "model" / "model.onnx")
    model = onnx.load(source, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location.format(outside=tmp_path)
    source.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError) as caught:
        to_onnx(str(source), tmp_path / "copy.onnx", **flags)
    assert str(source) in caught.value.message
    assert not (tmp_path / "copy.onnx").exists()


def test_missing_onnx(tmp_path: Path, flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    source = classifier(tmp_path / "model.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(EnvironmentFault, match="onnx") as caught:
        to_onnx(str(source), tmp_path / "copy.onnx", **flags)
    assert caught.value.hint == "pip install 'trt-vit[export]'"


def test_a_model_with_qdq_nodes_is_known_as_quantized(tmp_path: Path, flags: Flags) -> None:
    model = onnx.load(classifier(tmp_path / "m.onnx"))
    assert not to_onnx(str(tmp_path / "m.onnx"), tmp_path / "plain.onnx", **flags).quantized
    scale = onnx.numpy_helper.from_array(np.array(0.1, dtype=np.float32), "scale")
    model.graph.initializer.append(scale)
    product = model.graph.node[1]
    product.input[0] = "dequantized"
    pair = [
        onnx.helper.make_node("QuantizeLinear", ["means", "scale"], ["quantized"]),
        onnx.helper.make_node("DequantizeLinear", ["quantized", "scale"], ["dequantized"]),
    ]
    nodes = [model.graph.node[0], *pair, product]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "q.onnx")
    assert to_onnx(str(tmp_path / "q.onnx"), tmp_path / "out.onnx", **flags).quantized


def test_a_model_quantized_for_one_runtime_is_refused(tmp_path: Path, flags: Flags) -> None:
    model = onnx.load(classifier(tmp_path / "m.onnx"))
    product = model.graph.node[1]
    dynamic = onnx.helper.make_node("DynamicQuantizeLinear", ["means"], ["codes", "scale", "zero"])
    back = onnx.helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["back"])
    product.input[0] = "back"
    nodes = [model.graph.node[0], dynamic, back, product]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "q.onnx")
    with pytest.raises(CheckpointError, match="quantized for one runtime: it has DynamicQuantizeLinear nodes"):
        to_onnx(str(tmp_path / "q.onnx"), tmp_path / "out.onnx", **flags)
