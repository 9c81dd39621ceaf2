from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.graphs import changed, parse
from trt_vit.graph.attention_scale import scale_queries
from trt_vit.graph.edit import constant

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RANDOM = np.random.default_rng(0)
WEIGHTS: dict[str, NDArray[Any]] = {
    "wq": _RANDOM.standard_normal((8, 8)).astype(np.float32),
    "wk": _RANDOM.standard_normal((8, 8)).astype(np.float32),
    "bq": _RANDOM.standard_normal(8).astype(np.float32),
    "mask": _RANDOM.standard_normal((1, 2, 4, 4)).astype(np.float32),
    "heads": np.array([-1, 4, 2, 4]),
    "c": np.array(0.25, np.float32),
    "d": np.array(4, np.float32),
    "fourth": np.array(4**-0.5, np.float32),
    "step": np.array(0.05, np.float32),
    "zero": np.array(0, np.int8),
}
OUTPUT = "float[batch, 2, 4, 4] y"
TENSORS = "float[batch, 2, 4, 4] q, float[batch, 2, 4, 4] kt"
HEADS = "e = Reshape({}, heads) q = Transpose<perm = [0, 2, 1, 3]>(e)"
QUERIES = f"a = MatMul(x, wq) b = Add(a, bq) {HEADS.format('b')}"
KEYS = "f = MatMul(x, wk) g = Reshape(f, heads) kt = Transpose<perm = [0, 2, 3, 1]>(g)"
SOFTMAX = "y = Softmax<axis = -1>(s)"


@pytest.mark.parametrize(
    "text",
    [
        f"p = MatMul(q, kt) s = Mul(p, c) {SOFTMAX}",
        f"p = MatMul(q, kt) s = Mul(c, p) {SOFTMAX}",
        f"p = MatMul(q, kt) s = Div(p, d) {SOFTMAX}",
        f"p = MatMul(q, kt) r = Div(p, d) s = Add(r, mask) {SOFTMAX}",
        f"p = MatMul(q, kt) r = Div(p, d) s = Add(mask, r) {SOFTMAX}",
        f"j = Mul(q, fourth) k = Mul(kt, fourth) s = MatMul(j, k) {SOFTMAX}",
        f"k = Mul(kt, c) s = MatMul(q, k) {SOFTMAX}",
        f"k = Mul(kt, c) k2 = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, k2) {SOFTMAX}",
    ],
)
def test_the_whole_scale_goes_onto_the_queries(text: str) -> None:
    count, left = changed(scale_queries, text, inputs=TENSORS, outputs=OUTPUT, weights=WEIGHTS)
    assert (count, left["Mul"], left.get("Div")) == (1, 1, None)
    model = parse(text, inputs=TENSORS, outputs=OUTPUT, weights=WEIGHTS)
    scale_queries(model)
    (multiply,) = (node for node in model.graph if node.op_type == "Mul")
    assert multiply.inputs[0] is model.graph.inputs[0]
    number = constant(multiply.inputs[1])
    assert number is not None
    assert number.dtype == np.float32
    assert float(number) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "text",
    [
        f"{QUERIES} {KEYS} p = MatMul(q, kt) s = Div(p, d) {SOFTMAX}",
        f"{QUERIES} {KEYS} j = Mul(q, fourth) k = Mul(kt, fourth) s = MatMul(j, k) {SOFTMAX}",
        f"{QUERIES} {KEYS} j = Mul(q, c) p = MatMul(j, kt) s = Add(p, mask) {SOFTMAX}",
        f"{KEYS} a = MatMul(x, wq) b = Add(bq, a) m = Mul(b, c) {HEADS.format('m')} s = MatMul(q, kt) {SOFTMAX}",
        f"{KEYS} a = MatMul(x, wq) {HEADS.format('a')} p = MatMul(q, kt) s = Mul(p, c) {SOFTMAX}",
    ],
)
def test_the_scale_goes_into_the_weights_of_the_queries(text: str) -> None:
    count, left = changed(scale_queries, text, outputs=OUTPUT, weights=WEIGHTS)
    assert (count, left.get("Mul"), left.get("Div")) == (1, None, None)


def test_weight_and_bias_are_multiplied() -> None:
    model = parse(f"{QUERIES} {KEYS} p = MatMul(q, kt) s = Div(p, d) {SOFTMAX}", outputs=OUTPUT, weights=WEIGHTS)
    scale_queries(model)
    product, add = list(model.graph)[:2]
    np.testing.assert_array_equal(constant(product.inputs[1]), WEIGHTS["wq"] / 4)
    np.testing.assert_array_equal(constant(add.inputs[1]), WEIGHTS["bq"] / 4)
    np.testing.assert_array_equal(constant(model.graph.initializers["wk"]), WEIGHTS["wk"])


