from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from tests.quantize.graphs import evaluate
from trt_vit.errors import EngineError
from trt_vit.quantize.cast import cast
from trt_vit.quantize.overflow import refuse_overflow

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
