from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

from tests.quantize.graphs import PLAIN, quantized
from trt_vit.checkpoint.load import to_onnx
from trt_vit.engine.prepare import Prepared, prepare
from trt_vit.errors import EngineError
from trt_vit.quantize.calibrate import Calibration
from trt_vit.quantize.equalize import Numbers
from trt_vit.quantize.linear import groups, linear_layers
from trt_vit.quantize.plan import Placement, Quantization, Wish, quantize
from trt_vit.quantize.qdq import place
from trt_vit.quantize.solve import solve
from trt_vit.quantize.statistics import measure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Literal

    from numpy.typing import NDArray

    from trt_vit.checkpoint.export import Export
    from trt_vit.engine.manifest import Precision

LAYERS = 10
"""The patches, four of each of the two layers (QKV is one), and the head."""
PATCHES = 16 * 192 * 64
"""Multiply-accumulates of the patch convolution: tokens, numbers a patch, width."""


@pytest.fixture(scope="module")
def export(vit_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return to_onnx(str(vit_onnx), tmp_path_factory.mktemp("export") / "model.onnx")


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)


def quantizer(
    pixels: NDArray[np.float32] | None, number: Literal["int8", "fp8"], *, tensorrt: bool = True
) -> Callable[[ir.Model], Quantization]:
    """What quantizes all that can be, calibrated on some images or on none."""
    batches = () if pixels is None else (pixels,)
    numbers = Numbers(number, number if tensorrt else "int7")
    wish = Wish(numbers, least_agreement=0, tensorrt=tensorrt, methods=PLAIN)

    def quantize_all(model: ir.Model) -> Quantization:
        statistics = measure(model, batches, images=sum(len(batch) for batch in batches))
        return quantize(model, Calibration(statistics, batches, statistics.logits), wish, lambda *_: None)

    return quantize_all


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
    quantize_all = quantizer(pixels, precision) if precision in {"int8", "fp8"} else None
    prepared = prepare(export, precision, tmp_path / "p.onnx", quantize=quantize_all)
    assert numbers <= types(prepared.path)
    assert (T.FLOAT in types(prepared.path)) <= (precision != "fp16")
    expected, found = infer(export.path, pixels), infer(prepared.path, pixels)
    assert (expected * found).sum() / np.linalg.norm(expected) / np.linalg.norm(found) > cosine
    assert (prepared.attentions, len(prepared.macs)) == (2, LAYERS)
    assert prepared.macs["node_conv2d"] == PATCHES
    assert all(0 < count <= 17 * 64 * 192 for count in prepared.macs.values())


def projections(prepared: Prepared) -> set[str]:
    """The layers that read what an attention gives."""
    assert prepared.quantization is not None
    reasons = {place.layer: place.left_out for place in prepared.quantization.placements}
    return {layer for layer, reason in reasons.items() if reason is not None and "an attention's output" in reason}


@pytest.mark.parametrize(
    ("precision", "tensorrt", "left_out"),
    [("int8", True, (17 + 1) * 64 * 64), ("int8", False, 0), ("fp8", True, PATCHES)],
)
def test_every_linear_layer_has_a_place(
    export: Export,
    pixels: NDArray[np.float32],
    tmp_path: Path,
    *,
    precision: Literal["int8", "fp8"],
    tensorrt: bool,
    left_out: int,
) -> None:
    """INT8 for TensorRT leaves the projections behind the attentions in fp16, FP8 the patches.

    The second projection is that of the class token alone.
    """
    prepared = prepare(export, precision, tmp_path / "p.onnx", quantize=quantizer(pixels, precision, tensorrt=tensorrt))
    assert prepared.quantization is not None
    placements = prepared.quantization.placements
    assert {place.layer: place.macs for place in placements} == prepared.macs
    assert sum(place.macs for place in placements if place.left_out is not None) == left_out
    assert len(projections(prepared)) == (2 if tensorrt and precision == "int8" else 0)
    assert prepared.share == pytest.approx(1 - left_out / sum(prepared.macs.values()), abs=1e-12)
    numbers = {layer.name: layer.number for layer in linear_layers(ir.load(prepared.path))}
    assert numbers == {place.layer: "fp16" if place.left_out is not None else precision for place in placements}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_what_is_not_quantized_has_no_places(export: Export, tmp_path: Path, precision: Precision) -> None:
    prepared = prepare(export, precision, tmp_path / "p.onnx")
    assert (prepared.quantization, prepared.share) == (None, 1.0)


