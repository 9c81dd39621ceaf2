from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from tests.quantize.graphs import evaluate, graph_of
from trt_vit.errors import EngineError
from trt_vit.quantize.cast import cast
from trt_vit.quantize.equalize import Operand
from trt_vit.quantize.overflow import largest_values, refuse_overflow
from trt_vit.quantize.qdq import place
from trt_vit.quantize.solve import GroupCodes, LayerCodes

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGES = np.ones((3, 3, 2, 2), dtype=np.float32)


def scaled(factor: float, batch: str | int = "batch") -> ir.Model:
    """A graph whose one activation is ``factor`` times the image, and whose logits are small again."""
    return ir.from_onnx_text(f"""
        <ir_version: 9, opset_import: ["" : 20]>
        scaled (float[{batch}, 3, 2, 2] image) => (float[{batch}, 3, 2, 2] logits)
        <float some = {{256.0}}, float factor = {{{factor / 256}}}, float back = {{0.00001}}>
        {{
            medium = Mul(image, some)
            large = Mul(medium, factor)
            logits = Mul(large, back)
        }}
    """)


def refuse(model: ir.Model, images: NDArray[np.float32] = IMAGES, batch: int | None = None) -> None:
    """Cast a graph and look at it."""
    exact = model.clone()
    cast(model, "fp16")
    refuse_overflow(exact, model, images, batch=batch)


