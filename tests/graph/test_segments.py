from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from tests.support.graphs import difference, kinds, logits, parse, run
from trt_vit.graph.rewrite import rewrite
from trt_vit.graph.segments import cut
from trt_vit.quantize.linear import linear_layers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tests.graph.conftest import Graphs

WEIGHTS: dict[str, NDArray[Any]] = {
    "w": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32) / 3,
    "one": np.array(1),
    "shape": np.array([0, -1, 8]),
}
# Two layers with a branch around each, the residual stream of a ViT: r1 and r2 are what leads from one to the next.
BLOCKS = "a = MatMul(x, w) b = Relu(a) r1 = Add(x, b) c = Sigmoid(r1) d = MatMul(c, w) r2 = Add(r1, d) y = Neg(r2)"


def named(model: ir.Model) -> ir.Model:
    """Nodes named for their outputs, as the graphs of the build flow have names too."""
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"
    return model


def graph(text: str, **arguments: Any) -> ir.Model:
    model = parse(text, weights={name: array for name, array in WEIGHTS.items() if name in text}, **arguments)
    ShapeInferencePass()(model)
    return named(model)


def names(model: ir.Model, *, of: str | None = None) -> list[str]:
    return [str(node.name) for node in model.graph if of is None or node.op_type == of]


def in_turn(parts: list[ir.Model], name: str, given: NDArray[Any]) -> NDArray[Any]:
    """Run parts one after another, each on what the one before gave."""
    for part in parts:
        (given,) = run(part, {name: given})
        name = str(part.graph.outputs[0].name)
    return given


def assert_parts_follow(model: ir.Model, parts: list[ir.Model]) -> None:
    """Parts have one input and one output each, begin and end where the graph does, and hold every node just once."""
    assert all(len(part.graph.inputs) == len(part.graph.outputs) == 1 for part in parts)
    for before, after in pairwise(parts):
        assert before.graph.outputs[0].name == after.graph.inputs[0].name
        assert after.graph.inputs[0].dtype == ir.DataType.FLOAT
    assert parts[0].graph.inputs[0].name == model.graph.inputs[0].name
    assert parts[-1].graph.outputs[0].name == model.graph.outputs[0].name
    held = [name for part in parts for name in names(part)]
    assert len(held) == len(set(held))
    assert set(names(model)).issuperset(held)


@pytest.mark.parametrize("rewritten", [False, True])
@pytest.mark.parametrize(
    ("architecture", "parts"),
    # The patches; each layer's attention and MLP; the head. Swin's mask of shifted windows is as large as the batch of
    # the input: all up to the attention of its second layer is one part, and merging patches is one too.
    [("vit", 1 + 2 * 2 + 1), ("dinov2", 1 + 2 * 2 + 1), ("swin", 1 + 1 + 1 + 2 + 1)],
)
def test_parts_in_turn_are_the_whole_graph(graphs: Graphs, architecture: str, parts: int, rewritten: bool) -> None:  # noqa: FBT001
    model = graphs.model(architecture, "own")
    if rewritten:
        model, _ = rewrite(model)
    named(model)
    before = ir.to_proto(model).SerializeToString()
    layers = [layer.name for layer in linear_layers(model)]
    found = cut(model, layers)
    assert ir.to_proto(model).SerializeToString() == before
    assert_parts_follow(model, found)
    assert len(found) == parts
    assert all(set(names(part)) & set(layers) for part in found)
    assert {name for part in found for name in names(part)} >= set(layers)
    for batch, expected in zip((1, 3), graphs.logits(architecture, "own"), strict=True):
        images = np.random.default_rng(batch).standard_normal((batch, 3, 32, 32)).astype(np.float32)
        result = in_turn(found, str(model.graph.inputs[0].name), images)
        assert difference([result], [expected]) < 1e-5
    np.testing.assert_allclose(logits(model)[1], result, atol=1e-6)


def test_parts_share_the_weights_of_the_graph(graphs: Graphs) -> None:
    model = named(graphs.model("vit", "own"))
    parts = cut(model, [layer.name for layer in linear_layers(model)])
    held = {name: value.const_value for part in parts for name, value in part.graph.initializers.items()}
    large = [
        name for name, value in model.graph.initializers.items() if value.const_value and value.const_value.size > 1
    ]
    assert len(large) > 10
    assert all(held[name] is model.graph.initializers[name].const_value for name in large)


