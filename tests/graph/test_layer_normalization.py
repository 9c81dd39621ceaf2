from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.graphs import changed, parse
from trt_vit.graph.edit import constant
from trt_vit.graph.layer_normalization import fuse_layer_normalization

if TYPE_CHECKING:
    from numpy.typing import NDArray

GAMMA = np.linspace(0.5, 2, 8, dtype=np.float32)
BETA = np.linspace(-1, 1, 8, dtype=np.float32)
WEIGHTS: dict[str, NDArray[Any]] = {
    "gamma": GAMMA,
    "beta": BETA,
    "axis": np.array([-1]),
    "epsilon": np.array(1e-5, np.float32),
    "two": np.array(2, np.float32),
    "one": np.array(1, np.float32),
}
CENTERED = "mean = ReduceMean(x, axis) d = Sub(x, mean)"
VARIANCE = "square = Pow(d, two) variance = ReduceMean(square, axis) shifted = Add(variance, epsilon)"
PRODUCT = "square = Mul(d, d) variance = ReduceMean(square, axis)"
DEVIATION = f"{CENTERED} {VARIANCE} deviation = Sqrt(shifted)"
NORMALIZED = f"{DEVIATION} n = Div(d, deviation)"
AFFINE = "scaled = Mul(n, gamma) y = Add(scaled, beta)"


@pytest.mark.parametrize(
    "text",
    [
        f"{NORMALIZED} {AFFINE}",
        f"{NORMALIZED} scaled = Mul(gamma, n) y = Add(beta, scaled)",
        f"{CENTERED} {PRODUCT} s = Add(epsilon, variance) deviation = Sqrt(s) n = Div(d, deviation) {AFFINE}",
        f"{DEVIATION} inverse = Reciprocal(deviation) n = Mul(d, inverse) {AFFINE}",
        f"{DEVIATION} inverse = Div(one, deviation) n = Mul(inverse, d) {AFFINE}",
        f"{NORMALIZED} y = Mul(n, gamma)",
        f"{NORMALIZED} y = Add(n, beta)",
        f"{DEVIATION} y = Div(d, deviation)",
    ],
)
def test_every_way_to_write_it_becomes_one_node(text: str) -> None:
    assert changed(fuse_layer_normalization, text, weights=WEIGHTS) == (1, {"LayerNormalization": 1})


def test_the_node_has_the_parts_of_the_arithmetic() -> None:
    model = parse(f"{NORMALIZED} {AFFINE}", weights=WEIGHTS)
    fuse_layer_normalization(model)
    (node,) = model.graph
    assert node.attributes.get_int("axis") == -1
    assert node.attributes.get_int("stash_type") == 1
    assert node.attributes.get_float("epsilon") == pytest.approx(1e-5)
    x, scale, bias = node.inputs
    assert x is model.graph.inputs[0]
    np.testing.assert_array_equal(constant(scale), GAMMA)
    np.testing.assert_array_equal(constant(bias), BETA)


def test_the_axis_may_be_counted_from_the_front() -> None:
    weights = WEIGHTS | {"axis": np.array([2])}
    assert changed(fuse_layer_normalization, f"{NORMALIZED} {AFFINE}", weights=weights)[0] == 1


def test_a_multiplication_by_a_tensor_stays_outside() -> None:
    inputs = "float[batch, 4, 8] x, float[batch, 4, 8] gate"
    text = f"{NORMALIZED} y = Mul(n, gate)"
    assert changed(fuse_layer_normalization, text, inputs=inputs, weights=WEIGHTS) == (
        1,
        {"LayerNormalization": 1, "Mul": 1},
    )


def test_a_scale_for_each_token_stays_outside() -> None:
    weights = WEIGHTS | {"gamma": np.linspace(1, 2, 32, dtype=np.float32).reshape(4, 8)}
    count, left = changed(fuse_layer_normalization, f"{NORMALIZED} y = Mul(n, gamma)", weights=weights)
    assert (count, left) == (1, {"LayerNormalization": 1, "Mul": 1})


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        pytest.param(
            f"{CENTERED} square = Pow(d, two) variance = ReduceMean(square, axis) root = Sqrt(variance)"
            f" deviation = Add(root, epsilon) n = Div(d, deviation) {AFFINE}",
            {},
            id="epsilon after the root",
        ),
        pytest.param(f"{NORMALIZED} {AFFINE}", {"axis": np.array([1])}, id="not the last axis"),
        pytest.param(f"{NORMALIZED} {AFFINE}", {"axis": np.array([-1, -2])}, id="two axes"),
        pytest.param(f"{NORMALIZED} {AFFINE}", {"two": np.array(4, np.float32)}, id="not squared"),
        pytest.param(
            f"{CENTERED} square = Mul(d, x) variance = ReduceMean(square, axis) positive = Abs(variance)"
            " shifted = Add(positive, epsilon) deviation = Sqrt(shifted) y = Div(d, deviation)",
            {},
            id="a covariance",
        ),
        pytest.param(f"{NORMALIZED} a = Mul(n, gamma) y = Add(a, deviation)", {}, id="the deviation is used elsewhere"),
        pytest.param(f"{NORMALIZED} y = Add(n, d)", {}, id="the difference is used elsewhere"),
    ],
)
def test_what_only_looks_like_it_stays(text: str, weights: dict[str, NDArray[Any]]) -> None:
    assert changed(fuse_layer_normalization, text, weights=WEIGHTS | weights)[0] == 0


def test_a_part_that_the_graph_gives_out_stays() -> None:
    count, left = changed(
        fuse_layer_normalization,
        f"{NORMALIZED} {AFFINE}",
        weights=WEIGHTS,
        outputs="float[batch, 4, 8] y, float[batch, 4, 1] variance",
    )
    assert (count, left.get("LayerNormalization")) == (0, None)


def test_float64_stays() -> None:
    weights = {
        name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in WEIGHTS.items()
    }
    model = parse(
        f"{NORMALIZED} {AFFINE}", inputs="double[batch, 4, 8] x", outputs="double[batch, 4, 8] y", weights=weights
    )
    assert fuse_layer_normalization(model) == 0


@pytest.mark.parametrize("wide", ["epsilon", "two", "one"])
def test_a_constant_with_more_axes_than_x_stays_for_them(wide: str) -> None:
    weights = WEIGHTS | {wide: WEIGHTS[wide].reshape(1, 1, 1, 1)}
    text, outputs = f"{DEVIATION} inverse = Div(one, deviation) y = Mul(inverse, d)", "float[1, batch, 4, 8] y"
    assert changed(fuse_layer_normalization, text, weights=weights, outputs=outputs)[0] == 0


def test_an_epsilon_with_as_many_axes_as_x_does_not_matter() -> None:
    weights = WEIGHTS | {"epsilon": WEIGHTS["epsilon"].reshape(1, 1, 1)}
    assert changed(fuse_layer_normalization, f"{NORMALIZED} {AFFINE}", weights=weights)[0] == 1
