from __future__ import annotations

import os
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
    from collections.abc import Callable
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


def tampered(source: Path, change: Callable[[Any], object]) -> Path:
    """Change a file's model, but not its external weights."""
    model = onnx.load(source, load_external_data=False)
    change(model)
    source.write_bytes(model.SerializeToString())
    return source


def placed(**changes: str) -> Callable[[Any], None]:
    """Change what a model says about where its weights lie."""

    def change(model: Any) -> None:
        (weight,) = model.graph.initializer
        facts = {entry.key: entry.value for entry in weight.external_data} | changes
        del weight.external_data[:]
        for key, value in facts.items():
            weight.external_data.add(key=key, value=value)

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": "-1"}, "are '48' bytes from '-1', and its shape needs 48"),
        ({"offset": "a"}, "from 'a'"),
        ({"offset": "\u0660"}, "from '\u0660'"),
        ({"offset": "1"}, "end behind their file's end"),
        ({"offset": "9" * 30}, "from '9999"),
        ({"offset": "9" * 5000}, "from '9999"),
        ({"length": "-1"}, "are '-1' bytes"),
        ({"length": "4"}, "are '4' bytes from '0', and its shape needs 48"),
        ({"length": "999999999999"}, "are '999999999999' bytes"),
        ({"location": "weights.bin\0x"}, r"'weights.bin\\x00x' is not the name of a file beside it"),
        ({"location": "sub/../weights.bin"}, "is not the name of a file beside it"),
        ({"location": "/dev/zero"}, "is not the name of a file beside it"),
        ({"location": ""}, "is not the name of a file beside it"),
        ({"location": "pipe"}, "is not a file of its own"),
        ({"location": "hard"}, "is not a file of its own"),
    ],
)
def test_external_weights_that_are_not_where_they_should_be(
    changes: dict[str, str], message: str, tmp_path: Path, flags: Flags
) -> None:
    (tmp_path / "m").mkdir()
    source = tampered(with_external_weights(tmp_path / "m" / "model.onnx"), placed(**changes))
    os.mkfifo(tmp_path / "m" / "pipe")
    (tmp_path / "secret").write_bytes(bytes(48))
    (tmp_path / "m" / "hard").hardlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=message) as caught:
        to_onnx(str(source), tmp_path / "copy.onnx", **flags)
    assert str(source) in caught.value.message
    assert len(caught.value.message) < 1000


def test_external_weights_of_two_tensors_do_not_overlap(tmp_path: Path, flags: Flags) -> None:
    """A small file that many tensors name would fill the memory."""

    def name_twice(model: Any) -> None:
        model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
        model.graph.initializer[1].name = "again"

    source = tampered(with_external_weights(tmp_path / "model.onnx"), name_twice)
    with pytest.raises(CheckpointError, match="or are another tensor's too"):
        to_onnx(str(source), tmp_path / "copy.onnx", **flags)


def test_external_weights_with_gaps_are_hashed_whole(tmp_path: Path, flags: Flags) -> None:
    source = with_external_weights(tmp_path / "model.onnx")
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"gap!" + weights.read_bytes() + b"rest")
    tampered(source, placed(offset="4"))
    export = to_onnx(str(source), tmp_path / "out" / "copy.onnx", **flags)
    assert export.weights_sha256 == sha256_of([source, weights])
    (weight,) = onnx.load(export.path).graph.initializer
    assert onnx.numpy_helper.to_array(weight).tolist() == np.arange(12.0).reshape(3, 4).tolist()


def constant(location: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = onnx.TensorProto(name="c", data_type=1, dims=[3, 4], data_location=1)
        tensor.external_data.add(key="location", value=location)
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["weight2"], value=tensor))
        model.graph.node[2].input[1] = "weight2"

    return change


def in_function(model: Any) -> None:
    function = model.functions.add(name="F", domain="x", output=["o"])
    function.opset_import.add(domain="", version=17)
    model.opset_import.add(domain="x", version=1)
    tensor = onnx.TensorProto(name="c", data_type=1, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value="/etc/passwd")
    function.node.append(onnx.helper.make_node("Constant", [], ["o"], value=tensor))


