from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest

from tests.graph.fused_qkv import TOKENS, WIDTH, Taking, export_layer
from tests.support.graphs import changed, copied, difference, kinds, logits, parse, run
from trt_vit.graph.attention_scale import scale_queries
from trt_vit.graph.edit import constant
from trt_vit.graph.fold import fold
from trt_vit.graph.opset import upgrade
from trt_vit.graph.qkv import fold_scales, merge_projections
from trt_vit.graph.stacked_qkv import split_along_heads

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.graph.conftest import Graphs

HEADS_OUT = "float[batch, 2, 4, 4] y"
ATTEND = "scores = MatMul(q, k) rows = Softmax(scores) y = MatMul(rows, v)"
MERGED = {"MatMul": 3, "Add": 1, "Reshape": 1, "Transpose": 2, "Split": 1, "Softmax": 1}
SEPARATE = {"MatMul": 5, "Add": 3, "Reshape": 3, "Transpose": 3, "Softmax": 1}
STACKED = {"MatMul": 3, "Add": 1, "Reshape": 1, "Transpose": 2, "Gather": 3, "Softmax": 1}
ALL = ("q", "k", "v")


def weights(**other: NDArray[Any]) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(1)
    matrices = {f"w{name}": random.standard_normal((8, 8), dtype=np.float32) for name in ALL}
    biases = {f"b{name}": random.standard_normal(8, dtype=np.float32) for name in ALL}
    return {**matrices, **biases, "heads": np.array([0, 4, 2, 4]), **other}


def projection(name: str, tokens: str = "x", heads: str = "heads", *, bias: bool = True, left: bool = False) -> str:
    perm = "[0, 2, 3, 1]" if name == "k" else "[0, 2, 1, 3]"
    add = f"Add(b{name}, {name}0)" if left else f"Add({name}0, b{name})"
    return f"""
        {name}0 = MatMul({tokens}, w{name})
        {f"{name}1 = {add}" if bias else ""}
        {name}2 = Reshape({name}{1 if bias else 0}, {heads})
        {name} = Transpose<perm={perm}>({name}2)
    """


def merge(text: str, outputs: str = HEADS_OUT, **arguments: Any) -> tuple[int, dict[str, int]]:
    return changed(merge_projections, text, outputs=outputs, **({"weights": weights()} | arguments))


def counts(**nodes: int) -> dict[str, int]:
    return {kind: count for kind, count in nodes.items() if count}


@pytest.mark.parametrize("left", [False, True])
def test_three_projections_become_one_product(left: bool) -> None:  # noqa: FBT001
    text = "".join(projection(name, left=left) for name in ALL) + ATTEND
    assert kinds(parse(text, weights=weights())) == SEPARATE
    assert merge(text) == (1, MERGED)


def test_keys_without_a_bias_get_zeros() -> None:
    text = "".join(projection(name, bias=name != "k") for name in ALL) + ATTEND
    assert merge(text) == (1, MERGED)
    model = parse(text, weights=weights())
    merge_projections(model)
    bias = constant(model.graph.initializers["qkv.bias"])
    assert bias is not None
    np.testing.assert_array_equal(bias, np.concatenate([weights()["bq"], np.zeros(8), weights()["bv"]]))


def test_without_any_bias_nothing_is_added() -> None:
    text = "".join(projection(name, bias=False) for name in ALL) + ATTEND
    assert merge(text) == (1, counts(**MERGED | {"Add": 0}))


def test_attention_pooling_merges_keys_and_values_alone() -> None:
    probe = np.random.default_rng(2).standard_normal((1, 4, 8)).astype(np.float32)
    text = projection("q", "probe") + projection("k") + projection("v") + ATTEND
    assert merge(text, weights=weights(probe=probe)) == (
        1,
        MERGED | {"MatMul": 4, "Add": 2, "Reshape": 2, "Transpose": 3},
    )


def test_order_of_the_parts_does_not_matter() -> None:
    assert merge("".join(projection(name) for name in ("v", "q", "k")) + ATTEND) == (1, MERGED)


def test_a_part_that_the_graph_gives_out_keeps_its_name() -> None:
    text = "".join(projection(name) for name in ALL) + ATTEND
    outputs = f"{HEADS_OUT}, float[batch, 2, 4, 4] v"
    assert merge(text, outputs) == (1, MERGED)


