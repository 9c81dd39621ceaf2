from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.graphs import changed, copied, difference, kinds, parse, run
from trt_vit.errors import ArtifactError, ExportError
from trt_vit.graph import constants
from trt_vit.graph.edit import constant
from trt_vit.graph.fold import fold

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_RANDOM = np.random.default_rng(0)
WEIGHTS: dict[str, NDArray[Any]] = {
    "zero": np.array(0),
    "zeros": np.array([0]),
    "one": np.array([1]),
    "minus": np.array([-1]),
    "two": np.array([2]),
    "four": np.array([4]),
    "eight": np.array([8]),
    "w": _RANDOM.standard_normal((8, 8)).astype(np.float32),
    "token": _RANDOM.standard_normal((1, 1, 8)).astype(np.float32),
    "nought": np.zeros((1, 4, 8), np.float32),
    "unit": np.ones(8, np.float32),
    "heads": np.array([-1, 4, 2, 4]),
    "step": np.array(0.05, np.float32),
    "point": np.array(0, np.int8),
}
BATCH = "s = Shape(x) b = Gather<axis = 0>(s, zero) n = Unsqueeze(b, zeros)"
SCORES = "float[batch, 2, 4, 4] q, float[batch, 2, 4, 4] k"
FLAT = "float[batch, 32] y"


def left_of(text: str, **arguments: Any) -> dict[str, int]:
    return changed(fold, text, weights=WEIGHTS | arguments.pop("weights", {}), **arguments)[1]


@pytest.mark.parametrize(
    "shape",
    [
        "t = Concat<axis = 0>(n, two, four, four)",
        "t = Concat<axis = 0>(n, minus, four, four)",
        "h = Div(eight, two) t = Concat<axis = 0>(n, two, h, h)",
        "m = Mul(n, eight) h = Div(m, four) p = Div(h, two) t = Concat<axis = 0>(p, two, four, four)",
        "c = Slice(s, one, two) t = Concat<axis = 0>(n, two, c, four)",
    ],
)
def test_a_computed_shape_becomes_a_constant_with_the_batch_open(shape: str) -> None:
    text, outputs = f"{BATCH} {shape} y = Reshape(x, t)", "float[batch, 2, 4, 4] y"
    assert left_of(text, outputs=outputs) == {"Reshape": 1}
    model = parse(text, outputs=outputs, weights=WEIGHTS)
    fold(model)
    (node,) = model.graph
    np.testing.assert_array_equal(constant(node.inputs[1]), [-1, 2, 4, 4])


def test_windows_of_every_image_are_batches_of_their_own() -> None:
    text = f"{BATCH} m = Mul(n, two) t = Concat<axis = 0>(m, two, eight) y = Reshape(x, t)"
    model = parse(text, outputs="float[windows, 2, 8] y", weights=WEIGHTS)
    before = run(copied(model))
    fold(model)
    assert kinds(model) == {"Reshape": 1}
    assert difference(before, run(model)) == 0.0


def test_a_batch_without_a_name_is_followed_too() -> None:
    text = f"{BATCH} t = Concat<axis = 0>(n, two, four, four) y = Reshape(x, t)"
    model = parse(text, outputs="float[batch, 2, 4, 4] y", weights=WEIGHTS)
    model.graph.inputs[0].shape = ir.Shape([None, 4, 8])
    fold(model)
    assert kinds(model) == {"Reshape": 1}


def test_with_a_fixed_batch_everything_is_a_constant() -> None:
    text = f"{BATCH} t = Concat<axis = 0>(n, one, eight) e = Expand(token, t) y = Concat<axis = 1>(e, x)"
    assert left_of(text, inputs="float[2, 4, 8] x", outputs="float[2, 5, 8] y") == {"Concat": 1}


