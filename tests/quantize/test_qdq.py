from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

from tests.quantize.graphs import PLAIN, array, check, cosine, dtypes, evaluate, graph_of, kinds, node, quantized
from trt_vit.quantize.cast import cast
from trt_vit.quantize.codes import activation_scale
from trt_vit.quantize.equalize import Methods, Operand
from trt_vit.quantize.linear import int8_coverage, linear_layers
from trt_vit.quantize.qdq import FACTORS, place
from trt_vit.quantize.solve import GroupCodes, LayerCodes

if TYPE_CHECKING:
    from typing import Any

    import onnx_ir as ir
    from numpy.typing import NDArray

_E4M3 = ml_dtypes.float8_e4m3fn
_W = np.array([[1, 0.25, 0, 0.1], [0.246, -0.5, 0, -0.05], [-0.01, 0.1, 0, 0.025]], np.float32)
_X = np.array([[0.5, -2, 1.25], [3, 0.1, -0.7]], np.float32)
_BIAS = np.array([100, 200, 300, 400], np.float32)
# Made by hand, not of the weight above: the graph has to compute what the codes say.
_CODES = np.array([[127, 63, 0, -5], [31, -127, 1, -63], [-1, 25, 0, 32]], np.int8)
_SCALE = np.array(2.0**-7, np.float32)
_FACTORS = np.array([1, 0.5, 0.25, 0.125], np.float32)
_EXTRA = np.array([-1, 2, -3, 4], np.float32)
_DEQUANTIZED = _CODES * _SCALE * _FACTORS
_AMAX = 3.0
_STEP = float(activation_scale(_AMAX, "int8"))
_READ = (np.rint(_X / _STEP) * _STEP).astype(np.float32)


def _layer(
    *, factors: NDArray[np.float32] | None = _FACTORS, bias: NDArray[np.float32] | None = None
) -> dict[str, LayerCodes]:
    return {"layer": LayerCodes(_CODES, _SCALE, factors, bias)}


def _int8(layers: dict[str, LayerCodes], operand: Operand | None = None) -> GroupCodes:
    return GroupCodes("int8", operand or Operand(_AMAX), layers)


def _matmul(weight: NDArray[Any] = _W) -> ir.Model:
    return graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        {"w": weight},
        given={"x": ("batch", 3)},
        outputs={"y": ("batch", 4)},
    )


def _added(bias: NDArray[np.float32], *, first: bool = False) -> ir.Model:
    """A product and an Add of a constant, which is its first operand or its second."""
    return graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"),
            helper.make_node("Add", ["b", "h"] if first else ["h", "b"], ["y"]),
        ],
        {"w": _W, "b": bias},
        given={"x": (2, 3)},
        outputs={"y": (2, 4)},
    )


def _reading(model: ir.Model, kind: str, index: int = 0) -> ir.Node:
    """The node that makes what the first node of an operator reads."""
    value = node(model, kind).inputs[index]
    assert value is not None
    made_by = value.producer()
    assert made_by is not None
    return made_by


def test_an_int8_product_multiplies_codes() -> None:
    model = _matmul()
    place(model, [_int8(_layer())])
    check(model)
    assert sorted(kinds(model)) == sorted(["DequantizeLinear"] * 2 + ["QuantizeLinear", "MatMul", "Mul"])
    pair = node(model, "QuantizeLinear")
    assert _reading(model, "MatMul").inputs[1:] == pair.inputs[1:]
    assert float(array(pair.inputs[1])) == _STEP
    assert array(pair.inputs[2]) == np.int8(0)
    assert array(pair.inputs[2]).dtype == np.int8
    weight = _reading(model, "MatMul", 1)
    assert array(weight.inputs[0]).dtype == np.int8
    np.testing.assert_array_equal(array(weight.inputs[0]), _CODES)
    assert array(weight.inputs[1]).shape == ()
    assert array(weight.inputs[1]) == _SCALE
    np.testing.assert_array_equal(array(node(model, "Mul").inputs[1]), _FACTORS)
    assert node(model, "Mul").name == f"layer_{FACTORS}"
    assert "w" not in model.graph.initializers
    assert (node(model, "MatMul").name, model.graph.outputs[0].name) == ("layer", "y")
    np.testing.assert_allclose(evaluate(model, _X), _READ @ _DEQUANTIZED, rtol=1e-5)


