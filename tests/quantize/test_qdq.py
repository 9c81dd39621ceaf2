from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

from tests.quantize.graphs import array, check, cosine, dtypes, evaluate, graph_of, kinds, node
from trt_vit.errors import EngineError
from trt_vit.quantize.cast import cast
from trt_vit.quantize.linear import int8_coverage, linear_layers
from trt_vit.quantize.overflow import refuse_overflow
from trt_vit.quantize.qdq import quantize
from trt_vit.quantize.ranges import activation_ranges, largest_values

if TYPE_CHECKING:
    from typing import Any, Literal

    import onnx_ir as ir
    from numpy.typing import NDArray

_E4M3 = ml_dtypes.float8_e4m3fn
# Columns of largest value 1, 0.5, 0 and 0.1; 0.246 is 31.2 steps of the first scale.
_W = np.array([[1, 0.25, 0, 0.1], [0.246, -0.5, 0, -0.05], [-0.01, 0.1, 0, 0.025]], np.float32)
_X = np.array([[0.5, -2, 1.25], [3, 0.1, -0.7]], np.float32)


def _matmul(weight: NDArray[Any] = _W) -> ir.Model:
    return graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        {"w": weight},
        given={"x": ("batch", 3)},
        outputs={"y": ("batch", 4)},
    )


def _dequantized(model: ir.Model) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | float]:
    """Codes, scale and channel factors of the first product with a weight."""
    reader = next(node for node in model.graph if node.op_type in {"MatMul", "Gemm", "Conv"})
    assert reader.inputs[1] is not None
    pair = reader.inputs[1].producer()
    assert pair is not None
    factors = next((array(node.inputs[1]) for node in model.graph if node.op_type == "Mul"), 1.0)
    return array(pair.inputs[0]), array(pair.inputs[1]), factors


def _is_fp16(scales: NDArray[Any] | float) -> bool:
    return bool(np.all(np.asarray(scales) == np.asarray(scales).astype(np.float16)))


def test_int8_codes_and_scales_of_a_weight() -> None:
    model = _matmul()
    (placement,) = quantize(model, {"x": 3.0}, "int8")
    check(model)
    assert (placement.layer, placement.macs, placement.left_out) == ("layer", 12, None)
    codes, scale, factors = _dequantized(model)
    assert codes.dtype == np.int8
    assert scale.shape == ()
    assert _is_fp16(scale)
    assert _is_fp16(factors)
    exact = np.array([1, 0.5, 0, 0.1]) / 127
    whole = scale.astype(np.float64) * factors
    assert np.all(whole[[0, 1, 3]] >= exact[[0, 1, 3]])  # rounded up: nothing is clipped
    np.testing.assert_allclose(whole[[0, 1, 3]], exact[[0, 1, 3]], rtol=2e-3)
    np.testing.assert_array_equal(codes, np.rint(_W / whole))
    assert codes.tolist() == [[127, 63, 0, 127], [31, -127, 0, -63], [-1, 25, 0, 32]]
    assert np.all(np.asarray(factors) <= 1)
    assert "w" not in model.graph.initializers


def test_int8_codes_and_scale_of_an_activation() -> None:
    model = _matmul()
    quantize(model, {"x": 3.0}, "int8")
    pair = node(model, "QuantizeLinear")
    scale = array(pair.inputs[1])
    assert 3 / 127 <= float(scale) < 3 / 127 * 1.001
    assert _is_fp16(scale)
    assert array(pair.inputs[2]) == np.int8(0)
    assert array(pair.inputs[2]).dtype == np.int8
    codes, weight_scale, factors = _dequantized(model)
    expected = (np.rint(_X / scale) @ codes.astype(np.float64)) * (float(scale) * float(weight_scale)) * factors
    np.testing.assert_allclose(evaluate(model, _X), expected, rtol=1e-5)
    np.testing.assert_allclose(evaluate(model, _X), _X @ _W, atol=0.03)


def test_codes_round_half_to_even() -> None:
    step = np.float32(2.0**-10)  # an fp16 number, so that the scale is exact
    weight = np.array([[127], [0.5], [1.5], [-2.5]], np.float32) * step
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, given={"x": (1, 4)}, outputs={"y": (1, 1)}
    )
    quantize(model, {"x": 1.0}, "int8")
    codes, scale, _ = _dequantized(model)
    assert float(scale) == step
    assert codes.ravel().tolist() == [127, 0, 2, -2]


