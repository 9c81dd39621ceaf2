from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

from trt_vit.checkpoint.load import to_onnx
from trt_vit.engine.prepare import prepare
from trt_vit.errors import EngineError
from trt_vit.quantize.qdq import quantize
from trt_vit.quantize.ranges import activation_ranges

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from trt_vit.checkpoint.export import Export
    from trt_vit.engine.manifest import Precision

LAYERS = 10  # the patches, four of each of the two layers (QKV is one), and the head
PATCHES = 16 * 192 * 64
"""Multiply-accumulates of the patch convolution: tokens, numbers a patch, width."""


@pytest.fixture(scope="module")
def export(vit_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return to_onnx(str(vit_onnx), tmp_path_factory.mktemp("export") / "model.onnx")


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)


def infer(path: Path, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: pixels})[0]
    assert logits.dtype == np.float32
    return np.asarray(logits)


def types(path: Path) -> set[int]:
    return {tensor.data_type for tensor in onnx.load(path).graph.initializer} - {onnx.TensorProto.INT64}


T = onnx.TensorProto


@pytest.mark.parametrize(
    ("precision", "numbers", "cosine"),
    [
        ("fp32", {T.FLOAT}, 0.999999),
        ("fp16", {T.FLOAT16}, 0.9999),
        ("int8", {T.INT8, T.FLOAT16}, 0.995),
        ("fp8", {T.FLOAT8E4M3FN, T.FLOAT16}, 0.99),
    ],
)
def test_the_graph_computes_the_same_in_the_numbers_that_were_asked_for(
    export: Export,
    pixels: NDArray[np.float32],
    tmp_path: Path,
    *,
    precision: Precision,
    numbers: set[int],
    cosine: float,
) -> None:
    prepared = prepare(export, precision, tmp_path / "p.onnx", calibration=[pixels])
    assert numbers <= types(prepared.path)
    assert (T.FLOAT in types(prepared.path)) <= (precision != "fp16")
    expected, found = infer(export.path, pixels), infer(prepared.path, pixels)
    assert (expected * found).sum() / np.linalg.norm(expected) / np.linalg.norm(found) > cosine
    assert (prepared.attentions, len(prepared.macs)) == (2, LAYERS)
    assert prepared.macs["node_conv2d"] == PATCHES
    assert all(0 < count <= 17 * 64 * 192 for count in prepared.macs.values())


@pytest.mark.parametrize(("precision", "left_out"), [("fp32", None), ("int8", set()), ("fp8", {"node_conv2d"})])
def test_every_linear_layer_has_a_place(
    export: Export, pixels: NDArray[np.float32], tmp_path: Path, precision: Precision, left_out: set[str] | None
) -> None:
    prepared = prepare(export, precision, tmp_path / "p.onnx", calibration=[pixels])
    if left_out is None:
        assert prepared.placements == ()
        return
    assert {place.layer for place in prepared.placements} == set(prepared.macs)
    assert {place.layer for place in prepared.placements if place.left_out is not None} == left_out
    assert {place.layer: place.macs for place in prepared.placements} == prepared.macs


def test_where_a_model_came_from_decides_nothing(export: Export, tmp_path: Path) -> None:
    other = onnx.load(export.path)
    onnx.helper.set_model_props(other, {"source": "elsewhere", "labels": "other"})
    onnx.save(other, tmp_path / "other.onnx")
    first = prepare(export, "fp16", tmp_path / "1.onnx", calibration=[])
    second = prepare(replace(export, path=tmp_path / "other.onnx"), "fp16", tmp_path / "2.onnx", calibration=[])
    assert first.path.read_bytes() == second.path.read_bytes()