def test_a_weight_that_others_read_is_copied() -> None:
    text = (
        f"{QUERIES} f = MatMul(x, wq) g = Reshape(f, heads) kt = Transpose<perm = [0, 2, 3, 1]>(g)"
        f" p = MatMul(q, kt) s = Mul(p, c) {SOFTMAX}"
    )
    assert changed(scale_queries, text, outputs=OUTPUT, weights=WEIGHTS)[0] == 1


def test_a_gemm_is_a_linear_layer_too() -> None:
    inputs, outputs = "float[batch, 8] x, float[8, batch] kt", "float[batch, batch] y"
    text = f"q = Gemm<transB = 1>(x, wq, bq) p = MatMul(q, kt) s = Mul(p, c) {SOFTMAX}"
    feeds = {"inputs": inputs, "outputs": outputs, "weights": WEIGHTS}
    assert changed(scale_queries, text, **feeds) == (1, {"Gemm": 1, "MatMul": 1, "Softmax": 1})


def test_weights_in_half_precision_keep_their_digits() -> None:
    weights = {
        name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in WEIGHTS.items()
    }
    text = f"{QUERIES} {KEYS} p = MatMul(q, kt) s = Div(p, d) {SOFTMAX}"
    model = parse(text, inputs="float16[batch, 4, 8] x", outputs=f"float16{OUTPUT[5:]}", weights=weights)
    assert scale_queries(model) == 1
    assert [node.op_type for node in model.graph].count("Mul") == 1
    np.testing.assert_array_equal(constant(model.graph.initializers["wq"]), weights["wq"])


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        pytest.param(f"j = Mul(q, c) s = MatMul(j, kt) {SOFTMAX}", {}, id="scaled queries"),
        pytest.param(
            f"p = MatMul(q, kt) s = Mul(p, c) {SOFTMAX}",
            {"c": np.array([1, 2], np.float32).reshape(2, 1, 1)},
            id="a scale for each head",
        ),
        pytest.param(f"p = MatMul(q, kt) z = Mul(p, c) s = Add(z, p) {SOFTMAX}", {}, id="scores used elsewhere"),
        pytest.param(f"p = MatMul(q, kt) z = Add(p, mask) s = Mul(z, c) {SOFTMAX}", {}, id="mask before the scale"),
        pytest.param(f"p = MatMul(q, kt) s = Div(c, p) {SOFTMAX}", {}, id="divided by the scores"),
        pytest.param(
            "n = QuantizeLinear(q, step, zero) j = DequantizeLinear(n, step, zero)"
            f" p = MatMul(j, kt) s = Mul(p, c) {SOFTMAX}",
            {},
            id="quantized queries",
        ),
        pytest.param(
            "p = MatMul(q, kt) n = QuantizeLinear(p, step, zero) j = DequantizeLinear(n, step, zero)"
            f" s = Mul(j, c) {SOFTMAX}",
            {},
            id="quantized scores",
        ),
        pytest.param("p = MatMul(q, kt) y = Mul(p, c)", {}, id="no softmax"),
    ],
)
def test_what_is_scaled_otherwise_stays(text: str, weights: dict[str, NDArray[Any]]) -> None:
    assert changed(scale_queries, text, inputs=TENSORS, outputs=OUTPUT, weights=WEIGHTS | weights)[0] == 0


def test_scores_that_the_graph_gives_out_stay() -> None:
    outputs = f"{OUTPUT}, float[batch, 2, 4, 4] p"
    text = f"p = MatMul(q, kt) s = Mul(p, c) {SOFTMAX}"
    assert changed(scale_queries, text, inputs=TENSORS, outputs=outputs, weights=WEIGHTS)[0] == 0


def test_queries_that_something_else_reads_are_scaled_apart() -> None:
    text = f"{QUERIES} {KEYS} p = MatMul(q, kt) s = Mul(p, c) w = Softmax<axis = -1>(s) y = Add(w, q)"
    count, left = changed(scale_queries, text, outputs=OUTPUT, weights=WEIGHTS)
    assert (count, left["Mul"]) == (1, 1)


def test_a_scale_of_many_factors_is_their_product() -> None:
    text = f"j = Mul(q, fourth) k = Mul(kt, fourth) p = MatMul(j, k) s = Div(p, d) {SOFTMAX}"
    model = parse(text, inputs=TENSORS, outputs=OUTPUT, weights=WEIGHTS)
    scale_queries(model)
    (multiply,) = (node for node in model.graph if node.op_type == "Mul")
    number = constant(multiply.inputs[1])
    assert number is not None
    assert math.isclose(float(number), 1 / 16, rel_tol=1e-6)
