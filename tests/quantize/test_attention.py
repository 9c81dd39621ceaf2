from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from tests.quantize.graphs import array, check, evaluate, graph_of, kinds, node
from trt_vit.graph.rewrite import rewrite
from trt_vit.quantize.attention import Attention, attention_behind, quantize_attention
from trt_vit.quantize.linear import linear_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

TOKENS, HEADS, SIZE = 5, 2, 16


def attention_graph(*, tokens: int = TOKENS, size: int = SIZE, changes: dict[str, Any] | None = None) -> ir.Model:
    """Queries, keys and values as they come from a projection, an attention, its heads put together, a projection."""
    width = HEADS * size
    nodes = {
        "scores": helper.make_node("MatMul", ["q", "k"], ["s"], name="scores"),
        "softmax": helper.make_node("Softmax", ["s"], ["p"], axis=-1, name="softmax"),
        "weighted": helper.make_node("MatMul", ["p", "v"], ["o"], name="weighted"),
        "transpose": helper.make_node("Transpose", ["o"], ["t"], perm=[0, 2, 1, 3], name="transpose"),
        "reshape": helper.make_node("Reshape", ["t", "shape"], ["h"], name="reshape"),
        "projection": helper.make_node("MatMul", ["h", "w"], ["y"], name="projection"),
    } | (changes or {})
    weight = np.random.default_rng(0).standard_normal((width, 4)).astype(np.float32)
    heads = ("batch", HEADS, tokens, size)
    return graph_of(
        list(nodes.values()),
        {"shape": np.array([0, 0, width]), "w": weight},
        given={"q": heads, "k": ("batch", HEADS, size, tokens), "v": heads},
        outputs={"y": ("batch", tokens, 4)},
    )


def behind(model: ir.Model) -> Attention | None:
    (layer,) = linear_layers(model)
    return attention_behind(layer.activation)


def names(attention: Attention | None) -> list[str | None]:
    assert attention is not None
    return [value.name for value in attention.tensors]


def test_an_attention_is_found_behind_what_puts_its_heads_together() -> None:
    attention = behind(attention_graph())
    assert names(attention) == ["q", "k", "v"]
    assert attention is not None
    assert [found.name for found in (attention.scores, attention.softmax, attention.values)] == [
        "scores",
        "softmax",
        "weighted",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"softmax": helper.make_node("Relu", ["s"], ["p"])},
        {"scores": helper.make_node("Identity", ["q"], ["s"])},
        {"weighted": helper.make_node("Add", ["v", "v"], ["o"])},
    ],
)
def test_what_is_no_attention_is_none(changes: dict[str, Any]) -> None:
    square = SIZE  # so that every change leaves the shapes as they were
    model = attention_graph(tokens=square, size=square, changes=changes)
    assert behind(model) is None


def test_nothing_may_stand_between_an_attention_and_its_reader() -> None:
    (layer,) = linear_layers(attention_graph())
    relu = ir.node("Relu", [layer.activation])
    assert attention_behind(relu.outputs[0]) is None
    cast = ir.node("Cast", [layer.activation], {"to": ir.DataType.FLOAT16})
    assert names(attention_behind(cast.outputs[0])) == ["q", "k", "v"]


def test_probabilities_that_something_else_reads_are_left_alone() -> None:
    model = attention_graph()
    ir.node("Relu", [node(model, "Softmax").outputs[0]])
    assert behind(model) is None


def test_a_product_with_a_weight_and_an_input_are_no_attention() -> None:
    model = graph_of(
        [
            helper.make_node("Softmax", ["x"], ["p"], name="softmax"),
            helper.make_node("MatMul", ["p", "w"], ["h"], name="first"),
            helper.make_node("MatMul", ["h", "w"], ["y"], name="second"),
        ],
        {"w": np.eye(4, dtype=np.float32)},
        given={"x": ("batch", 4)},
        outputs={"y": ("batch", 4)},
    )
    assert [attention_behind(layer.activation) for layer in linear_layers(model)] == [None, None]
    assert attention_behind(model.graph.inputs[0]) is None