@pytest.mark.parametrize(
    "shape",
    [
        "t = Concat<axis = 0>(n, minus, minus)",
        "t = Concat<axis = 0>(n, one, eight)",
    ],
)
def test_the_class_token_is_expanded_to_the_batch_of_the_input(shape: str) -> None:
    """As torch's TorchScript exporter writes x.expand(batch, -1, -1)."""
    text = (
        f"{BATCH} {shape} r = Shape(t) f = ConstantOfShape<value = int64[1] {{1}}>(r) g = Mul(f, minus)"
        " h = Equal(t, g) i = Where(h, f, t) e = Expand(token, i) y = Concat<axis = 1>(e, x)"
    )
    assert left_of(text, outputs="float[batch, 5, 8] y") == {"Shape": 1, "Concat": 2, "Expand": 1}


@pytest.mark.parametrize(
    "text",
    [
        "a = Identity(x) y = Relu(a)",
        "a, mask = Dropout(x) y = Relu(a)",
        "a = Cast<to = 1>(x) y = Relu(a)",
        "a = Cast<to = 11>(x) b = Cast<to = 1>(a) y = Relu(b)",
        "a = Transpose<perm = [0, 1, 2]>(x) y = Relu(a)",
        "a = Transpose<perm = [0, 2, 1]>(x) b = Transpose<perm = [0, 2, 1]>(a) y = Relu(b)",
        "a = Unsqueeze(x, one) b = Squeeze(a, one) y = Relu(b)",
        "a = Reshape(x, heads) b = Flatten(a) c = Constant<value_ints = [-1, 4, 8]>() d = Reshape(b, c) y = Relu(d)",
        "a = Add(x, nought) y = Relu(a)",
        "a = Add(nought, x) y = Relu(a)",
        "a = Sub(x, nought) y = Relu(a)",
        "a = Mul(unit, x) y = Relu(a)",
        "a = Div(x, unit) y = Relu(a)",
        "a = Slice(x, zeros, four, one) y = Relu(a)",
        "p = Constant<value_ints = [0, 0, 0, 0, 0, 0]>() a = Pad(x, p) y = Relu(a)",
        "a = Concat<axis = 1>(x) y = Relu(a)",
        f"{BATCH} t = Concat<axis = 0>(n, one, one) a = Expand(nought, t) c = Add(x, a) y = Relu(c)",
        "f = Shape(x) z = ConstantOfShape(f) a = Add(x, z) y = Relu(a)",
    ],
)
def test_what_does_nothing_goes(text: str) -> None:
    assert left_of(text) == {"Relu": 1}


@pytest.mark.parametrize(
    ("text", "left", "outputs"),
    [
        ("a = Cast<to = 10>(x) b = Cast<to = 1>(a) y = Relu(b)", {"Cast": 2, "Relu": 1}, "float[batch, 4, 8] y"),
        ("a = Add(x, nought) y = Relu(a)", {"Add": 1, "Relu": 1}, "float[1, 4, 8] y"),
        ("a = Sub(nought, x) y = Relu(a)", {"Sub": 1, "Relu": 1}, "float[batch, 4, 8] y"),
        ("a = Div(unit, x) y = Relu(a)", {"Div": 1, "Relu": 1}, "float[batch, 4, 8] y"),
        (
            "a = Transpose<perm = [0, 2, 1]>(x) y = Relu(a)",
            {"Transpose": 1, "Relu": 1},
            "float[batch, 8, 4] y",
        ),
        (
            "e = Constant<value_ints = [-9]>() a = Slice(x, minus, e, two, minus) y = Relu(a)",
            {"Slice": 1, "Relu": 1},
            "float[batch, 4, 8] y",
        ),
    ],
)
def test_what_does_something_stays(text: str, left: dict[str, int], outputs: str) -> None:
    inputs = "float[1, 8] x" if outputs.startswith("float[1,") else "float[batch, 4, 8] x"
    assert left_of(text, inputs=inputs, outputs=outputs) == left


def test_views_in_a_row_become_one_reshape() -> None:
    text = "a = Unsqueeze(x, one) b = Reshape(a, heads) y = Flatten(b)"
    assert left_of(text, outputs=FLAT) == {"Reshape": 1}