@pytest.mark.parametrize(
    ("text", "others"),
    [
        pytest.param(projection("q", "z") + projection("k") + projection("v", "u"), {}, id="different tokens"),
        pytest.param(
            projection("q") + projection("k", heads="more") + projection("v", heads="other"),
            {"more": np.array([0, 4, 2, -1]), "other": np.array([-1, 4, 2, 4])},
            id="targets that differ",
        ),
        pytest.param(
            projection("q") + projection("k") + projection("v"), {"heads": np.array([0, 0, -1, 4])}, id="unknown heads"
        ),
        pytest.param(
            projection("q") + projection("k") + projection("v"), {"heads": np.array([0, 0, 2, -1])}, id="unknown size"
        ),
    ],
)
def test_what_does_not_match_stays(text: str, others: dict[str, NDArray[Any]]) -> None:
    text = f"z = Neg(x) u = Abs(x) {text} {ATTEND} last = Add(z, u)"
    before = kinds(parse(text, weights=weights(**others)))
    outputs = f"{HEADS_OUT}, float[batch, 4, 8] last"
    assert merge(text, outputs, weights=weights(**others)) == (0, before)


def test_heads_of_another_size_stay_apart() -> None:
    text = projection("q") + projection("k") + projection("v", heads="four") + "a = MatMul(q, k) y = MatMul(a, q)"
    text += " other = Relu(v)"
    outputs = f"{HEADS_OUT}, float[batch, 4, 4, 2] other"
    count, after = merge(text, outputs, weights=weights(four=np.array([0, 4, 4, 2])))
    assert (count, after["MatMul"], after["Split"]) == (1, 4, 1)


@pytest.mark.parametrize("inner", ["0", "1", "2"])
@pytest.mark.parametrize("given_out", [False, True])
def test_a_projection_that_is_read_elsewhere_stays(inner: str, given_out: bool) -> None:  # noqa: FBT001
    text = "".join(projection(name) for name in ALL) + ATTEND
    other = f"k{inner}"
    if not given_out:
        text += f" other = Relu(k{inner})"
        other = "other"
    sizes = "batch, 4, 2, 4" if inner == "2" else "batch, 4, 8"
    count, after = merge(text, f"{HEADS_OUT}, float[{sizes}] {other}")
    assert (count, after["MatMul"], after["Split"]) == (1, 4, 1)


def test_windows_are_merged() -> None:
    """Swin's: more rows than images."""
    text = "windows = Reshape(x, four) " + "".join(projection(name, "windows") for name in ALL) + ATTEND
    arrays = weights(four=np.array([-1, 2, 8]), heads=np.array([-1, 2, 2, 4]))
    assert merge(text, "float[windows, 2, 2, 4] y", weights=arrays) == (1, MERGED | {"Reshape": 2})


EXPORTS = [
    (architecture, exporter)
    for architecture in ("vit", "deit", "beit", "dinov2", "swin", "siglip")
    for exporter in ("own", "legacy14")
]


@pytest.mark.parametrize(("architecture", "exporter"), EXPORTS)
def test_every_layer_of_an_architecture_is_merged(graphs: Graphs, architecture: str, exporter: str) -> None:
    model = graphs.model(architecture, exporter)
    fold(model)
    scale_queries(model)
    before = kinds(model)
    layers = 3 if architecture == "swin" else 2
    assert merge_projections(model) == layers
    changes = {kind: (kinds(model).get(kind, 0) - before.get(kind, 0)) / layers for kind in {*before, "Split"}}
    added = -1 if architecture == "beit" else -2
    expected = {"MatMul": -2, "Add": added, "Reshape": -2, "Transpose": -1, "Split": 1}
    assert {kind: change for kind, change in changes.items() if change} == expected
    assert difference(graphs.logits(architecture, exporter), logits(model)) < 1e-4


def stacked(taking: str = "", parts: str = "three") -> str:
    taking = taking or "q = Gather<axis=0>(t, i0) k0 = Gather<axis=0>(t, i1) v = Gather<axis=0>(t, i2)"
    return f"""
        p0 = MatMul(x, w) p1 = Add(p0, b) p2 = Reshape(p1, {parts}) t = Transpose<perm=[2, 0, 3, 1, 4]>(p2)
        {taking} k = Transpose<perm=[0, 1, 3, 2]>(k0) {ATTEND}
    """


def stacked_weights(**other: NDArray[Any]) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(1)
    arrays: dict[str, NDArray[Any]] = {
        "w": random.standard_normal((8, 24), dtype=np.float32),
        "b": random.standard_normal(24, dtype=np.float32),
        "three": np.array([-1, 4, 3, 2, 4]),
        "ones": np.array([1, 1, 1]),
        "first": np.array([0]),
        "shape": np.array([-1, 2, 4, 4]),
    }
    arrays |= {f"i{index}": np.array(index) for index in range(3)} | {f"e{end}": np.array([end]) for end in range(1, 4)}
    return arrays | other