def test_activations_are_saturated_at_their_range() -> None:
    model = _matmul()
    place(model, [_int8(_layer(), Operand(1.0))])
    step = float(activation_scale(1.0, "int8"))
    read = np.clip(np.rint(_X / step), -128, 127) * np.float32(step)
    assert np.abs(read).max() < 1.02  # of values up to 3
    np.testing.assert_allclose(evaluate(model, _X), read @ _DEQUANTIZED, rtol=1e-5)


def test_an_fp8_product_multiplies_codes_without_factors() -> None:
    model = _matmul()
    codes = (_W * 256).astype(_E4M3)
    layers = {"layer": LayerCodes(codes, np.array(2.0**-8, np.float32), None, None)}
    place(model, [GroupCodes("fp8", Operand(_AMAX), layers)])
    check(model)
    assert sorted(kinds(model)) == sorted(["DequantizeLinear"] * 2 + ["QuantizeLinear", "MatMul"])
    pair = node(model, "QuantizeLinear")
    assert float(array(pair.inputs[1])) == activation_scale(_AMAX, "fp8")
    assert array(pair.inputs[2]).dtype == _E4M3
    assert array(_reading(model, "MatMul", 1).inputs[0]).dtype == _E4M3
    scale = activation_scale(_AMAX, "fp8")
    read = (_X / scale).astype(_E4M3).astype(np.float32) * scale
    np.testing.assert_allclose(evaluate(model, _X), read @ (codes.astype(np.float32) / 256), rtol=1e-5)
    np.testing.assert_allclose(evaluate(model, _X), _X @ _W, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("extra", [None, _EXTRA])
@pytest.mark.parametrize("bias", [None, _BIAS])
@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_becomes_a_product_with_factors_and_a_bias(
    transposed: int, bias: NDArray[np.float32] | None, extra: NDArray[np.float32] | None
) -> None:
    weights = {"w": np.ascontiguousarray(_W.T if transposed else _W)} | ({} if bias is None else {"b": bias})
    model = graph_of(
        [helper.make_node("Gemm", ["x", *weights], ["y"], name="layer", transB=transposed)],
        weights,
        given={"x": ("batch", 3)},
        outputs={"y": ("batch", 4)},
    )
    place(model, [_int8(_layer(bias=extra))])
    check(model)
    adds = 0 if bias is None and extra is None else 1
    assert kinds(model)[-2 - adds :] == ["MatMul", "Mul", "Add"][: 2 + adds]
    assert (node(model, "MatMul").name, node(model, "Mul").name) == ("layer", f"layer_{FACTORS}")
    assert model.graph.outputs[0].name == "y"
    np.testing.assert_array_equal(array(_reading(model, "MatMul", 1).inputs[0]), _CODES)
    expected = _READ @ _DEQUANTIZED + (0 if bias is None else bias) + (0 if extra is None else extra)
    np.testing.assert_allclose(evaluate(model, _X), expected, rtol=1e-5)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("factors", [None, _FACTORS])
def test_what_is_added_to_a_bias_costs_no_node(factors: NDArray[np.float32] | None, *, first: bool) -> None:
    model = _added(_BIAS, first=first)
    place(model, [_int8(_layer(factors=factors, bias=_EXTRA))])
    check(model)
    assert kinds(model)[3:] == ["MatMul", *([] if factors is None else ["Mul"]), "Add"]
    dequantized = _DEQUANTIZED if factors is not None else _CODES * _SCALE
    np.testing.assert_allclose(evaluate(model, _X), _READ @ dequantized + _BIAS + _EXTRA, rtol=1e-5)


def test_a_bias_that_other_layers_read_keeps_its_numbers() -> None:
    model = graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"),
            helper.make_node("Add", ["h", "b"], ["y"]),
            helper.make_node("Mul", ["y", "b"], ["z"]),
        ],
        {"w": _W, "b": _BIAS},
        given={"x": (2, 3)},
        outputs={"z": (2, 4)},
    )
    place(model, [_int8(_layer(bias=_EXTRA))])
    np.testing.assert_allclose(evaluate(model, _X), (_READ @ _DEQUANTIZED + _BIAS + _EXTRA) * _BIAS, rtol=1e-5)