def test_what_is_around_int8_may_stay_in_fp32(export: Export, pixels: NDArray[np.float32], tmp_path: Path) -> None:
    quantize_all = quantizer(pixels, "int8", tensorrt=False)
    prepared = prepare(export, "int8", tmp_path / "p.onnx", quantize=quantize_all, rest="fp32")
    assert {T.INT8, T.FLOAT} <= types(prepared.path)
    assert T.FLOAT16 not in types(prepared.path)
    assert prepared.share == 1.0
    expected, found = infer(export.path, pixels), infer(prepared.path, pixels)
    assert (expected * found).sum() / np.linalg.norm(expected) / np.linalg.norm(found) > 0.995


def test_a_graph_none_of_whose_layers_is_quantized_is_refused(export: Export, tmp_path: Path) -> None:
    def leave_all_out(model: ir.Model) -> Quantization:
        layers = linear_layers(model)
        return Quantization(
            tuple(Placement(layer.name, layer.macs, "it is odd") for layer in layers), None, reached=True
        )

    odd = replace(export, source="m.onnx")
    with pytest.raises(EngineError, match=r"no linear layer of m\.onnx can be quantized: it is odd") as caught:
        prepare(odd, "int8", tmp_path / "p.onnx", quantize=leave_all_out)
    assert "--precision fp16 or fp32" in caught.value.hint
    assert not (tmp_path / "p.onnx").exists()


def test_where_a_model_came_from_decides_nothing(export: Export, tmp_path: Path) -> None:
    other = onnx.load(export.path)
    onnx.helper.set_model_props(other, {"source": "elsewhere", "labels": "other"})
    onnx.save(other, tmp_path / "other.onnx")
    first = prepare(export, "fp16", tmp_path / "1.onnx")
    second = prepare(replace(export, path=tmp_path / "other.onnx"), "fp16", tmp_path / "2.onnx")
    assert first.path.read_bytes() == second.path.read_bytes()


def test_a_graph_that_came_quantized_keeps_its_places(
    export: Export, pixels: NDArray[np.float32], tmp_path: Path
) -> None:
    model = ir.load(export.path)
    quantized(model, [pixels])
    ir.save(model, tmp_path / "qdq.onnx")
    came = replace(export, path=tmp_path / "qdq.onnx", quantized=True)
    prepared = prepare(came, "int8", tmp_path / "p.onnx")
    kinds = [node.op_type for node in onnx.load(prepared.path).graph.node]
    assert kinds == [node.op_type for node in onnx.load(came.path).graph.node]
    assert (prepared.quantization, prepared.share) == (None, 1.0)
    np.testing.assert_array_equal(infer(prepared.path, pixels), infer(came.path, pixels))


def test_a_graph_that_came_quantized_in_part_says_what_part(
    export: Export, pixels: NDArray[np.float32], tmp_path: Path
) -> None:
    model = ir.load(export.path)
    statistics = measure(model, [pixels], images=len(pixels))
    patches, *_ = groups(linear_layers(model))
    place(model, [solve(patches, statistics, Numbers("int8", "int8"), PLAIN)])
    ir.save(model, tmp_path / "qdq.onnx")
    came = replace(export, path=tmp_path / "qdq.onnx", quantized=True)
    prepared = prepare(came, "int8", tmp_path / "p.onnx")
    assert prepared.share == pytest.approx(PATCHES / sum(prepared.macs.values()), abs=1e-12)
    with pytest.raises(EngineError, match=r"no linear layer of .* is quantized to fp8: they are fp32, int8"):
        prepare(came, "fp8", tmp_path / "p8.onnx")


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
    prepared = prepare(came, "fp32", tmp_path / "p.onnx")
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
        prepare(empty, "fp16", tmp_path / "p.onnx")


def test_int8_without_calibration_images_is_refused(export: Export, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="there is no calibration image"):
        prepare(export, "int8", tmp_path / "p.onnx", quantize=quantizer(None, "int8"))
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
        prepare(odd, "int8", tmp_path / "p.onnx", quantize=quantizer(pixels, "int8"))
    assert "standard operators" in caught.value.hint


def test_nodes_get_plain_names_of_their_own(export: Export, tmp_path: Path) -> None:
    model = onnx.load(export.path)
    for node in model.graph.node:
        node.name = f"/layers[0]\n{node.op_type}"
    onnx.save(model, tmp_path / "m.onnx")
    prepared = prepare(replace(export, path=tmp_path / "m.onnx"), "fp32", tmp_path / "p.onnx")
    names = [node.name for node in onnx.load(prepared.path).graph.node]
    assert len(set(names)) == len(names)
    assert all("[" not in name and "\n" not in name for name in names)
    assert set(prepared.macs) <= set(names)
