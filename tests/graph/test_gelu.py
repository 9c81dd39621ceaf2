from __future__ import annotations

import math

import numpy as np
import pytest

from tests.support.graphs import changed, parse
from trt_vit.graph.gelu import fuse_gelu

ROOT = math.sqrt(2 / math.pi)


def constants(kind: type[np.floating]) -> dict[str, np.ndarray]:
    numbers = {
        "half": 0.5,
        "one": 1,
        "two": 2,
        "three": 3,
        "root2": math.sqrt(2),
        "inverse": math.sqrt(0.5),
        "root": ROOT,
        "cubic": 0.044715,
        "product": ROOT * 0.044715,
    }
    return {name: np.array(number, dtype=kind) for name, number in numbers.items()}


WEIGHTS = constants(np.float32)
ERF = "u = Div(x, root2) t = Erf(u) a = Add(t, one)"
TANH = "p = Pow(x, three) c = Mul(p, cubic) i = Add(x, c) u = Mul(i, root) t = Tanh(u) a = Add(t, one)"


@pytest.mark.parametrize("inside", ["u = Div(x, root2)", "u = Mul(x, inverse)", "u = Mul(inverse, x)"])
@pytest.mark.parametrize(
    "outside",
    [
        "a = Add(t, one) b = Mul(x, a) y = Mul(b, half)",  # torch's TorchScript exporter
        "a = Add(t, one) b = Mul(half, a) y = Mul(x, b)",  # its dynamo exporter
        "a = Add(one, t) b = Mul(x, half) y = Mul(b, a)",
        "a = Add(one, t) b = Mul(half, x) y = Mul(a, b)",  # TensorFlow's
        "a = Add(t, one) b = Mul(a, x) y = Div(b, two)",
        "a = Mul(t, half) b = Add(half, a) y = Mul(x, b)",
        "h = Mul(x, half) a = Mul(h, t) y = Add(h, a)",
    ],
)
def test_gelu_by_erf_in_any_order(inside: str, outside: str) -> None:
    assert changed(fuse_gelu, f"{inside} t = Erf(u) {outside}", weights=WEIGHTS) == (1, {"Gelu": 1})


@pytest.mark.parametrize(
    "inside",
    [
        "p = Pow(x, three) c = Mul(p, cubic) i = Add(x, c) u = Mul(i, root)",
        "p = Pow(x, three) c = Mul(cubic, p) i = Add(c, x) u = Mul(root, i)",
        "s = Mul(x, x) p = Mul(s, x) c = Mul(p, cubic) i = Add(x, c) u = Mul(i, root)",
        "s = Mul(x, x) c = Mul(s, cubic) i = Add(one, c) r = Mul(x, root) u = Mul(r, i)",
        "s = Pow(x, two) c = Mul(s, product) i = Add(c, root) u = Mul(x, i)",
    ],
)
@pytest.mark.parametrize("outside", ["b = Mul(x, a) y = Mul(b, half)", "b = Mul(half, x) y = Mul(b, a)"])
def test_gelu_by_tanh_in_any_order(inside: str, outside: str) -> None:
    text = f"{inside} t = Tanh(u) a = Add(t, one) {outside}"
    assert changed(fuse_gelu, text, weights=WEIGHTS) == (1, {"Gelu": 1})


@pytest.mark.parametrize(("parts", "approximate"), [(ERF, "none"), (TANH, "tanh")])
def test_the_node_names_its_formula_and_reads_x(parts: str, approximate: str) -> None:
    text = f"x = Add(z, one) {parts} b = Mul(x, a) y = Mul(b, half)"
    model = parse(text, inputs="float[batch, 4, 8] z", weights=WEIGHTS)
    assert fuse_gelu(model) == 1
    add, gelu = model.graph
    assert gelu.attributes.get_string("approximate") == approximate
    assert gelu.inputs[0] is add.outputs[0]


def test_constants_rounded_to_half_precision_are_recognised() -> None:
    inputs, outputs = "float16[batch, 4, 8] x", "float16[batch, 4, 8] y"
    model = parse(
        f"{TANH} b = Mul(x, a) y = Mul(b, half)", inputs=inputs, outputs=outputs, weights=constants(np.float16)
    )
    assert fuse_gelu(model) == 1


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        pytest.param(f"{ERF} b = Mul(x, a) y = Mul(b, half)", {"half": np.float32(0.49)}, id="0.49 for a half"),
        pytest.param(f"{ERF} b = Mul(x, a) y = Mul(b, half)", {"half": np.float32(0.50001)}, id="0.50001 for a half"),
        pytest.param(f"{ERF} b = Mul(x, a) y = Mul(b, half)", {"root2": np.float32(1.4142)}, id="1.4142 for the root"),
        pytest.param(f"{ERF} b = Mul(x, a) y = Mul(b, half)", {"one": np.float32(0)}, id="nothing added"),
        pytest.param(f"{ERF} b = Mul(x, a) c = Mul(b, half) y = Add(c, a)", {}, id="a part used elsewhere"),
        pytest.param(f"{ERF} z = Relu(x) b = Mul(z, a) y = Mul(b, half)", {}, id="the factor is another tensor"),
        pytest.param(f"{TANH} b = Mul(x, a) y = Mul(b, half)", {"cubic": np.float32(0.0447)}, id="another cubic term"),
        pytest.param(
            "u = Mul(x, root) t = Tanh(u) a = Add(t, one) b = Mul(x, a) y = Mul(b, half)", {}, id="no cubic term"
        ),
        pytest.param("u = Div(root2, x) t = Erf(u) a = Add(t, one) b = Mul(x, a) y = Mul(b, half)", {}, id="inverted"),
    ],
)
def test_what_only_looks_like_it_stays(text: str, weights: dict[str, np.ndarray]) -> None:
    count, left = changed(fuse_gelu, text, weights=WEIGHTS | weights)
    assert (count, left.get("Gelu")) == (0, None)


def test_a_part_that_the_graph_gives_out_stays() -> None:
    text = f"{ERF} b = Mul(x, a) y = Mul(b, half)"
    assert changed(fuse_gelu, text, weights=WEIGHTS, outputs="float[batch, 4, 8] y, float[batch, 4, 8] t")[0] == 0


@pytest.mark.parametrize("wide", ["root2", "one", "half"])
def test_a_constant_with_more_axes_than_x_stays_for_them(wide: str) -> None:
    weights = WEIGHTS | {wide: WEIGHTS[wide].reshape(1, 1, 1, 1)}
    text, outputs = f"{ERF} b = Mul(x, a) y = Mul(b, half)", "float[1, batch, 4, 8] y"
    assert changed(fuse_gelu, text, weights=weights, outputs=outputs)[0] == 0


def test_a_constant_with_as_many_axes_as_x_does_not_matter() -> None:
    weights = {name: array.reshape(1, 1, 1) for name, array in WEIGHTS.items()}
    assert changed(fuse_gelu, f"{ERF} b = Mul(x, a) y = Mul(b, half)", weights=weights) == (1, {"Gelu": 1})