@pytest.mark.parametrize(
    ("tokens", "size", "fuses"),
    [(5, 16, True), (197, 32, True), (512, 64, True), (513, 64, False), (197, 8, False), (197, 80, False)],
)
def test_which_attentions_fuse_in_int8(tokens: int, size: int, fuses: bool) -> None:  # noqa: FBT001
    attention = behind(attention_graph(tokens=tokens, size=size))
    assert attention is not None
    assert attention.fuses_in_int8 == fuses


def test_an_attention_of_unknown_size_does_not_fuse() -> None:
    attention = behind(attention_graph())
    assert attention is not None
    attention.softmax.outputs[0].shape = ir.Shape(["batch", HEADS, TOKENS, "tokens"])
    assert not attention.fuses_in_int8
    attention.softmax.outputs[0].shape = None
    assert not attention.fuses_in_int8


@pytest.mark.parametrize("rewritten", [False, True])
@pytest.mark.parametrize("architecture", ["vit", "dinov2"])
def test_the_attention_of_an_export(
    export: Callable[[str], ir.Model],
    architecture: str,
    rewritten: bool,  # noqa: FBT001
) -> None:
    model = export(architecture)
    if rewritten:
        model, _ = rewrite(model)
    found = [attention_behind(layer.activation) for layer in linear_layers(model)]
    (attention,) = (one for one in found if one is not None)
    assert attention.softmax is node(model, "Softmax")
    assert attention.fuses_in_int8


def test_both_products_of_an_attention_read_codes() -> None:
    model = attention_graph()
    attention = behind(model)
    assert attention is not None
    quantize_attention(model.graph, attention, {"q": 3.0, "k": 127 * 0.25, "v": 127 * 0.5, "w": 9.0})
    check(model)
    assert kinds(model).count("QuantizeLinear") == kinds(model).count("DequantizeLinear") == 4
    scales = {
        str(found.inputs[0].name): float(array(found.inputs[1]))
        for found in model.graph
        if found.op_type == "QuantizeLinear" and found.inputs[0] is not None
    }
    assert scales.keys() == {"q", "k", "v", "p"}
    assert 3 / 127 <= scales["q"] < 3 / 127 * 1.001
    assert (scales["k"], scales["v"]) == (0.25, 0.5)
    assert scales["p"] == float(np.float32(1 / 127))
    for product in (attention.scores, attention.values):
        makers = [value.producer() for value in product.inputs if value is not None]
        assert [maker and maker.op_type for maker in makers] == ["DequantizeLinear", "DequantizeLinear"]
    assert attention.softmax.inputs[0] is attention.scores.outputs[0]


def test_a_quantized_attention_computes_with_what_codes_say() -> None:
    rng = np.random.default_rng(1)
    q, k, v = (
        rng.uniform(-3.9, 3.9, shape).astype(np.float32)
        for shape in ((2, HEADS, TOKENS, SIZE), (2, HEADS, SIZE, TOKENS), (2, HEADS, TOKENS, SIZE))
    )
    model = attention_graph()
    weight = array(node(model, "MatMul", 2).inputs[1])

    def attend(round_to: Callable[[NDArray[Any], float], NDArray[Any]]) -> NDArray[Any]:
        step = 2.0**-5
        scores = round_to(q, step) @ round_to(k, step)
        exponents = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares = round_to(exponents / exponents.sum(axis=-1, keepdims=True), 1 / 127)
        heads = shares @ round_to(v, step)
        return np.asarray(heads.transpose(0, 2, 1, 3).reshape(2, TOKENS, -1) @ weight)

    exact = attend(lambda x, _: x.astype(np.float64))
    np.testing.assert_allclose(evaluate(model, q, k, v), exact, atol=1e-4)
    attention = behind(model)
    assert attention is not None
    quantize_attention(model.graph, attention, dict.fromkeys("qkv", 127 * 2.0**-5))
    codes = attend(lambda x, step: np.rint(x / step) * step)
    result = evaluate(model, q, k, v)
    error = np.linalg.norm(codes - exact)
    assert np.linalg.norm(result - codes) < 0.01 * error
    assert error > 0.001 * np.linalg.norm(exact)