def test_a_graph_is_cut_where_one_tensor_leads_on() -> None:
    model = graph(BLOCKS)
    parts = cut(model, names(model, of="MatMul"))
    assert_parts_follow(model, parts)
    assert [kinds(part) for part in parts] == [
        {"MatMul": 1, "Relu": 1, "Add": 1},
        {"Sigmoid": 1, "MatMul": 1, "Add": 1},
        {"Neg": 1},
    ]
    x = np.random.default_rng(1).standard_normal((2, 4, 8)).astype(np.float32)
    assert difference([in_turn(parts, "x", x)], run(model, {"x": x})) == 0


def test_a_part_of_no_use_is_joined_to_the_next() -> None:
    model = graph(BLOCKS)
    assert [names(part)[-1] for part in cut(model, ["node_d"])] == ["node_r2", "node_y"]
    assert len(cut(model, ["node_a"])) == 2
    # c, r2 and y come one after another: where each is wanted, there are as many cuts.
    assert [str(part.graph.outputs[0].name) for part in cut(model, names(model))] == ["r1", "r2", "y"]
    chain = graph("a = Relu(x) b = Neg(a) c = Abs(b) y = Exp(c)")
    assert [names(part) for part in cut(chain, ["node_b", "node_c"])] == [["node_a", "node_b"], ["node_c"], ["node_y"]]


@pytest.mark.parametrize(
    "text",
    [
        "a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) y = Add(x, c)",  # the input is read to the last
        "a = MatMul(x, w) b = MatMul(x, w) c = Relu(a) d = Neg(b) y = Mul(c, d)",  # two ways side by side
        "y = MatMul(x, w)",
    ],
)
def test_a_graph_that_no_single_tensor_divides_is_one_part(text: str) -> None:
    model = graph(text)
    (part,) = cut(model, names(model, of="MatMul"))
    assert_parts_follow(model, [part])
    assert names(part) == names(model)
    x = np.random.default_rng(1).standard_normal((2, 4, 8)).astype(np.float32)
    assert difference([in_turn([part], "x", x)], run(model, {"x": x})) == 0


def test_nothing_wanted_is_one_part() -> None:
    assert len(cut(graph(BLOCKS), [])) == 1


def test_a_tensor_of_whole_numbers_is_no_place_to_cut() -> None:
    """The middle of this graph is the int64 shape of its input, which says all that the rest needs."""
    model = graph("s = Shape(x) t = Abs(s) f = Cast<to = 1>(t) g = Neg(f) y = Relu(g)", outputs="float[3] y")
    assert [str(part.graph.outputs[0].name) for part in cut(model, names(model))] == ["f", "g", "y"]


def test_a_size_that_is_read_later_keeps_the_graph_whole_so_far() -> None:
    model = graph("s = Shape(x) a = MatMul(x, w) b = Relu(a) c = Reshape(b, s) d = Neg(c) y = MatMul(d, w)")
    parts = cut(model, names(model))
    assert [str(part.graph.outputs[0].name) for part in parts] == ["c", "d", "y"]
    x = np.random.default_rng(1).standard_normal((3, 4, 8)).astype(np.float32)
    assert difference([in_turn(parts, "x", x)], run(model, {"x": x})) == 0


def test_a_tensor_of_unknown_type_is_no_place_to_cut() -> None:
    model = graph(BLOCKS)
    for node in model.graph:
        if node.op_type == "Add":
            node.outputs[0].type = None
    assert len(cut(model, names(model, of="MatMul"))) == 1


def test_constant_nodes_go_where_they_are_read() -> None:
    text = "k = Constant<value_float = 2.0>() a = Mul(x, k) b = Relu(a) c = Mul(b, k) y = MatMul(c, w)"
    model = graph(text)
    parts = cut(model, ["node_a", "node_b", "node_c", "node_y"])
    assert [str(part.graph.outputs[0].name) for part in parts] == ["a", "b", "c", "y"]
    x = np.random.default_rng(1).standard_normal((3, 4, 8)).astype(np.float32)
    assert difference([in_turn(parts, "x", x)], run(model, {"x": x})) == 0
