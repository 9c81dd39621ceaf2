from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from trt_vit.errors import EngineError
from trt_vit.quantize.overflow import refuse_overflow

IMAGES = np.ones((3, 3, 2, 2), dtype=np.float32)


def scaled(factor: float, batch: str | int = "batch") -> ir.Model:
    """A graph whose one activation is ``factor`` times the image, and whose logits are small again."""
    return ir.from_onnx_text(f"""
        <ir_version: 9, opset_import: ["" : 20]>
        scaled (float[{batch}, 3, 2, 2] image) => (float[{batch}, 3, 2, 2] logits)
        <float factor = {{{factor}}}, float back = {{0.00001}}>
        {{
            large = Mul(image, factor)
            logits = Mul(large, back)
        }}
    """)


def with_types(model: ir.Model) -> ir.Model:
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass()(model)
    return model


def test_what_fp16_holds_passes() -> None:
    refuse_overflow(with_types(scaled(65504.0)), IMAGES, batch=None)


def test_what_fp16_does_not_hold_is_named() -> None:
    with pytest.raises(EngineError, match=r"large reaches 6\.56e\+04, and fp16 ends at 65504"):
        refuse_overflow(with_types(scaled(65600.0)), IMAGES, batch=None)


def test_every_image_is_looked_at_in_the_batches_the_graph_takes() -> None:
    images = np.zeros((6, 3, 2, 2), dtype=np.float32)
    images[5] = 1
    with pytest.raises(EngineError, match="large"):
        refuse_overflow(with_types(scaled(1e5, batch=3)), images, batch=3)