@pytest.mark.parametrize("bias", [np.arange(8, dtype=np.float32).reshape(2, 4), np.ones((1, 4), np.float32)])
def test_what_is_no_vector_is_no_bias(bias: NDArray[np.float32]) -> None:
    model = _added(bias)
    place(model, [_int8(_layer(bias=_EXTRA))])
    check(model)
    assert kinds(model)[-4:] == ["MatMul", "Mul", "Add", "Add"]
    np.testing.assert_allclose(evaluate(model, _X), _READ @ _DEQUANTIZED + bias + _EXTRA, rtol=1e-5)


def test_what_the_graph_gives_out_is_the_whole_product() -> None:
    """An Add behind a product that others read too is not the product's: they need all of it."""
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"), helper.make_node("Add", ["h", "b"], ["y"])],
        {"w": _W, "b": _BIAS},
        given={"x": (2, 3)},
        outputs={"h": (2, 4), "y": (2, 4)},
    )
    place(model, [_int8(_layer(bias=_EXTRA))])
    check(model)
    assert [value.name for value in model.graph.outputs] == ["h", "y"]
    np.testing.assert_allclose(evaluate(model, _X), _READ @ _DEQUANTIZED + _EXTRA, rtol=1e-5)


def test_names_that_are_taken_are_left_alone() -> None:
    model = graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"], name="layer"),
            helper.make_node("Relu", ["y"], ["y_codes"]),
            helper.make_node("Neg", ["y"], ["y_scaled"]),
        ],
        {"w": _W},
        given={"x": (2, 3)},
        outputs={"y": (2, 4), "y_codes": (2, 4), "y_scaled": (2, 4)},
    )
    place(model, [_int8(_layer(bias=_EXTRA))])
    check(model)
    assert [value.name for value in model.graph.outputs] == ["y", "y_codes", "y_scaled"]
    np.testing.assert_allclose(evaluate(model, _X), _READ @ _DEQUANTIZED + _EXTRA, rtol=1e-5)


_KERNEL_CODES = np.random.default_rng(0).integers(-127, 128, (5, 3, 2, 2)).astype(np.int8)
_KERNEL_SCALES = np.array([2.0**-power for power in range(6, 11)], np.float32)
_KERNEL = (_KERNEL_CODES * _KERNEL_SCALES[:, None, None, None]).astype(np.float32)


def _convolution(kernel: NDArray[np.float32], bias: NDArray[np.float32] | None, **attributes: object) -> ir.Model:
    weights = {"w": kernel} | ({} if bias is None else {"b": bias})
    return graph_of(
        [helper.make_node("Conv", ["x", *weights], ["y"], name="layer", strides=[2, 2], **attributes)],
        weights,
        given={"x": ("batch", 3, 4, 4)},
        outputs={"y": ("batch", 5, 2, 2)},
    )


@pytest.mark.parametrize("extra", [None, np.array([5, -4, 3, -2, 1], np.float32)])
@pytest.mark.parametrize("bias", [None, np.arange(5, dtype=np.float32)])
def test_a_convolution_keeps_its_scales_and_its_bias(
    bias: NDArray[np.float32] | None, extra: NDArray[np.float32] | None
) -> None:
    model = _convolution(np.ones((5, 3, 2, 2), np.float32), bias)
    place(model, [_int8({"layer": LayerCodes(_KERNEL_CODES, _KERNEL_SCALES, None, extra)}, Operand(1.0))])
    check(model)
    assert sorted(kinds(model)) == sorted(["DequantizeLinear"] * 2 + ["QuantizeLinear", "Conv"])
    weight = _reading(model, "Conv", 1)
    assert weight.attributes.get_int("axis", 1) == 0
    np.testing.assert_array_equal(array(weight.inputs[0]), _KERNEL_CODES)
    np.testing.assert_array_equal(array(weight.inputs[1]), _KERNEL_SCALES)
    x = np.random.default_rng(1).uniform(-1, 1, (2, 3, 4, 4)).astype(np.float32)
    step = activation_scale(1.0, "int8")
    total = (np.zeros(5, np.float32) if bias is None else bias) + (0 if extra is None else extra)
    expected = evaluate(_convolution(_KERNEL, total), (np.rint(x / step) * step).astype(np.float32))
    np.testing.assert_allclose(evaluate(model, x), expected, atol=1e-4)


_SHIFT = np.array([0.5, -1, 2], np.float32)
_CHANNEL_SCALE = np.array([1, 4, 0.5], np.float32)


