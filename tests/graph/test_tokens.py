from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.graphs import changed, copied, difference, kinds, logits, parse, run
from trt_vit.graph.fold import fold
from trt_vit.graph.gelu import fuse_gelu
from trt_vit.graph.layer_normalization import fuse_layer_normalization
from trt_vit.graph.tokens import take_tokens_early

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tests.graph.conftest import Graphs

TAKEN = "float[batch, 8] y"
PER_TOKEN = ("Add", "Gelu", "LayerNormalization", "MatMul")


def arrays(**other: NDArray[Any]) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(3)
    return {
        "w": random.standard_normal((8, 8), dtype=np.float32),
        "narrow": random.standard_normal((8, 4), dtype=np.float32),
        "wide": random.standard_normal((4, 8), dtype=np.float32),
        "bias": random.standard_normal(8, dtype=np.float32),
        "positions": random.standard_normal((1, 4, 8), dtype=np.float32),
        "columns": random.standard_normal((4, 1), dtype=np.float32),
        "first": np.array(0),
        "last": np.array(-1),
        **other,
    }


def taken(text: str, outputs: str = TAKEN, **other: NDArray[Any]) -> tuple[int, dict[str, int]]:
    return changed(take_tokens_early, text, outputs=outputs, weights=arrays(**other), inputs="float[batch, 4, 8] x")


def with_shapes(text: str, **arguments: Any) -> ir.Model:
    model = parse(text, **arguments)
    fold(model)
    return model


def shaped(text: str, outputs: str = TAKEN, **other: NDArray[Any]) -> tuple[int, ir.Model]:
    """Run the pass on a graph whose shapes are known, and check outputs and the shapes that are left."""
    before = with_shapes(text, outputs=outputs, weights=arrays(**other))
    after = copied(before)
    count = take_tokens_early(after)
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    batches = [{"x": np.random.default_rng(n).standard_normal((n, 4, 8)).astype(np.float32)} for n in (1, 3)]
    assert difference(run(before, *batches), run(after, *batches)) < 1e-5
    return count, after


def tokens_of(model: ir.Model, kind: str) -> list[Any]:
    """The middle size of each output [batch, tokens, width] of an operator."""
    shapes = [node.outputs[0].shape for node in model.graph if node.op_type == kind]
    return [shape[1] for shape in shapes if shape is not None and len(shape) == 3]


@pytest.mark.parametrize("index", ["first", "last"])
def test_a_token_is_taken_before_the_work_on_each(index: str) -> None:
    count, after = shaped(f"a = MatMul(x, w) b = Add(a, bias) c = Gelu(b) y = Gather<axis=1>(c, {index})")
    assert count == 3
    assert kinds(after) == {"Gather": 2, "MatMul": 1, "Add": 1, "Gelu": 1}
    assert tokens_of(after, "MatMul") == tokens_of(after, "Add") == tokens_of(after, "Gelu") == [1]


def test_a_negative_axis_is_the_same_axis() -> None:
    count, _ = shaped("a = Relu(x) y = Gather<axis=-2>(a, first)")
    assert count == 1


def test_two_tokens_share_what_comes_before_them() -> None:
    text = "a = MatMul(x, w) b = Relu(a) c = Gather<axis=1>(b, first) d = Gather<axis=1>(b, last) y = Sub(c, d)"
    count, after = shaped(text)
    assert count == 2
    assert kinds(after) == {"MatMul": 1, "Relu": 1, "Gather": 3, "Sub": 1}
    assert tokens_of(after, "MatMul") == [2]


def test_a_weight_with_as_many_rows_as_tokens_stays_whole() -> None:
    count, after = shaped("a = MatMul(x, narrow) b = MatMul(a, wide) y = Gather<axis=1>(b, last)")
    assert count == 2
    assert tokens_of(after, "MatMul") == [1, 1]


@pytest.mark.parametrize("constant", ["positions", "columns"])
def test_constants_of_each_token_are_cut(constant: str) -> None:
    count, after = shaped(f"a = Add({constant}, x) b = MatMul(a, w) y = Gather<axis=1>(b, last)")
    assert count == 2
    add = next(node for node in after.graph if node.op_type == "Add")
    assert add.inputs[0] is not None
    assert add.inputs[0].shape is not None
    assert add.inputs[0].shape[-2] == 1


def test_layer_scale_and_residual() -> None:
    text = "a = MatMul(x, w) b = Mul(bias, a) c = Add(x, b) d = LayerNormalization(c, bias, bias) "
    count, after = shaped(text + "y = Gather<axis=1>(d, first)")
    assert count == 4
    assert tokens_of(after, "LayerNormalization") == [1]
    assert kinds(after)["Gather"] == 2  # x is taken once for both its readers


