from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

from tests.quantize.graphs import PLAIN, check, evaluate, graph_of, quantized
from trt_vit.quantize.cast import cast
from trt_vit.quantize.equalize import Methods, Numbers
from trt_vit.quantize.linear import groups, linear_layers
from trt_vit.quantize.overflow import largest_values, refuse_overflow
from trt_vit.quantize.solve import GroupCodes, LayerCodes, reason_to_leave_out, solve
from trt_vit.quantize.statistics import Statistics, TensorStatistics, measure

if TYPE_CHECKING:
    from typing import Any

    import onnx_ir as ir
    from numpy.typing import NDArray

    from trt_vit.quantize.codes import Code

_E4M3 = ml_dtypes.float8_e4m3fn
# Columns of largest value 1, 0.5, 0 and 0.1; 0.246 is 31.2 steps of the first scale.
_W = np.array([[1, 0.25, 0, 0.1], [0.246, -0.5, 0, -0.05], [-0.01, 0.1, 0, 0.025]], np.float32)
_CODES = [[127, 63, 0, 127], [31, -127, 0, -63], [-1, 25, 0, 32]]
_X = np.array([[0.5, -2, 1.25], [3, 0.1, -0.7]], np.float32)


def _graph(
    kind: str = "MatMul", *, weight: NDArray[Any] = _W, bias: NDArray[Any] | None = None, **settings: Any
) -> ir.Model:
    weights = {"w": weight} | ({} if bias is None else {"b": bias})
    return graph_of(
        [helper.make_node(kind, ["x", *weights], ["y"], name="layer", **settings)],
        weights,
        given={"x": ("batch", 3)},
        outputs={"y": ("batch", 4)},
    )


def _solve(
    model: ir.Model, *batches: NDArray[np.float32], numbers: Numbers | None = None, methods: Methods = PLAIN
) -> GroupCodes:
    """Quantize the only group of a graph, which stays as it is."""
    given = list(batches or [_X])
    (group,) = groups(linear_layers(model))
    statistics = measure(model, given, images=sum(len(batch) for batch in given))
    assert reason_to_leave_out(group, statistics, (numbers or Numbers("int8", "int8")).activations) is None
    return solve(group, statistics, numbers or Numbers("int8", "int8"), methods)


def _only(solved: GroupCodes) -> LayerCodes:
    (layer,) = solved.layers.values()
    return layer


def _weight(layer: LayerCodes) -> NDArray[np.float32]:
    """What the layer of a matrix product multiplies by."""
    return np.asarray(layer.codes.astype(np.float32) * layer.scale * (1 if layer.factors is None else layer.factors))


def _is_fp16(scales: NDArray[Any] | np.floating | None) -> bool:
    assert scales is not None
    return bool(np.all(np.asarray(scales) == np.asarray(scales).astype(np.float16)))


def test_int8_codes_and_scales_of_a_weight() -> None:
    solved = _solve(_graph())
    assert list(solved.layers) == ["layer"]
    assert (solved.number, solved.attention) == ("int8", None)
    assert (solved.operand.amax, solved.operand.shift, solved.operand.scale) == (3.0, None, None)
    layer = _only(solved)
    assert layer.bias is None
    assert layer.factors is not None
    assert layer.codes.dtype == np.int8
    assert layer.codes.tolist() == _CODES
    assert layer.scale.shape == ()
    assert layer.scale.dtype == layer.factors.dtype == np.float32
    assert _is_fp16(layer.scale)
    assert _is_fp16(layer.factors)
    assert np.all(layer.factors <= 1)
    exact = np.array([1, 0.5, 0, 0.1]) / 127
    whole = layer.scale.astype(np.float64) * layer.factors
    assert np.all(whole[[0, 1, 3]] >= exact[[0, 1, 3]])  # rounded up: nothing is clipped
    np.testing.assert_allclose(whole[[0, 1, 3]], exact[[0, 1, 3]], rtol=2e-3)
    np.testing.assert_array_equal(layer.codes, np.rint(_W / whole))


def test_codes_of_weights_for_a_cpu_end_at_64() -> None:
    layer = _only(_solve(_graph(), numbers=Numbers("int8", "int7")))
    assert layer.codes.dtype == np.int8
    assert np.abs(layer.codes.astype(int)).max(axis=0).tolist() == [64, 64, 0, 64]
    np.testing.assert_allclose(_weight(layer), _W, atol=0.5 / 64)
    assert 1 / 64 <= float(layer.scale) < 1 / 64 * 1.001