@pytest.mark.parametrize(("shift", "scale"), [(_SHIFT, None), (None, _CHANNEL_SCALE), (_SHIFT, _CHANNEL_SCALE)])
def test_channels_are_shifted_and_scaled_before_the_pair(
    shift: NDArray[np.float32] | None, scale: NDArray[np.float32] | None
) -> None:
    model = graph_of(
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("MatMul", ["r", "w"], ["y"], name="layer"),
            helper.make_node("Neg", ["r"], ["z"]),
        ],
        {"w": _W},
        given={"x": ("batch", 3)},
        outputs={"y": ("batch", 4), "z": ("batch", 3)},
    )
    operand = Operand(_AMAX, shift, scale)
    place(model, [_int8(_layer(), operand)])
    check(model)
    expected = operand.codes(np.maximum(_X, 0), "int8") @ _DEQUANTIZED
    np.testing.assert_allclose(evaluate(model, _X), expected, rtol=1e-5, atol=1e-6)
    assert kinds(model).count("Mul") - 1 == (scale is not None)  # and the factors
    assert kinds(model).count("Add") == (shift is not None)
    assert node(model, "Neg").inputs[0] is node(model, "Relu").outputs[0]  # others read the tensor as it is


def test_channels_of_an_image_are_shifted_and_scaled() -> None:
    model = _convolution(np.ones((5, 3, 2, 2), np.float32), None)
    operand = Operand(1.0, np.array([0.5, -0.25, 0], np.float32), np.array([1, 2, 0.5], np.float32))
    place(model, [_int8({"layer": LayerCodes(_KERNEL_CODES, _KERNEL_SCALES, None, None)}, operand)])
    check(model)
    x = np.random.default_rng(1).uniform(-1, 1, (2, 3, 4, 4)).astype(np.float32)
    read = operand.codes(np.moveaxis(x, 1, -1).reshape(-1, 3), "int8").reshape(2, 4, 4, 3)
    expected = evaluate(_convolution(_KERNEL, None), np.ascontiguousarray(np.moveaxis(read, -1, 1)))
    np.testing.assert_allclose(evaluate(model, x), expected, rtol=1e-5, atol=1e-4)


_GAMMA, _BETA = np.array([1, 20, 0.1], np.float32), np.array([0, 5, -3], np.float32)


def _normalized(beta: NDArray[np.float32] | None = _BETA, *, given_out: bool = False, read: bool = False) -> ir.Model:
    """A product of a LayerNormalization, which the graph may give out or something else may read."""
    weights = {"gamma": _GAMMA} | ({} if beta is None else {"beta": beta})
    nodes = [
        helper.make_node("LayerNormalization", ["x", *weights], ["n"]),
        helper.make_node("MatMul", ["n", "w"], ["y"], name="layer"),
    ]
    outputs = {"y": ("batch", 4)}
    if read:
        nodes.append(helper.make_node("Relu", ["n"], ["r"]))
        outputs["r"] = ("batch", 3)
    if given_out:
        outputs["n"] = ("batch", 3)
    return graph_of(nodes, {"w": _W, **weights}, given={"x": ("batch", 3)}, outputs=outputs)


def _normalization(beta: NDArray[np.float32] | None = _BETA) -> NDArray[np.float32]:
    centred = _X - _X.mean(axis=1, keepdims=True)
    normal = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + 1e-5)
    return np.asarray(normal * _GAMMA + (0 if beta is None else beta), np.float32)


@pytest.mark.parametrize("beta", [None, _BETA])
@pytest.mark.parametrize(("shift", "scale"), [(_SHIFT, None), (None, _CHANNEL_SCALE), (_SHIFT, _CHANNEL_SCALE)])
def test_a_normalization_gives_out_its_channels_shifted_and_scaled(
    shift: NDArray[np.float32] | None, scale: NDArray[np.float32] | None, beta: NDArray[np.float32] | None
) -> None:
    model, operand = _normalized(beta), Operand(20.0, shift, scale)
    place(model, [_int8(_layer(), operand)])
    check(model)
    assert sorted(kinds(model)) == sorted(
        ["LayerNormalization", "DequantizeLinear", "DequantizeLinear", "QuantizeLinear", "MatMul", "Mul"]
    )
    inputs = node(model, "LayerNormalization").inputs
    scales = np.ones(3, np.float32) if scale is None else scale
    np.testing.assert_allclose(array(inputs[1]), _GAMMA / scales, rtol=1e-6)
    if beta is None and shift is None:
        assert len(inputs) == 2
    else:
        offset = (0 if beta is None else beta) - (0 if shift is None else shift)
        np.testing.assert_allclose(array(inputs[2]), offset / scales, rtol=1e-6)
    expected = operand.codes(_normalization(beta), "int8") @ _DEQUANTIZED
    np.testing.assert_allclose(evaluate(model, _X), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["given_out", "read"])