@pytest.mark.parametrize(
    ("text", "outputs"),
    [
        pytest.param(
            "a = Relu(x) y = Gather<axis=1>(a, first)", f"{TAKEN}, float[batch, 4, 8] a", id="all tokens are given out"
        ),
        pytest.param(
            "a = Relu(x) y = Gather<axis=1>(a, first) m = ReduceMean(a)", f"{TAKEN}, float[1, 1, 1] m", id="and a mean"
        ),
        pytest.param("a = Softmax<axis=1>(x) y = Gather<axis=1>(a, first)", TAKEN, id="mixes tokens"),
        pytest.param(
            "a = LayerNormalization<axis=1>(x, each, each) y = Gather<axis=1>(a, first)", TAKEN, id="norm over tokens"
        ),
        pytest.param("a = LayerNormalization(x, each) y = Gather<axis=1>(a, first)", TAKEN, id="scale of each token"),
        pytest.param("a = MatMul(mix, x) y = Gather<axis=1>(a, first)", TAKEN, id="weight on the left"),
        pytest.param("a = Relu(x) y = Gather<axis=1>(a, some)", "float[batch, 1, 8] y", id="a vector of indices"),
        pytest.param("a = Relu(x) y = Gather<axis=2>(a, first)", "float[batch, 4] y", id="another axis"),
        pytest.param("y = Gather<axis=1>(x, first)", TAKEN, id="nothing before"),
    ],
)
def test_what_needs_all_tokens_stays(text: str, outputs: str) -> None:
    random = np.random.default_rng(4)
    other = {
        "each": random.standard_normal((4, 8), dtype=np.float32),
        "mix": random.standard_normal((4, 4), dtype=np.float32),
        "some": np.array([0]),
    }
    count, after = shaped(text, outputs, **other)
    assert count == 0
    assert 1 not in [size for kind in PER_TOKEN for size in tokens_of(after, kind)]


def test_unknown_shapes_are_left_alone() -> None:
    assert taken("a = Relu(x) y = Gather<axis=1>(a, first)") == (0, {"Relu": 1, "Gather": 1})


def test_names_of_the_graph_are_not_taken_a_second_time() -> None:
    weights = arrays() | {"first": np.array(3)}
    model = with_shapes(
        "tokens = MatMul(x, w) token = Relu(tokens) y = Gather<axis=1>(token, first)", outputs=TAKEN, weights=weights
    )
    before = copied(model)
    assert take_tokens_early(model) == 2
    assert difference(run(before), run(model)) < 1e-5


def test_once_is_enough() -> None:
    model = with_shapes("a = MatMul(x, w) y = Gather<axis=1>(a, last)", outputs=TAKEN, weights=arrays())
    assert [take_tokens_early(model), take_tokens_early(model)] == [1, 0]


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_keep_what_they_compute(seed: int) -> None:
    random = np.random.default_rng(seed)
    lines, values = [], ["x"]
    for number in range(12):
        one, other = (str(random.choice(values[-4:])) for _ in range(2))
        choices = (
            f"MatMul({one}, w)", f"Add({one}, {other})", f"Mul({one}, bias)", f"Add(positions, {one})", f"Gelu({one})",
            f"Mul(columns, {one})", f"LayerNormalization({one}, bias)", f"Softmax<axis=1>({one})", f"Tanh({one})",
        )  # fmt: skip
        lines.append(f"v{number} = {random.choice(choices)}")
        values.append(f"v{number}")
    rows = [np.array(row) for row in random.integers(-4, 4, 2)]
    lines.append("c = Gather<axis=1>(v11, r0) d = Gather<axis=1>(v11, r1) n = Tanh(c) y = Add(n, d)")
    shaped(" ".join(lines), TAKEN, r0=rows[0], r1=rows[1])


@pytest.mark.parametrize("exporter", ["own", "legacy14"])
@pytest.mark.parametrize(
    ("architecture", "moved", "left"),
    [
        ("vit", 11, 1),
        ("deit", 11, 1),
        ("deit-distilled", 11, 2),
        ("dinov2", 0, None),
        ("beit", 0, None),
        ("siglip", 0, None),
        ("swin", 0, None),
    ],
)
def test_the_last_layer_works_on_what_the_classifier_reads(
    graphs: Graphs, architecture: str, exporter: str, moved: int, left: int | None
) -> None:
    model = graphs.model(architecture, exporter)
    for one_pass in (fold, fuse_layer_normalization, fuse_gelu):
        one_pass(model)
    before = kinds(model)
    assert take_tokens_early(model) == moved
    after = kinds(model)
    assert after.get("Gather", 0) - before.get("Gather", 0) == (2 if moved else 0)
    assert {kind: after[kind] for kind in PER_TOKEN} == {kind: before[kind] for kind in PER_TOKEN}
    on_fewer = [size for kind in PER_TOKEN for size in tokens_of(model, kind)].count(left)
    assert on_fewer == (moved if left else on_fewer)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert difference(graphs.logits(architecture, exporter), logits(model)) < 1e-4