def test_fp8_codes_and_scales() -> None:
    model = _matmul()
    quantize(model, {"x": 3.0}, "fp8")
    check(model)
    codes, scale, factors = _dequantized(model)
    assert factors == 1.0
    assert 1 / 448 <= float(scale) < 1 / 448 * 1.001
    assert _is_fp16(scale)
    np.testing.assert_array_equal(codes, (_W / scale.astype(np.float64)).astype(_E4M3))
    assert np.isfinite(codes.astype(np.float32)).all()
    pair = node(model, "QuantizeLinear")
    assert 3 / 448 <= float(array(pair.inputs[1])) < 3 / 448 * 1.001
    assert array(pair.inputs[2]).dtype == _E4M3
    np.testing.assert_allclose(evaluate(model, _X), _X @ _W, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_is_scaled_by_output_channel_and_keeps_its_bias(transposed: int) -> None:
    weight = np.ascontiguousarray(_W.T if transposed else _W)
    bias = np.array([100, 200, 300, 400], np.float32)
    model = graph_of(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=transposed)],
        {"w": weight, "b": bias},
        given={"x": ("batch", 3)},
        outputs={"y": ("batch", 4)},
    )
    quantize(model, {"x": 3.0}, "int8")
    check(model)
    codes, _, factors = _dequantized(model)
    assert (codes.T if transposed else codes).tolist() == [[127, 63, 0, 127], [31, -127, 0, -63], [-1, 25, 0, 32]]
    assert np.asarray(factors).shape == (4,)
    assert model.graph.outputs[0].name == "y"
    np.testing.assert_allclose(evaluate(model, _X), _X @ _W + bias, atol=0.03)


def _convolution(kernel: NDArray[np.float32]) -> ir.Model:
    return graph_of(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], kernel_shape=[2, 2], strides=[2, 2])],
        {"w": kernel, "b": np.arange(5, dtype=np.float32)},
        given={"x": ("batch", 3, 4, 4)},
        outputs={"y": ("batch", 5, 2, 2)},
    )


def test_convolution_is_scaled_by_output_channel() -> None:
    kernel = np.random.default_rng(0).normal(size=(5, 3, 2, 2)).astype(np.float32) * np.array(
        [[[[1]]], [[[10]]], [[[0.1]]], [[[0]]], [[[3]]]], np.float32
    )
    model = _convolution(kernel)
    x = np.random.default_rng(1).uniform(-1, 1, (2, 3, 4, 4)).astype(np.float32)
    quantize(model, {"x": 1.0}, "int8")
    check(model)
    pair = node(model, "Conv").inputs[1].producer()  # type: ignore[union-attr]
    assert pair is not None
    assert pair.attributes.get_int("axis", 1) == 0
    scales = array(pair.inputs[1])
    np.testing.assert_allclose(scales[[0, 1, 2, 4]], np.abs(kernel).max(axis=(1, 2, 3))[[0, 1, 2, 4]] / 127, rtol=2e-3)
    assert scales[3] == 1.0  # of a channel of zeros
    assert array(pair.inputs[0])[3].tolist() == np.zeros((3, 2, 2)).tolist()
    assert np.abs(array(pair.inputs[0])).max(axis=(1, 2, 3)).tolist() == [127, 127, 127, 0, 127]
    step = float(array(node(model, "QuantizeLinear").inputs[1]))
    dequantized = (array(pair.inputs[0]) * scales[:, None, None, None]).astype(np.float32)
    expected = evaluate(_convolution(dequantized), (np.rint(x / step) * step).astype(np.float32))
    np.testing.assert_allclose(evaluate(model, x), expected, atol=1e-4)
    assert np.abs(expected - evaluate(_convolution(kernel), x)).max() < 0.5  # of values up to 20


def test_tiny_ranges_keep_scales_that_fp16_holds() -> None:
    model = _matmul(_W * np.float32(1e-6))
    quantize(model, {"x": 1e-6}, "int8")
    codes, scale, factors = _dequantized(model)
    assert float(array(node(model, "QuantizeLinear").inputs[1])) == 2.0**-14
    assert float(scale) == 2.0**-24
    assert _is_fp16(factors)
    assert np.abs(codes.astype(int)).max() <= 127
    cast(model, "fp16")
    check(model)
    assert dtypes(node(model, "DequantizeLinear").inputs)[-1] == "f16"  # not kept in float32


def test_layers_that_read_one_tensor_share_its_pair() -> None:
    model = graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["q"]),
            helper.make_node("MatMul", ["x", "w"], ["k"]),
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("Add", ["q", "k"], ["y"]),
            helper.make_node("MatMul", ["r", "w"], ["z"]),
        ],
        {"w": _W},
        given={"x": ("batch", 3)},
        outputs={"y": ("batch", 4), "z": ("batch", 4)},
    )
    placements = quantize(model, {"x": 3.0, "r": 3.0}, "int8")
    check(model)
    assert [placement.left_out for placement in placements] == [None] * 3
    assert kinds(model).count("QuantizeLinear") == 2
    assert kinds(model).count("DequantizeLinear") == 3  # of two activations, and of the weight that all three share
    assert node(model, "Relu").inputs[0] is model.graph.inputs[0]  # who is no linear layer reads the tensor itself
    np.testing.assert_allclose(evaluate(model, _X), 2 * _X @ _W, atol=0.06)