def test_a_normalization_that_others_read_is_left_as_it_is(change: str) -> None:
    model, operand = (
        _normalized(given_out=change == "given_out", read=change == "read"),
        Operand(20.0, _SHIFT, _CHANNEL_SCALE),
    )
    place(model, [_int8(_layer(), operand)])
    check(model)
    np.testing.assert_array_equal(array(node(model, "LayerNormalization").inputs[1]), _GAMMA)
    np.testing.assert_array_equal(array(node(model, "LayerNormalization").inputs[2]), _BETA)
    assert (kinds(model).count("Mul"), kinds(model).count("Add")) == (2, 1)
    expected = operand.codes(_normalization(), "int8") @ _DEQUANTIZED
    np.testing.assert_allclose(evaluate(model, _X), expected, rtol=1e-4, atol=1e-4)


def test_layers_that_read_one_tensor_share_its_pair() -> None:
    model = graph_of(
        [
            helper.make_node("MatMul", ["x", "v"], ["q"], name="query"),
            helper.make_node("MatMul", ["x", "w"], ["k"], name="key"),
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("Add", ["q", "k"], ["y"]),
            helper.make_node("MatMul", ["r", "u"], ["z"], name="other"),
        ],
        {"u": _W, "v": _W, "w": _W},
        given={"x": ("batch", 3)},
        outputs={"y": ("batch", 4), "z": ("batch", 4)},
    )
    (layer,) = _layer().values()
    place(model, [_int8({"query": layer, "key": layer}), _int8({"other": layer})])
    check(model)
    assert kinds(model).count("QuantizeLinear") == 2
    assert kinds(model).count("DequantizeLinear") == 5  # of two activations and three weights
    products = [one for one in model.graph if one.op_type == "MatMul"]
    assert products[0].inputs[0] is products[1].inputs[0] is not products[2].inputs[0]
    assert node(model, "Relu").inputs[0] is model.graph.inputs[0]  # who is no linear layer reads the tensor itself
    assert model.graph.initializers.keys().isdisjoint({"u", "v", "w"})
    np.testing.assert_allclose(evaluate(model, _X), 2 * _READ @ _DEQUANTIZED, rtol=1e-5)


def test_layers_are_found_by_name_in_a_copy() -> None:
    model = _added(_BIAS)
    copy = model.clone()
    before = evaluate(model, _X)
    place(copy, [_int8(_layer())])
    np.testing.assert_allclose(evaluate(copy, _X), _READ @ _DEQUANTIZED + _BIAS, rtol=1e-5)
    assert kinds(model) == ["MatMul", "Add"]
    np.testing.assert_array_equal(evaluate(model, _X), before)


def test_a_layer_without_a_name_is_found_by_its_output() -> None:
    model = _matmul()
    node(model, "MatMul").name = ""
    (layer,) = _layer().values()
    place(model, [_int8({"y": layer})])
    np.testing.assert_allclose(evaluate(model, _X), _READ @ _DEQUANTIZED, rtol=1e-5)


def test_scales_of_small_numbers_stay_what_they_are_in_fp16() -> None:
    model = _matmul()
    layers = {"layer": LayerCodes(_CODES, np.array(2.0**-24, np.float32), _FACTORS, None)}
    place(model, [_int8(layers, Operand(1e-6))])
    assert float(array(node(model, "QuantizeLinear").inputs[1])) == 2.0**-14
    cast(model, "fp16")
    check(model)
    weight = _reading(model, "MatMul", 1)
    assert dtypes(weight.inputs) == ["f16"]  # not kept in float32
    assert float(array(weight.inputs[1])) == 2.0**-24
    assert float(array(node(model, "QuantizeLinear").inputs[1])) == 2.0**-14


@pytest.mark.parametrize("methods", [Methods(), PLAIN])
def test_a_graph_that_came_in_fp16_is_quantized(methods: Methods) -> None:
    model = _normalized()
    expected = evaluate(model, _X)
    cast(model, "fp16")
    solved = quantized(model, [_X], methods=methods)
    check(model)
    assert [sorted(group.layers) for group in solved] == [["layer"]]
    assert dtypes(node(model, "QuantizeLinear").inputs[:2]) == ["f16", "f16"]
    assert dtypes(node(model, "Mul").inputs) == ["f16", "f16"]
    np.testing.assert_allclose(evaluate(model, _X), expected, atol=0.2)  # of values up to 9