def text(nodes: str, given: str = "") -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 9, opset_import: ["" : 20]>
        few (float[batch, 3, 2, 2] image) => (float[batch, 3, 2, 2] logits)
        <float two = {{2.0}}, float lowest = {{-3.4e38}}, float zero = {{0.0}}, float none = {{-inf}},
         float thousand = {{1000.0}}, int64[1] last = {{-1}}{given}>
        {{ {nodes} }}
    """)


def test_what_fp16_holds_passes() -> None:
    refuse(scaled(65504.0))


def test_what_fp16_does_not_hold_is_named() -> None:
    with pytest.raises(EngineError, match=r"large reaches 6\.56e\+04, and fp16 ends at 65504"):
        refuse(scaled(65600.0))


def test_logits_are_looked_at_under_their_name() -> None:
    with pytest.raises(EngineError, match=r"logits reaches 1e\+06, and fp16 ends at 65504"):
        refuse(text("a = Mul(image, thousand) logits = Mul(a, thousand)"))


def test_every_image_is_looked_at_in_the_batches_the_graph_takes() -> None:
    images = np.zeros((6, 3, 2, 2), dtype=np.float32)
    images[5] = 1
    with pytest.raises(EngineError, match="large"):
        refuse(scaled(1e5, batch=3), images, batch=3)


def test_what_the_cast_keeps_in_float32_passes() -> None:
    nodes = """
        large = Mul(image, thousand)
        squares = Pow(large, two)
        mean = ReduceMean(squares, last)
        root = Sqrt(mean)
        logits = Div(large, root)
    """
    refuse(text(nodes))


@pytest.mark.parametrize(
    "mask",
    [
        "mask = Where(choice, lowest, zero)",
        "mask = Where(choice, none, zero)",
        "some = Where(choice, lowest, zero) mask = Mul(some, zero)",
    ],
)
def test_a_mask_before_a_softmax_passes(mask: str) -> None:
    images = np.random.default_rng(0).normal(size=(2, 3, 2, 2)).astype(np.float32)
    images[..., 0] = 1  # a row with nothing chosen gives no numbers in fp32 either
    nodes = f"choice = Less(image, zero) {mask} scores = Add(image, mask) logits = Softmax <axis = -1> (scores)"
    model = text(nodes)
    expected = evaluate(model, images)
    refuse(model, images)
    np.testing.assert_allclose(evaluate(model, images), expected, atol=1e-3)


def test_scores_too_large_before_a_softmax_are_refused() -> None:
    with pytest.raises(EngineError, match=r"scores reaches 1e\+06"):
        refuse(text("a = Mul(image, thousand) scores = Mul(a, thousand) logits = Softmax <axis = -1> (scores)"))


def test_a_constant_mask_passes() -> None:
    refuse(text("mask = Neg(most) a = Where(no, mask, image) logits = Relu(a)", ", bool no = {0}, float most = {inf}"))


def test_what_is_infinite_in_fp32_is_said_to_be() -> None:
    with pytest.raises(EngineError, match=r"^far: infinite or not a number in fp32 already "):
        refuse(text("far = Div(image, zero) b = Exp(far) logits = Relu(b)"))


def test_a_product_that_overflows_before_its_factor_is_refused() -> None:
    """The factor brings it back to 100, but what the product writes is an fp16 number too."""
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        {"w": np.zeros((64, 2), np.float32)},
        given={"x": ("batch", 64)},
        outputs={"y": ("batch", 2)},
    )
    factors = np.array([1, 2.0**-11], np.float32)
    codes = LayerCodes(np.full((64, 2), 127, np.int8), np.array(0.25, np.float32), factors, None)
    place(model, [GroupCodes("int8", Operand(100.0), {"layer": codes})])
    images = np.full((1, 64), 100, np.float32)
    assert evaluate(model, images)[0, 1] == pytest.approx(99.2, rel=0.01)
    with pytest.raises(EngineError, match=r"y_codes reaches 2\.03e\+05, and fp16 ends at 65504"):
        refuse(model, images)


def layers(factor: float = -2.0) -> ir.Model:
    """x -> MatMul -> h -> Mul by a factor -> m -> MatMul -> y, and another MatMul that reads m too."""
    return graph_of(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"]),
            helper.make_node("Mul", ["h", "factor"], ["m"]),
            helper.make_node("MatMul", ["m", "a"], ["y"]),
            helper.make_node("MatMul", ["m", "b"], ["z"]),
        ],
        {"a": np.eye(4, dtype=np.float32), "b": np.eye(4, dtype=np.float32), "factor": np.array(factor, np.float32)},
        given={"x": ("batch", 4)},
        outputs={"y": ("batch", 4), "z": ("batch", 4)},
    )


def batches(*numbers: float) -> list[NDArray[np.float32]]:
    return [np.array([[0.5, number, 0, -0.25]], np.float32) for number in numbers]


def test_the_largest_absolute_value_over_all_batches() -> None:
    model = layers()
    before = [node.op_type for node in model.graph]
    given = [*batches(1, -7, 3), np.full((3, 4), 0.125, np.float32)]
    assert largest_values(model, ["m", "h"], iter(given)) == {"m": 14.0, "h": 7.0, "y": 14.0, "z": 14.0}
    assert [node.op_type for node in model.graph] == before
    assert len(model.graph.outputs) == 2


def test_the_largest_value_with_its_sign() -> None:
    assert largest_values(layers(), ["h", "m"], batches(1, 7, 3), signed={"m"}) == {
        "h": 7.0, "m": 0.5, "y": 14.0, "z": 14.0,
    }  # fmt: skip


def test_no_tensor_asked_for_is_none_measured() -> None:
    assert largest_values(layers(), [], batches(1)) == {}


def test_the_largest_values_of_no_batch_are_an_error() -> None:
    with pytest.raises(EngineError, match="no calibration image"):
        largest_values(layers(), ["m"], [])


def test_the_largest_value_may_be_infinite_or_not_a_number() -> None:
    assert largest_values(layers(factor=3e38), ["m"], batches(2))["m"] == np.inf
    assert np.isnan(largest_values(layers(), ["m"], batches(1, float("nan"), 1))["y"])


def test_tensors_of_a_graph_in_fp16_are_measured() -> None:
    model = layers()
    cast(model, "fp16")
    assert largest_values(model, ["m"], batches(1, -7, 3))["m"] == 14.0