@pytest.mark.parametrize(
    ("ranges", "number", "reason"),
    [
        ({}, "int8", "the range of its input is not known"),
        ({"x": 0.0}, "int8", "its input was zero in every calibration image"),
    ],
)
def test_reasons_to_leave_a_layer_out(ranges: dict[str, float], number: Literal["int8", "fp8"], reason: str) -> None:
    model = _matmul()
    assert [placement.left_out for placement in quantize(model, ranges, number)] == [reason]
    assert kinds(model) == ["MatMul"]


def test_what_is_quantized_already_is_left_alone() -> None:
    model = _matmul()
    quantize(model, {"x": 3.0}, "int8")
    before = kinds(model)
    (placement,) = quantize(model, {"x": 3.0, "x_dequantized": 3.0}, "int8")
    assert placement.left_out == "it is quantized to int8 already"
    assert kinds(model) == before


def test_int8_and_fp16_vit(vit: ir.Model, pixels: NDArray[np.float32]) -> None:
    reference = evaluate(vit, pixels)
    placements = quantize(vit, activation_ranges(vit, [pixels]), "int8")
    assert [placement.left_out for placement in placements] == [None] * 8
    quantized = evaluate(vit, pixels)
    cast(vit, "fp16")
    check(vit)
    assert int8_coverage(vit) == 1.0
    both = evaluate(vit, pixels)
    assert 0.98 < cosine(quantized, reference) < 0.999999
    assert cosine(both, reference) > 0.98
    assert kinds(vit).count("QuantizeLinear") == 6
    assert set(dtypes([value for one in vit.graph if "Linear" in one.op_type for value in one.inputs])) == {"f16"}
    products = [one for one in vit.graph if one.op_type in {"MatMul", "Gemm"}]
    assert sum("f16" in dtypes(one.inputs) for one in products) == len(products) == 9  # 7 layers and 2 of attention


def test_fp8_and_fp16_vit(vit: ir.Model, pixels: NDArray[np.float32]) -> None:
    reference = evaluate(vit, pixels)
    placements = quantize(vit, activation_ranges(vit, [pixels]), "fp8")
    assert [placement.left_out for placement in placements] == ["FP8 is for matrix products", *[None] * 7]
    cast(vit, "fp16")
    check(vit)
    assert [layer.number for layer in linear_layers(vit)] == ["fp16", *["fp8"] * 7]
    assert int8_coverage(vit) == 0
    assert 0.97 < cosine(evaluate(vit, pixels), reference) < 0.999999


def test_no_factor_lets_the_product_before_it_overflow() -> None:
    """One large weight sets the scale of the matrix; a channel of small ones would be divided by its small factor."""
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal((8, 3072))).astype(np.float32) * 4
    weight = rng.standard_normal((3072, 8)).astype(np.float32) * np.float32(0.02)
    weight[5, 3], weight[:, 0] = 8, 0.01
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": weight}, given={"x": ("batch", 3072)}, outputs={"y": ("batch", 8)},
    )  # fmt: skip
    quantize(model, activation_ranges(model, [x]), "int8")
    before = largest_values(model, ["y_codes"], [x])["y_codes"]
    assert 20000 < before < 1.05 * 65504 / 2
    np.testing.assert_allclose(evaluate(model, x)[:, 0], (x @ weight)[:, 0], rtol=0.1)
    cast_model = model.clone()
    cast(cast_model, "fp16")
    refuse_overflow(model, cast_model, x, batch=None)


def test_overflow_before_a_factor_is_refused() -> None:
    x = np.full((1, 64), 100, np.float32)
    weight = np.zeros((64, 2), np.float32)
    weight[:, 0], weight[0, 1] = 0.01, 50
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": weight}, given={"x": ("batch", 64)}, outputs={"y": ("batch", 2)},
    )  # fmt: skip
    quantize(model, {"x": 100.0}, "int8")  # without the range of the output
    cast_model = model.clone()
    cast(cast_model, "fp16")
    with pytest.raises(EngineError, match=r"y_codes reaches 3\.\de\+05"):
        refuse_overflow(model, cast_model, x, batch=None)


def test_a_graph_that_came_in_fp16_is_quantized() -> None:
    model = _matmul()
    cast(model, "fp16")
    (placement,) = quantize(model, activation_ranges(model, [_X]), "int8")
    check(model)
    assert placement.left_out is None
    assert dtypes(node(model, "QuantizeLinear").inputs[:2]) == ["f16", "f16"]
    assert dtypes(node(model, "Mul").inputs) == ["f16", "f16"]
    np.testing.assert_allclose(evaluate(model, _X), _X @ _W, atol=0.03)