def test_a_graph_that_came_quantized_keeps_its_places(
    export: Export, pixels: NDArray[np.float32], tmp_path: Path
) -> None:
    model = ir.load(export.path)
    quantize(model, activation_ranges(model, [pixels]), "int8")
    ir.save(model, tmp_path / "qdq.onnx")
    came = replace(export, path=tmp_path / "qdq.onnx", quantized=True)
    prepared = prepare(came, "int8", tmp_path / "p.onnx", calibration=[])
    kinds = [node.op_type for node in onnx.load(prepared.path).graph.node]
    assert kinds == [node.op_type for node in onnx.load(came.path).graph.node]
    assert prepared.placements == ()
    np.testing.assert_array_equal(infer(prepared.path, pixels), infer(came.path, pixels))


def test_quantized_biases_become_numbers_again(export: Export, pixels: NDArray[np.float32], tmp_path: Path) -> None:
    model = onnx.load(export.path)
    head = next(node for node in model.graph.node if node.output[0] == model.graph.output[0].name)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == head.input[2])
    codes = (numpy_helper.to_array(bias) / np.float32(1e-4)).round().astype(np.int32)
    for name, array in {"codes": codes, "scale": np.float32(1e-4)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", ["codes", "scale"], ["bias"], name="dq"))
    head.input[2] = "bias"
    onnx.save(model, tmp_path / "biased.onnx")
    came = replace(export, path=tmp_path / "biased.onnx", quantized=True)
    prepared = prepare(came, "fp32", tmp_path / "p.onnx", calibration=[])
    assert "DequantizeLinear" not in {node.op_type for node in onnx.load(prepared.path).graph.node}
    assert T.INT32 not in types(prepared.path)
    np.testing.assert_allclose(infer(prepared.path, pixels), infer(came.path, pixels), rtol=1e-6)


def test_a_graph_without_weights_is_refused(export: Export, tmp_path: Path) -> None:
    shape = [None, 3, 32, 32]
    pixels = onnx.helper.make_tensor_value_info("pixels", T.FLOAT, shape)
    logits = onnx.helper.make_tensor_value_info("logits", T.FLOAT, [None, 3])
    node = onnx.helper.make_node("ReduceMean", ["pixels", "axes"], ["logits"], keepdims=0)
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    graph = onnx.helper.make_graph([node], "g", [pixels], [logits], [axes])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    empty = replace(export, path=tmp_path / "m.onnx", source="m.onnx")
    with pytest.raises(EngineError, match=r"m\.onnx has no linear layer with a constant weight"):
        prepare(empty, "fp16", tmp_path / "p.onnx", calibration=[])


def test_int8_without_calibration_images_is_refused(export: Export, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="there is no calibration image"):
        prepare(export, "int8", tmp_path / "p.onnx", calibration=[])
    assert not (tmp_path / "p.onnx").exists()


def test_an_operator_of_someone_elses_is_named(export: Export, pixels: NDArray[np.float32], tmp_path: Path) -> None:
    model = onnx.load(export.path)
    head = next(node for node in model.graph.node if node.output[0] == model.graph.output[0].name)
    head.output[0] = "before"
    name = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("Frobnicate", ["before"], [name], name="frob", domain="my.ops"))
    model.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
    onnx.save(model, tmp_path / "m.onnx")
    odd = replace(export, path=tmp_path / "m.onnx", source="m.onnx")
    with pytest.raises(
        EngineError, match=r"m\.onnx: node frob is a my\.ops:Frobnicate, which TensorRT does not know"
    ) as caught:
        prepare(odd, "int8", tmp_path / "p.onnx", calibration=[pixels])
    assert "standard operators" in caught.value.hint


def test_nodes_get_plain_names_of_their_own(export: Export, tmp_path: Path) -> None:
    model = onnx.load(export.path)
    for node in model.graph.node:
        node.name = f"/layers[0]\n{node.op_type}"
    onnx.save(model, tmp_path / "m.onnx")
    prepared = prepare(replace(export, path=tmp_path / "m.onnx"), "fp32", tmp_path / "p.onnx", calibration=[])
    names = [node.name for node in onnx.load(prepared.path).graph.node]
    assert len(set(names)) == len(names)
    assert all("[" not in name and "\n" not in name for name in names)
    assert set(prepared.macs) <= set(names)