def in_training_info(model: Any) -> None:
    tensor = model.training_info.add().algorithm.initializer.add(name="c", data_type=1, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value="/etc/passwd")


def in_sparse_tensor(model: Any) -> None:
    sparse = model.graph.sparse_initializer.add(dims=[3, 4])
    sparse.values.MergeFrom(onnx.TensorProto(name="s", data_type=1, dims=[1], data_location=1))
    sparse.values.external_data.add(key="location", value="/etc/passwd")
    sparse.indices.MergeFrom(onnx.TensorProto(data_type=7, dims=[1], int64_data=[0]))


@pytest.mark.parametrize("change", [constant("/etc/passwd"), in_function, in_training_info, in_sparse_tensor])
def test_external_weights_are_found_wherever_they_stand(
    change: Callable[[Any], None], tmp_path: Path, flags: Flags
) -> None:
    source = tampered(classifier(tmp_path / "model.onnx"), change)
    with pytest.raises(CheckpointError, match="'/etc/passwd' is not the name of a file beside it"):
        to_onnx(str(source), tmp_path / "copy.onnx", **flags)


def test_external_weights_of_a_constant_are_taken_in_and_hashed(tmp_path: Path, flags: Flags) -> None:
    source = tampered(classifier(tmp_path / "model.onnx"), constant("c.bin"))
    (tmp_path / "c.bin").write_bytes(np.full(12, 2, np.float32).tobytes())
    export = to_onnx(str(source), tmp_path / "out" / "copy.onnx", **flags)
    assert export.weights_sha256 == sha256_of([source, tmp_path / "c.bin"])
    (logits,) = onnxruntime.InferenceSession(export.path).run(None, {"image": np.ones((1, 3, 8, 8), np.float32)})
    assert logits.tolist() == [[6.0] * 4]