def test_codes_round_half_to_even() -> None:
    step = np.float32(2.0**-10)  # an fp16 number, so that the scale is exact
    weight = np.array([[127], [0.5], [1.5], [-2.5]], np.float32) * step
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, given={"x": (1, 4)}, outputs={"y": (1, 1)}
    )
    layer = _only(_solve(model, np.ones((1, 4), np.float32)))
    assert float(layer.scale) == step
    assert layer.codes.ravel().tolist() == [127, 0, 2, -2]


def test_fp8_codes_and_scale() -> None:
    solved = _solve(_graph(), numbers=Numbers("fp8", "fp8"))
    layer = _only(solved)
    assert (solved.number, solved.operand.amax) == ("fp8", 3.0)
    assert (layer.factors, layer.bias) == (None, None)
    assert layer.scale.shape == ()
    assert 1 / 448 <= float(layer.scale) < 1 / 448 * 1.001
    assert _is_fp16(layer.scale)
    assert layer.codes.dtype == _E4M3
    np.testing.assert_array_equal(layer.codes, (_W / layer.scale).astype(_E4M3))
    assert np.isfinite(layer.codes.astype(np.float32)).all()


@pytest.mark.parametrize("transposed", [0, 1])
def test_codes_of_a_gemm_are_those_of_a_product(transposed: int) -> None:
    weight = np.ascontiguousarray(_W.T if transposed else _W)
    layer = _only(_solve(_graph("Gemm", weight=weight, bias=np.arange(4, dtype=np.float32), transB=transposed)))
    assert layer.codes.tolist() == _CODES
    assert layer.factors is not None
    assert layer.factors.shape == (4,)


def test_layers_of_a_group_have_scales_of_their_own() -> None:
    model = graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"], name="one"),
            helper.make_node("MatMul", ["x", "v"], ["z"], name="other"),
        ],
        {"w": _W, "v": _W * np.float32(0.125)},
        given={"x": ("batch", 3)},
        outputs={"y": ("batch", 4), "z": ("batch", 4)},
    )
    solved = _solve(model)
    assert list(solved.layers) == ["one", "other"]
    assert [layer.codes.tolist() for layer in solved.layers.values()] == [_CODES, _CODES]
    assert solved.layers["other"].scale == solved.layers["one"].scale / 8


def _convolution(
    kernel: NDArray[np.float32], bias: NDArray[np.float32] | None = None, size: int = 2, **settings: Any
) -> ir.Model:
    weights = {"w": kernel} | ({} if bias is None else {"b": bias})
    return graph_of(
        [helper.make_node("Conv", ["x", *weights], ["y"], name="layer", strides=[2, 2], **settings)],
        weights,
        given={"x": ("batch", 3, 4, 4)},
        outputs={"y": ("batch", len(kernel), size, size)},
    )


def test_a_convolution_is_scaled_by_output_channel() -> None:
    kernel = np.random.default_rng(0).normal(size=(5, 3, 2, 2)).astype(np.float32) * np.array(
        [[[[1]]], [[[10]]], [[[0.1]]], [[[0]]], [[[3]]]], np.float32
    )
    x = np.random.default_rng(1).uniform(-1, 1, (2, 3, 4, 4)).astype(np.float32)
    solved = _solve(_convolution(kernel), x)
    layer = _only(solved)
    assert solved.operand.amax == np.abs(x).max()
    assert (layer.factors, layer.bias) == (None, None)
    assert _is_fp16(layer.scale)
    used = [0, 1, 2, 4]
    np.testing.assert_allclose(layer.scale[used], np.abs(kernel).max(axis=(1, 2, 3))[used] / 127, rtol=2e-3)
    assert layer.scale[3] == 1.0  # of a channel of zeros
    assert layer.codes.shape == kernel.shape
    assert np.abs(layer.codes.astype(int)).max(axis=(1, 2, 3)).tolist() == [127, 127, 127, 0, 127]
    np.testing.assert_array_equal(layer.codes, np.rint(kernel / layer.scale[:, None, None, None]))
    model = _convolution(kernel)
    expected = evaluate(model, x)
    quantized(model, [x])
    assert 0 < np.abs(evaluate(model, x) - expected).max() < 0.5  # of values up to 20


def test_tiny_weights_keep_scales_that_fp16_holds() -> None:
    layer = _only(_solve(_graph(weight=_W * np.float32(1e-6)), _X * np.float32(1e-6)))
    assert float(layer.scale) == 2.0**-24
    assert _is_fp16(layer.factors)
    assert np.abs(layer.codes.astype(int)).max() <= 127