def split_up(text: str, outputs: str = HEADS_OUT, **other: NDArray[Any]) -> tuple[int, dict[str, int]]:
    return changed(split_along_heads, text, outputs=outputs, weights=stacked_weights(**other))


SPLIT = counts(**STACKED | {"Gather": 0, "Split": 1})
SQUEEZED = "q = Squeeze(qs, first) k0 = Reshape(ks, shape) v = Squeeze(vs, first)"


@pytest.mark.parametrize(
    "taking",
    [
        pytest.param("", id="gather"),
        pytest.param(f"qs, ks, vs = Split<axis=0>(t, ones) {SQUEEZED}", id="split"),
        pytest.param(f"qs, ks, vs = Split<axis=0, num_outputs=3>(t) {SQUEEZED}", id="equal split"),
        pytest.param(
            f"qs = Slice(t, first, e1, first) ks = Slice(t, e1, e2, first, e1) vs = Slice(t, e2, e3, first) {SQUEEZED}",
            id="slice",
        ),
        pytest.param(
            f"qs = Gather<axis=0>(t, first) ks = Gather<axis=0>(t, e1) vs = Gather<axis=0>(t, e2) {SQUEEZED}",
            id="gather that keeps the axis",
        ),
    ],
)
def test_stacked_parts_are_cut_along_the_heads(taking: str) -> None:
    assert split_up(stacked(taking)) == (1, SPLIT)


def test_indices_from_the_end() -> None:
    other = {"i0": np.array(-3), "i1": np.array(1), "i2": np.array(-1)}
    assert changed(split_along_heads, stacked(), outputs=HEADS_OUT, weights=stacked_weights(**other)) == (1, SPLIT)


def test_two_parts_of_three_may_do() -> None:
    text = stacked("q = Gather<axis=0>(t, i2) k0 = Gather<axis=0>(t, i1) v = Gather<axis=0>(t, i1)")
    assert split_up(text) == (1, SPLIT)


@pytest.mark.parametrize(
    ("text", "outputs"),
    [
        pytest.param(stacked(parts="guessed"), HEADS_OUT, id="unknown heads"),
        pytest.param(stacked(), f"{HEADS_OUT}, float[3, batch, 2, 4, 4] t", id="stacked is an output"),
        pytest.param(stacked(), f"{HEADS_OUT}, float[batch, 2, 4, 4] v", id="a part is an output"),
        pytest.param(stacked() + " other = Relu(t)", f"{HEADS_OUT}, float[3, batch, 2, 4, 4] other", id="read whole"),
        pytest.param(
            stacked() + " other = Relu(p2)", f"{HEADS_OUT}, float[batch, 4, 3, 2, 4] other", id="reshaped is read"
        ),
        pytest.param(
            stacked(f"qs, ks, vs = Split<axis=0>(t, ones) {SQUEEZED}") + " other = Relu(vs)",
            f"{HEADS_OUT}, float[1, batch, 2, 4, 4] other",
            id="axis is kept",
        ),
    ],
)
def test_stacked_parts_that_are_needed_as_they_are_stay(text: str, outputs: str) -> None:
    other = {"guessed": np.array([0, 4, 3, -1, 4])}
    before = kinds(parse(text, weights=stacked_weights(**other)))
    assert split_up(text, outputs, **other) == (0, before)