def test_int8_and_fp16_vit(vit: ir.Model, pixels: NDArray[np.float32]) -> None:
    reference = evaluate(vit, pixels)
    solved = quantized(vit, [pixels])
    assert sum(len(group.layers) for group in solved) == 8
    result = evaluate(vit, pixels)
    cast(vit, "fp16")
    check(vit)
    assert int8_coverage(vit) == 1.0
    both = evaluate(vit, pixels)
    assert 0.98 < cosine(result, reference) < 0.999999
    assert cosine(both, reference) > 0.98
    assert kinds(vit).count("QuantizeLinear") == 6
    assert set(dtypes([value for one in vit.graph if "Linear" in one.op_type for value in one.inputs])) == {"f16"}
    products = [one for one in vit.graph if one.op_type in {"MatMul", "Gemm"}]
    assert sum("f16" in dtypes(one.inputs) for one in products) == len(products) == 9  # 7 layers and 2 of attention


def test_fp8_and_fp16_vit(vit: ir.Model, pixels: NDArray[np.float32]) -> None:
    reference = evaluate(vit, pixels)
    solved = quantized(vit, [pixels], "fp8")
    assert sum(len(group.layers) for group in solved) == 7
    cast(vit, "fp16")
    check(vit)
    assert [layer.number for layer in linear_layers(vit)] == ["fp16", *["fp8"] * 7]
    assert int8_coverage(vit) == 0
    assert 0.97 < cosine(evaluate(vit, pixels), reference) < 0.999999


@pytest.mark.parametrize("weights", ["int8", "int7"])
def test_what_is_done_for_accuracy_brings_a_vit_closer(
    vit: ir.Model, pixels: NDArray[np.float32], weights: Any
) -> None:
    reference, plain, best = evaluate(vit, pixels), vit.clone(), vit.clone()
    quantized(plain, [pixels], weights=weights)
    solved = quantized(best, [pixels[:2], pixels[2:]], weights=weights, methods=Methods())
    check(best)
    assert int8_coverage(best) == 1.0
    assert any(group.operand.shift is not None or group.operand.scale is not None for group in solved)
    error = np.square(evaluate(best, pixels) - reference).sum()
    assert error < 0.5 * np.square(evaluate(plain, pixels) - reference).sum()


@pytest.mark.parametrize(
    "nodes",
    [
        [  # one weight of three layers, two of which read one tensor
            helper.make_node("MatMul", ["x", "w"], ["q"], name="q"),
            helper.make_node("MatMul", ["x", "w"], ["k"], name="k"),
            helper.make_node("Relu", ["q"], ["r"], name="r"),
            helper.make_node("MatMul", ["r", "w"], ["z"], name="z"),
            helper.make_node("Add", ["z", "k"], ["y"], name="y"),
        ]
    ],
)
def test_layers_that_share_a_weight_are_quantized_each(nodes: list[Any]) -> None:
    weight = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    model = graph_of(nodes, {"w": weight}, given={"x": ("batch", 3)}, outputs={"y": ("batch", 3)})
    before = evaluate(model, _X)
    quantized(model, [_X, _X], methods=PLAIN)
    check(model)
    assert kinds(model).count("DequantizeLinear") == 5
    np.testing.assert_allclose(evaluate(model, _X), before, atol=0.2)


def test_two_convolutions_of_one_image_have_a_pair_each() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 4)).astype(np.float32)
    weights = {name: rng.standard_normal((5, 3, 2, 2)).astype(np.float32) for name in ("v", "w")}
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], name="a", strides=[2, 2]),
        helper.make_node("Conv", ["x", "w"], ["b"], name="b", strides=[2, 2]),
        helper.make_node("Add", ["a", "b"], ["y"], name="y"),
    ]
    model = graph_of(nodes, weights, given={"x": ("batch", 3, 4, 4)}, outputs={"y": ("batch", 5, 2, 2)})
    before = evaluate(model, x)
    quantized(model, [x, x], methods=PLAIN)
    check(model)
    assert kinds(model).count("QuantizeLinear") == 2
    np.testing.assert_allclose(evaluate(model, x), before, atol=0.3)