def test_the_weight_of_a_graph_in_fp16_has_the_same_codes() -> None:
    model = _graph()
    cast(model, "fp16")
    layer = _only(_solve(model))
    assert layer.codes.tolist() == _CODES
    assert layer.scale.dtype == np.float32
    assert _is_fp16(layer.scale)


def _wide(weight: NDArray[np.float32]) -> ir.Model:
    return graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        {"w": weight},
        given={"x": ("batch", weight.shape[0])},
        outputs={"y": ("batch", weight.shape[1])},
    )


def test_no_factor_lets_the_product_before_it_overflow() -> None:
    """One large weight sets the scale of the matrix; a channel of small ones would be divided by its small factor."""
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal((8, 3072))).astype(np.float32) * 4
    weight = rng.standard_normal((3072, 8)).astype(np.float32) * np.float32(0.02)
    weight[5, 3], weight[:, 0] = 8, 0.01
    model = _wide(weight)
    quantized(model, [x])
    before = largest_values(model, ["y_codes"], [x])["y_codes"]
    assert 20000 < before < 1.05 * 65504 / 2
    np.testing.assert_allclose(evaluate(model, x)[:, 0], (x @ weight)[:, 0], rtol=0.1)
    cast_model = model.clone()
    cast(cast_model, "fp16")
    refuse_overflow(model, cast_model, x, batch=None)


def test_a_factor_leaves_room_for_a_product_that_its_bias_hides() -> None:
    """What a Gemm writes is measured with its bias, which may hide a large product."""
    x = np.full((2, 64), 100, np.float32)
    x[1, 1:] = 90
    weight = np.full((64, 2), 0.01, np.float32)
    weight[0, 1] = 50
    product = float((x @ weight).max())
    model = graph_of(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer")],
        {"w": weight, "b": -(x @ weight)[0]},
        given={"x": ("batch", 64)},
        outputs={"y": ("batch", 2)},
    )
    layer = _only(_solve(model, x))
    assert layer.factors is not None
    assert np.all(layer.factors >= product / (65504 / 2) * 0.999)
    quantized(model, [x])
    assert largest_values(model, ["y_product"], [x])["y_product"] < 1.05 * 65504 / 2