@pytest.mark.parametrize("taking", [taking for taking in get_args(Taking) if taking != "separate"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_exports_of_one_product_are_cut_along_the_heads(
    tmp_path: Path,
    taking: Taking,
    exporter: Any,
    fused: bool,  # noqa: FBT001
) -> None:
    model = upgrade(export_layer(taking, exporter, tmp_path / "layer.onnx", fused=fused), 20)
    feeds = [{"x": np.random.default_rng(n).standard_normal((n, TOKENS, WIDTH)).astype(np.float32)} for n in (1, 3)]
    before = run(model, *feeds)
    fold(model)
    assert split_along_heads(model) == 1
    assert split_along_heads(model) == 0
    assert difference(before, run(model, *feeds)) < 1e-4
    found = kinds(model)
    assert (found["Split"], found["Transpose"], found["Reshape"]) == (1, 3, 2)
    assert "Slice" not in found
    assert found["Gather"] == 1  # the token of the classifier


def scaled(mul: str = "Mul(q0, c)", *, bias: bool = True, perm: str = "[0, 2, 1, 3]", tail: str = "") -> str:
    return f"""
        p0 = MatMul(x, w) {"p1 = Add(b, p0)" if bias else ""} p2 = Reshape({"p1" if bias else "p0"}, six)
        t = Transpose<perm={perm}>(p2) q0, k0, v = Split<axis=1>(t, two) q = {mul} {tail}
        k = Transpose<perm=[0, 1, 3, 2]>(k0) {ATTEND}
    """


def scale_weights(**other: NDArray[Any]) -> dict[str, NDArray[Any]]:
    extra: dict[str, NDArray[Any]] = {
        "six": np.array([0, 4, 6, 4]),
        "two": np.array([2, 2, 2]),
        "c": np.array(0.5, dtype=np.float32),
    }
    return stacked_weights(**extra | other)


def folded(text: str, outputs: str = HEADS_OUT, **other: NDArray[Any]) -> tuple[int, dict[str, int]]:
    return changed(fold_scales, text, outputs=outputs, weights=scale_weights(**other))


@pytest.mark.parametrize("mul", ["Mul(q0, c)", "Mul(c, q0)"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_factor_on_the_queries_goes_into_their_weights(mul: str, bias: bool) -> None:  # noqa: FBT001
    assert folded(scaled(mul, bias=bias)) == (1, counts(**SPLIT | {"Add": int(bias)}))


def test_only_the_columns_of_that_part_are_scaled() -> None:
    model = parse(scaled("Mul(c, q0)"), outputs=HEADS_OUT, weights=scale_weights())
    fold_scales(model)
    product = next(node for node in model.graph if node.op_type == "MatMul")
    weight = constant(product.inputs[1])
    assert weight is not None
    np.testing.assert_array_equal(weight[:, :8], scale_weights()["w"][:, :8] / 2)
    np.testing.assert_array_equal(weight[:, 8:], scale_weights()["w"][:, 8:])


def test_factors_on_two_parts() -> None:
    text = scaled(tail="v1 = Mul(v, c)").replace("MatMul(rows, v)", "MatMul(rows, v1)")
    assert folded(text) == (2, SPLIT)


@pytest.mark.parametrize(
    ("text", "outputs", "other"),
    [
        pytest.param(scaled(tail="o = Relu(q0)"), f"{HEADS_OUT}, float[batch, 2, 4, 4] o", {}, id="part is read"),
        pytest.param(scaled(), f"{HEADS_OUT}, float[batch, 2, 4, 4] q", {}, id="scaled is an output"),
        pytest.param(scaled(tail="o = Relu(p1)"), f"{HEADS_OUT}, float[batch, 4, 24] o", {}, id="sum is read"),
        pytest.param(scaled(tail="o = Relu(t)"), f"{HEADS_OUT}, float[batch, 6, 4, 4] o", {}, id="heads are read"),
        pytest.param(scaled(), HEADS_OUT, {"c": np.arange(4, dtype=np.float32)}, id="a factor a channel"),
        pytest.param(scaled(), HEADS_OUT, {"six": np.array([0, 4, 6, -1])}, id="unknown size"),
        pytest.param(scaled(), HEADS_OUT, {"b": np.ones((1,), np.float32)}, id="one bias for all columns"),
        pytest.param(
            scaled(perm="[0, 3, 1, 2]"),
            "float[batch, 2, 4, 4] y",
            {"six": np.array([0, 4, 4, 6])},
            id="other axes",
        ),
    ],
)
def test_factors_that_cannot_be_folded_stay(text: str, outputs: str, other: dict[str, NDArray[Any]]) -> None:
    count, after = folded(text, outputs, **other)
    assert (count, after["Mul"]) == (0, 1)


@pytest.mark.parametrize("total", ["Add(p0, low)", "Add(low, p0)"])
def test_a_sum_of_two_products_is_no_bias(total: str) -> None:
    """As LoRA writes a projection without a bias."""
    low = f"a = MatMul(x, down) low = MatMul(a, up) p1 = {total} p2 = Reshape(p1"
    text = scaled(bias=False).replace("p2 = Reshape(p0", low)
    down, up = np.ones((8, 2), np.float32), np.ones((2, 24), np.float32)
    count, after = folded(text, down=down, up=up)
    assert (count, after["Mul"]) == (0, 1)


def test_a_weight_that_others_read_too_is_copied() -> None:
    text = scaled(tail="o = MatMul(x, w)")
    model = parse(text, outputs=f"{HEADS_OUT}, float[batch, 4, 24] o", weights=scale_weights())
    after = copied(model)
    assert fold_scales(after) == 1
    assert difference(run(model), run(after)) < 1e-5


def test_nothing_is_found_a_second_time() -> None:
    model = parse(stacked(), outputs=HEADS_OUT, weights=stacked_weights())
    assert [split_along_heads(model), merge_projections(model), fold_scales(model)] == [1, 0, 0]
    assert [split_along_heads(model), merge_projections(model), fold_scales(model)] == [0, 0, 0]