def named(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (named(b"image", b"im\xffge"), r"holds the name b'im\\xffge'"),
        (named(b"by-hand", b"by-\xffand"), r"holds the name b'by-\\xffand'"),
        (named(b"image", b"i\x1b[7m"), r"holds the name 'i\\x1b\[7m'"),
        (named(b"weight", b"we\ngh\x00"), r"holds the name 'we\\ngh\\x00'"),
    ],
)
def test_names_that_are_no_text_or_act_on_a_terminal(
    edit: Callable[[bytes], bytes], message: str, tmp_path: Path, flags: Flags
) -> None:
    source = classifier(tmp_path / "model.onnx")
    source.write_bytes(edit(source.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        to_onnx(str(source), tmp_path / "copy.onnx", **flags)


def test_a_name_of_a_million_letters(tmp_path: Path, flags: Flags) -> None:
    def rename(model: Any) -> None:
        model.graph.node[0].name = "x" * 10**6

    with pytest.raises(CheckpointError, match="holds the name 'xxx") as caught:
        to_onnx(str(tampered(classifier(tmp_path / "m.onnx"), rename)), tmp_path / "copy.onnx", **flags)
    assert len(caught.value.message) < 1000


def test_a_reference_to_an_attribute_of_no_function(tmp_path: Path, flags: Flags) -> None:
    """onnx lets it pass, and what walks through the graph later does not stand it."""

    def refer(model: Any) -> None:
        model.graph.node[0].attribute[0].ref_attr_name = "axes"

    with pytest.raises(CheckpointError, match="a node refers to an attribute of a function, and is in none"):
        to_onnx(str(tampered(classifier(tmp_path / "m.onnx"), refer)), tmp_path / "copy.onnx", **flags)


def test_notes_may_have_several_lines(tmp_path: Path, flags: Flags) -> None:
    def note(model: Any) -> None:
        model.doc_string = model.graph.node[0].doc_string = "two\nlines"
        model.metadata_props.add(key="author", value="two\nlines")

    to_onnx(str(tampered(classifier(tmp_path / "m.onnx"), note)), tmp_path / "copy.onnx", **flags)
    assert onnx.load(tmp_path / "copy.onnx").doc_string == "two\nlines"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.graph.initializer[0].dims.extend([2**62, 2**62]), "has 48 bytes, or a part, of the 10208"),
        (lambda model: model.graph.initializer[0].dims.__setitem__(0, -3), "has a negative size"),
        (
            lambda model: setattr(model.graph.initializer[0], "raw_data", bytes(47)),
            "has 47 bytes, or a part, of the 48",
        ),
        (
            lambda model: setattr(model.graph.initializer[0], "raw_data", bytes(49)),
            "has 49 bytes, or a part, of the 48",
        ),
        (lambda model: model.graph.initializer[0].segment.SetInParent(), "has 48 bytes, or a part, of the 48"),
        (lambda model: setattr(model.graph.initializer[0], "data_type", 8), "is not of numbers"),
        (lambda model: setattr(model.graph.initializer[0], "data_type", 99), "99 is not a valid DataType"),
        (lambda model: setattr(model.graph.output[0].type.tensor_type, "elem_type", 99), "not a valid ONNX model"),
    ],
)
def test_tensors_that_are_not_what_they_declare(
    change: Callable[[Any], object], message: str, tmp_path: Path, flags: Flags
) -> None:
    with pytest.raises(CheckpointError, match=message):
        to_onnx(str(tampered(classifier(tmp_path / "m.onnx"), change)), tmp_path / "copy.onnx", **flags)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": ("batch", 3, 2**40, 8)}, "1099511627776, 8"),
        ({"image": (2**17, 3, 8, 8), "logits": (2**17, 4)}, "131072, 3, 8, 8"),
        ({"logits": ("batch", 2**40)}, "the model has 1099511627776 classes"),
    ],
)
def test_sizes_that_no_classifier_has(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = classifier(tmp_path / "model.onnx", **changes)
    write_preprocessor(tmp_path, size=8)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(CheckpointError, match=message):
        to_onnx(str(source), tmp_path / "out" / "copy.onnx")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trt_vit.checkpoint", "[" * 100_000, "is not JSON"),
        ("trt_vit.checkpoint", '{"architecture": "a\\u001b[31m"}', "is not an object of plain text"),
        ("trt_vit.checkpoint", '{"architecture": "\\ud800"}', "is not JSON"),
        ("trt_vit.labels", '["\\ud800", "b", "c", "d"]', "is not JSON"),
        ("trt_vit.labels", '["a\\u001b[31m", "b", "c", "d"]', "is not a list of 4 labels"),
        ("trt_vit.labels", '["", "b", "c", "d"]', "is not a list of 4 labels"),
        ("trt_vit.labels", '["a\\nb", "b", "c", "d"]', "is not a list of 4 labels"),
        ("trt_vit.labels", "[" * 100_000, "is not JSON"),
    ],
)
def test_metadata_of_a_stranger(key: str, value: str, message: str, tmp_path: Path, flags: Flags) -> None:
    def describe(model: Any) -> None:
        model.metadata_props.add(key=key, value=value)

    source = tampered(classifier(tmp_path / "m.onnx"), describe)
    with pytest.raises(CheckpointError, match=f"metadata {key} {message}"):
        to_onnx(str(source), tmp_path / "copy.onnx", preprocessor=flags["preprocessor"])


def test_a_pipe_is_no_model(tmp_path: Path, flags: Flags) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match="cannot be read: is no regular file"):
        to_onnx(str(tmp_path / "model.onnx"), tmp_path / "copy.onnx", **flags)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_files_beside_the_model_that_are_links_elsewhere(name: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    source = classifier(tmp_path / "m" / "model.onnx")
    write_preprocessor(tmp_path / "m", size=8)
    (tmp_path / "m" / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "m" / name).rename(tmp_path / name)
    (tmp_path / "m" / name).symlink_to(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}: is a link to a file outside"):
        to_onnx(str(source), tmp_path / "out" / "copy.onnx")