def test_transposes_in_a_row_become_one() -> None:
    text = "a = Transpose<perm = [0, 2, 1]>(x) y = Transpose<perm = [1, 0, 2]>(a)"
    assert left_of(text, outputs="float[8, batch, 4] y") == {"Transpose": 1}


def test_a_transpose_of_merged_heads_becomes_one_of_them_apart() -> None:
    """As torch's dynamo exporter transposes the keys."""
    text = (
        "a = Constant<value_ints = [-1, 4, 4]>() b = Reshape(k, a) c = Transpose<perm = [0, 2, 1]>(b)"
        " d = Constant<value_ints = [-1, 2, 4, 4]>() e = Reshape(c, d) y = MatMul(q, e)"
    )
    assert left_of(text, inputs=SCORES, outputs="float[batch, 2, 4, 4] y") == {"Transpose": 1, "MatMul": 1}


def test_equal_nodes_and_equal_constants_become_one() -> None:
    weights = {"other": WEIGHTS["w"].copy()}
    text = "a = MatMul(x, w) b = MatMul(x, other) y = Add(a, b)"
    assert left_of(text, weights=weights) == {"MatMul": 1, "Add": 1}


GUARDED = "m = Softmax<axis = -1>(s) i = IsNaN(m) o = CastLike(zero, m) g = Where(i, o, m) y = MatMul(g, k)"


def test_a_guard_against_nan_goes() -> None:
    left = left_of(f"s = MatMul(q, k) {GUARDED}", inputs=SCORES, outputs="float[batch, 2, 4, 4] y")
    assert left == {"MatMul": 2, "Softmax": 1}


@pytest.mark.parametrize(("hidden", "guards"), [(1, 0), (4, 1)])
def test_a_guard_stays_where_a_mask_hides_a_whole_row(hidden: int, guards: int) -> None:
    mask = np.zeros((4, 4), np.float32)
    mask[1, :hidden] = -np.inf
    left = left_of(
        f"p = MatMul(q, k) s = Add(p, mask) {GUARDED}",
        inputs=SCORES,
        outputs="float[batch, 2, 4, 4] y",
        weights={"mask": mask},
    )
    assert left.get("IsNaN", 0) == guards


FIRST = np.where(np.arange(4) < 2, -np.inf, 0).astype(np.float32)
LOWEST = np.full(4, np.finfo(np.float32).min)


@pytest.mark.parametrize(
    ("one", "other", "guards"),
    [
        pytest.param(FIRST, FIRST, 0, id="the same half"),
        pytest.param(FIRST, FIRST[::-1], 1, id="both halves"),
        pytest.param(np.stack([FIRST] * 4), FIRST[::-1], 1, id="both halves of rows"),
        pytest.param(FIRST, FIRST[:, None], 1, id="some rows altogether"),
        pytest.param(LOWEST, LOWEST, 1, id="a sum beyond float32"),
        pytest.param(LOWEST, FIRST, 0, id="a sum within float32"),
    ],
)
def test_a_guard_stays_where_two_masks_hide_a_whole_row(one: NDArray[Any], other: NDArray[Any], guards: int) -> None:
    left = left_of(
        f"p = MatMul(q, k) a = Add(p, one_mask) s = Add(other_mask, a) {GUARDED}",
        inputs=SCORES,
        outputs="float[batch, 2, 4, 4] y",
        weights={"one_mask": one, "other_mask": other},
    )
    assert left.get("IsNaN", 0) == guards


@pytest.mark.parametrize(
    "scores",
    [
        "a = Add(p, hide) s = Transpose<perm = [0, 1, 3, 2]>(a)",
        "a = Add(p, hide) s = Mul(a, minus_one)",
        "a = Add(p, hide) s = Mul(a, none)",
        "a = Add(p, hide) s = Div(minus_one, a)",
        "s = Sub(hide, p)",
    ],
)
def test_a_guard_stays_where_a_mask_has_come_to_mean_something_else(scores: str) -> None:
    weights = {"hide": FIRST, "minus_one": np.float32(-1), "none": np.float32(0)}
    text = f"p = MatMul(q, k) {scores} {GUARDED}"
    left = left_of(text, inputs=SCORES, outputs="float[batch, 2, 4, 4] y", weights=weights)
    assert left["IsNaN"] == 1