@pytest.fixture
def rows() -> NDArray[np.float32]:
    """What a GELU gives, roughly: channels of their own mean and size, and much in common."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal((256, 8)) @ rng.standard_normal((8, 48))
    return np.asarray((common + rng.standard_normal((256, 48))) * rng.uniform(0.1, 3, 48) + 4, np.float32)


@pytest.fixture
def weight() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((48, 12), dtype=np.float32)


def test_biases_take_the_mean_error_away(rows: NDArray[np.float32], weight: NDArray[np.float32]) -> None:
    model, exact = _wide(weight), rows @ weight
    half = TensorStatistics(rows.min(axis=0), rows.max(axis=0), rows)
    statistics = Statistics({"layer": (half, half)}, {"y": float(np.abs(exact).max())}, exact)
    methods = Methods(equalize=False, ranges="max", round_together=False)
    (group,), numbers = groups(linear_layers(model)), Numbers("int8", "int8")
    plain, corrected = (solve(group, statistics, numbers, one) for one in (PLAIN, methods))
    layer = _only(corrected)
    assert layer.bias is not None
    assert layer.bias.dtype == np.float32
    assert layer.bias.shape == (12,)
    np.testing.assert_array_equal(layer.codes, _only(plain).codes)
    error = corrected.operand.codes(rows, "int8") @ _weight(layer) - exact
    assert np.abs(error.mean(axis=0)).max() > 0.05
    assert np.abs((error + layer.bias).mean(axis=0)).max() < 1e-4


def test_weights_are_rounded_together(rows: NDArray[np.float32], weight: NDArray[np.float32]) -> None:
    methods = Methods(equalize=False, ranges="max", correct_biases=False)
    plain, together = _solve(_wide(weight), rows), _solve(_wide(weight), rows, methods=methods)
    assert together.operand.amax == plain.operand.amax
    read = plain.operand.codes(rows, "int8")
    errors = [np.square(read @ (_weight(_only(solved)) - weight)).sum() for solved in (plain, together)]
    assert errors[1] < 0.5 * errors[0]
    for one, other in zip(
        (_only(plain).scale, _only(plain).factors), (_only(together).scale, _only(together).factors), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_shift_is_made_up_for_in_the_bias(rows: NDArray[np.float32], weight: NDArray[np.float32]) -> None:
    """Channels lie around 4, so that centring them leaves a range half as long."""
    methods = Methods(ranges="max", round_together=False, correct_biases=False)
    solved = _solve(_wide(weight), rows, rows, methods=methods)
    operand, layer = solved.operand, _only(solved)
    assert operand.shift is not None
    assert layer.bias is not None
    np.testing.assert_allclose(layer.bias, operand.shift @ weight, rtol=1e-5)
    step = _weight(layer).max() / 127
    np.testing.assert_allclose(_weight(layer), operand.undo(weight), atol=0.6 * step)
    model, plain = _wide(weight), _wide(weight)
    quantized(model, [rows, rows], methods=methods)
    check(model)
    quantized(plain, [rows, rows])
    exact = rows @ weight
    assert np.square(evaluate(model, rows) - exact).sum() < 0.5 * np.square(evaluate(plain, rows) - exact).sum()


@pytest.mark.parametrize("number", ["int8", "int7"])
def test_scales_of_channels_go_into_the_weight(number: Code, rows: NDArray[np.float32]) -> None:
    """One channel is a hundred times as large as the others."""
    large = rows.copy()
    large[:, 7] *= 100
    weight = np.random.default_rng(1).standard_normal((48, 12), dtype=np.float32)
    weight[7] /= 100
    model, plain = _wide(weight), _wide(weight)
    (solved,) = quantized(model, [large, large], weights=number, methods=Methods())
    quantized(plain, [large, large], weights=number)
    assert solved.operand.scale is not None
    assert solved.operand.scale[7] > 3 * np.median(solved.operand.scale)
    exact = large @ weight
    assert np.square(evaluate(model, large) - exact).sum() < 0.1 * np.square(evaluate(plain, large) - exact).sum()


_MEAN, _DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def _pixels() -> NDArray[np.float32]:
    """Images of every shade of 8 bits in each channel, preprocessed as for ImageNet: [16, 3, 4, 4]."""
    shades = np.random.default_rng(0).permuted(np.tile(np.arange(256), (3, 1)), axis=1) / 255
    normal = (shades - _MEAN[:, None]) / _DEVIATION[:, None]
    return np.ascontiguousarray(normal.reshape(3, 16, 4, 4).swapaxes(0, 1), dtype=np.float32)


def test_every_shade_of_a_pixel_has_a_code_of_its_own() -> None:
    x = _pixels()
    kernel = np.random.default_rng(0).standard_normal((5, 3, 2, 2), dtype=np.float32)
    operand = _solve(_convolution(kernel), x[:8], x[8:], methods=Methods()).operand
    assert operand.shift is not None
    assert operand.scale is not None
    shades = np.sort(x.swapaxes(0, 1).reshape(3, 256).T, axis=0)
    read = operand.codes(shades, "int8")
    codes = np.rint(read / np.float32(read.max() / 127)).astype(int)
    assert [len(set(channel)) for channel in codes.T.tolist()] == [256] * 3
    assert (codes.min(), codes.max()) == (-128, 127)
    back = read * operand.scale + operand.shift
    np.testing.assert_allclose(back, shades, atol=0.02 * (shades[1] - shades[0]).min())


@pytest.mark.parametrize("bias", [None, np.arange(5, dtype=np.float32)])
def test_a_convolution_of_pixels_loses_nothing_but_what_its_weight_does(bias: NDArray[np.float32] | None) -> None:
    x = _pixels()
    kernel = np.random.default_rng(0).integers(-127, 128, (5, 3, 2, 2)).astype(np.float32)
    kernel[:, 0, 0, 0] = 127
    kernel *= _DEVIATION.astype(np.float32)[:, None, None]  # a shade of any channel then counts whole numbers
    model = _convolution(kernel, bias)
    exact = evaluate(model, x)
    (solved,) = quantized(model, [x[:8], x[8:]], methods=Methods())
    check(model)
    assert solved.operand.shift is not None
    found = evaluate(model, x)
    plain = _convolution(kernel, bias)
    quantized(plain, [x])
    assert np.abs(found - exact).max() < 0.1 * np.abs(evaluate(plain, x) - exact).max()


@pytest.mark.parametrize("change", ["padded", "grey", "fp8"])
def test_pixels_are_not_stretched_where_that_does_not_pay(change: str) -> None:
    x = _pixels()
    kernel = np.random.default_rng(0).standard_normal((5, 3, 2, 2), dtype=np.float32)
    model = _convolution(kernel, size=3 if change == "padded" else 2, pads=[int(change == "padded")] * 4)
    if change == "grey":
        x[:, 1] = 0.5
    (group,) = groups(linear_layers(model))
    number: Code = "fp8" if change == "fp8" else "int8"
    statistics = measure(model, [x], images=16)
    operand = solve(group, statistics, Numbers(number, number), Methods()).operand
    assert (operand.shift, operand.scale, operand.amax) == (None, None, np.abs(x).max())


def _reason(model: ir.Model, number: Code = "int8", *batches: NDArray[np.float32]) -> str | None:
    (group,) = groups(linear_layers(model))
    return reason_to_leave_out(group, measure(model, batches or [_X], images=2), number)


def test_an_ordinary_layer_is_quantized() -> None:
    assert _reason(_graph()) is None
    assert _reason(_graph(), "fp8") is None
    assert _reason(_graph("Gemm", bias=np.ones(4, np.float32))) is None


@pytest.mark.parametrize(
    ("alpha", "beta", "reason"),
    [(1.0, 0.5, "its bias has a factor"), (2.0, 1.0, "its product has a factor"), (1.0, 1.0, None)],
)
def test_factors_of_a_gemm_leave_it_out(alpha: float, beta: float, reason: str | None) -> None:
    assert _reason(_graph("Gemm", bias=np.ones(4, np.float32), alpha=alpha, beta=beta)) == reason


def test_an_input_that_is_transposed_leaves_a_gemm_out() -> None:
    model = graph_of(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)],
        {"w": _W},
        given={"x": (3, 2)},
        outputs={"y": (2, 4)},
    )
    assert _reason(model, "int8", np.ascontiguousarray(_X.T)) == "its input is transposed"


def test_a_bias_that_is_computed_leaves_a_gemm_out() -> None:
    model = graph_of(
        [helper.make_node("ReduceMean", ["x"], ["b"]), helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        {"w": _W},
        given={"x": (2, 3)},
        outputs={"y": (2, 4)},
    )
    assert _reason(model) == "its bias is not a constant"


def test_a_weight_that_is_computed_leaves_a_layer_out() -> None:
    model = graph_of(
        [helper.make_node("Transpose", ["t"], ["w"], perm=[1, 0]), helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"t": np.ascontiguousarray(_W.T)},
        given={"x": ("batch", 3)},
        outputs={"y": ("batch", 4)},
    )
    assert _reason(model) == "its weight is not a constant of floats"


def test_fp8_is_for_matrix_products() -> None:
    x, kernel = np.ones((2, 3, 4, 4), np.float32), np.ones((5, 3, 2, 2), np.float32)
    assert _reason(_convolution(kernel), "fp8", x) == "FP8 is for matrix products"
    assert _reason(_convolution(kernel), "int8", x) is None


def test_a_convolution_in_groups_is_left_out() -> None:
    model = _convolution(np.ones((6, 1, 2, 2), np.float32), group=3)
    (group,) = groups(linear_layers(model))
    half = TensorStatistics(*(np.ones(3, np.float32) for _ in range(3)))
    statistics = Statistics({group.name: (half, half)}, {"y": 1.0}, np.ones((1, 1), np.float32))
    assert reason_to_leave_out(group, statistics, "int8") == "it is a convolution in groups"


def test_an_input_of_zeros_leaves_a_layer_out() -> None:
    reason = "its input was zero in every calibration image"
    assert _reason(_graph(), "int8", np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32)) == reason
    for sign in (1, -1):  # in one half alone, and of either sign
        assert _reason(_graph(), "int8", np.zeros((1, 3), np.float32), np.full((1, 3), sign, np.float32)) is None


@pytest.mark.parametrize("number", ["int8", "fp8"])
def test_what_is_quantized_already_is_left_out(number: Code) -> None:
    model = _graph()
    quantized(model, [_X], number)
    assert _reason(model) == f"it is quantized to {number} already"
    assert quantized(model, [_X], number) == []


def test_one_layer_that_cannot_be_quantized_keeps_its_group_out() -> None:
    model = graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"], name="one"),
            helper.make_node("Gemm", ["x", "w"], ["z"], name="other", alpha=0.5),
        ],
        {"w": _W},
        given={"x": ("batch", 3)},
        outputs={"y": ("batch", 4), "z": ("batch", 4)},
    )
    assert _reason(model) == "its product has a factor"