def test_a_guard_stays_where_the_softmax_is_over_other_axes() -> None:
    text = f"p = MatMul(q, k) s = Add(p, hide) {GUARDED}".replace("axis = -1", "axis = 2")
    left = left_of(text, inputs=SCORES, outputs="float[batch, 2, 4, 4] y", weights={"hide": FIRST})
    assert left["IsNaN"] == 1


def test_a_guard_stays_where_the_mask_is_computed() -> None:
    text = f"p = MatMul(q, k) s = Add(p, k) {GUARDED}"
    assert left_of(text, inputs=SCORES, outputs="float[batch, 2, 4, 4] y")["IsNaN"] == 1


def test_a_mask_that_hides_nothing_goes() -> None:
    """As transformers adds it when exported with torch's fused attention."""
    weights = {"seen": np.ones((1, 1, 4, 1), np.bool_), "hide": np.array(-3e38, np.float32), "o": np.float32(0)}
    text = (
        "s = Shape<start = 0, end = 1>(q) t = Concat<axis = 0>(s, one, four, four) e = Expand(seen, t)"
        " m = Where(e, o, hide) p = MatMul(q, k) y = Add(p, m)"
    )
    left = left_of(text, inputs=SCORES, outputs="float[batch, 2, 4, 4] y", weights=weights)
    assert left == {"MatMul": 1}


def test_a_bias_that_was_expanded_to_the_batch_is_added_as_it_was() -> None:
    weights = {"bias": _RANDOM.standard_normal((1, 2, 4, 4)).astype(np.float32), "o": np.ones((1, 1, 4, 4), np.float32)}
    text = (
        "s = Shape<start = 0, end = 1>(q) t = Concat<axis = 0>(s, one, four, four) e = Expand(o, t)"
        " m = Add(bias, e) p = MatMul(q, k) y = Add(p, m)"
    )
    left = left_of(text, inputs=SCORES, outputs="float[batch, 2, 4, 4] y", weights=weights)
    assert left == {"MatMul": 1, "Add": 1}


def test_what_depends_on_weights_alone_is_computed() -> None:
    text = (
        "t = Transpose(w) u = Add(t, w) v = Softmax(u) r = Constant<value_float = 2.0>() z = Mul(v, r) y = MatMul(x, z)"
    )
    assert left_of(text) == {"MatMul": 1}


def test_large_constants_are_computed_without_a_copy_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "_MAX_EMBEDDED", 0)
    assert left_of("t = Transpose(w) u = Add(t, w) y = MatMul(x, u)") == {"MatMul": 1}


def test_a_tensor_that_would_grow_too_large_is_computed_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "_MAX_GROWN", 0)
    text = "t = Constant<value_ints = [4, 8, 8]>() e = Expand(w, t) y = MatMul(x, e)"
    model = parse(text, inputs="float[4, 4, 8] x", outputs="float[4, 4, 8] y", weights=WEIGHTS)
    fold(model)
    assert kinds(model) == {"Expand": 1, "MatMul": 1}


@pytest.mark.parametrize(
    "text",
    [
        "d = DequantizeLinear(n, step, point) y = MatMul(x, d)",
        "d = DequantizeLinear(n, step, point) t = Transpose(d) y = MatMul(x, t)",
        "q = QuantizeLinear(w, step, point) d = DequantizeLinear(q, step, point) y = MatMul(x, d)",
        "q = QuantizeLinear(x, step, point) d = DequantizeLinear(q, step, point) y = MatMul(d, w)",
    ],
)
def test_quantized_weights_stay_quantized(text: str) -> None:
    weights = {"n": _RANDOM.integers(-128, 127, (8, 8)).astype(np.int8)}
    before = kinds(parse(text))
    assert left_of(text, weights=weights) == before


def test_a_constant_that_the_graph_gives_out_stays() -> None:
    assert left_of("y = Relu(x) z = Transpose(w)", outputs="float[batch, 4, 8] y, float[8, 8] z") == {
        "Relu": 1,
        "Transpose": 1,
    }


def test_an_input_that_is_given_out_stays_so() -> None:
    assert left_of("y = Identity(x)") == {"Identity": 1}


def test_no_initializer_is_left_that_nothing_reads() -> None:
    model = parse("a = Add(x, nought) y = Relu(a)", weights=WEIGHTS)
    fold(model)
    assert list(model.graph.initializers) == []


def test_shapes_of_all_tensors_are_written_into_the_graph() -> None:
    text = f"{BATCH} t = Concat<axis = 0>(n, two, four, four) r = Reshape(x, t) y = Softmax(r)"
    model = parse(text, outputs="float[batch, 2, 4, 4] y", weights=WEIGHTS)
    fold(model)
    shapes = [value.shape for node in model.graph for value in node.outputs]
    assert shapes == [ir.Shape(["batch", 2, 4, 4])] * 2


def test_constants_that_onnx_runtime_cannot_compute_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: bytes | Path, *, threads: int) -> None:
        raise ArtifactError(f"no kernel for {threads} thread", hint="none")

    monkeypatch.setattr(constants, "open_session", refuse)
    with pytest.raises(ExportError, match="constants of the graph cannot be computed: no kernel"):
        fold(parse("t = Transpose(w) y = MatMul(x, t)", weights=WEIGHTS))


@pytest.mark.parametrize(
    ("text", "z", "left"),
    [
        pytest.param("s = Shape(x) t = Gather(s, z) y = Reshape(x, t)", [9, 1, 2], "Gather", id="index"),
        pytest.param("s = Shape(x) t = Gather(s, z) y = Reshape(x, t)", [0.0], "Gather", id="an index of float32"),
        pytest.param("y = Reshape(x, z)", [0, 0, 0, 0], "Reshape", id="a fourth axis of three"),
        pytest.param("y = Reshape(x, z)", [-1, -1, 8], "Reshape", id="two open sizes"),
        pytest.param("s = Shape(x) t = Reshape(s, z) y = Reshape(x, t)", [0, 0], "Reshape", id="a second axis of one"),
        pytest.param("s = Shape(x) t = Reshape(s, z) y = Reshape(x, t)", [2, 2], "Reshape", id="four of three"),
        pytest.param("s = Shape(x) t = Add(s, z) y = Reshape(x, t)", [1, 2], "Add", id="three and two"),
        pytest.param("s = Shape(x) t = Squeeze(s, z) y = Reshape(x, t)", [0], "Squeeze", id="squeezed three"),
        pytest.param(
            "s = Shape(x) f = ConstantOfShape<value = int64[1] {0}>(z) t = Add(s, f) y = Reshape(x, t)",
            [10**6, 10**6],
            "ConstantOfShape",
            id="more than memory",
        ),
        pytest.param(
            "s = Shape(x) e = Expand(unit, s) a = Add(e, z) c = Cast<to = 9>(a) y = Where(c, x, x)",
            [1.0, 2.0, 3.0],
            "Add",
            id="eight and three",
        ),
    ],
)
def test_nodes_that_cannot_run_stay(text: str, z: list[Any], left: str) -> None:
    weight = np.array(z, np.float32 if isinstance(z[0], float) else np.int64)
    model = parse(text, outputs="float[a, b, c] y", weights=WEIGHTS | {"z": weight})
    fold(model)
    assert left in kinds(model)


@pytest.mark.parametrize("name", ["", "the_name"])
def test_a_constant_that_cannot_be_computed_is_named(name: str) -> None:
    model = parse("flat = Reshape(w, wrong) y = Add(x, flat)", weights=WEIGHTS | {"wrong": np.array([3, 3])})
    model.graph[0].name = name
    with pytest.raises(ExportError, match=f"constants of the graph cannot be computed: .*{name or 'flat'}") as caught:
        fold(model)
    assert "\n" not in caught.value.message
    assert "bundle" not in caught.value.hint
