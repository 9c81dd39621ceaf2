"""Whether a graph can run in fp16 at all: its largest number is 65504, and what is beyond becomes infinite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trt_vit.errors import EngineError
from trt_vit.quantize.ranges import largest_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LARGEST = float(np.finfo(np.float16).max)
_IMAGES = 2
"""Images a pass: every activation of a pass may be in memory at once."""


def refuse_overflow(model: ir.Model, images: NDArray[np.float32], *, batch: int | None) -> None:
    """Refuse a graph some of whose activations fp16 cannot hold, found by running it in fp32.

    A CPU computes fp16 graphs in fp32, so that comparing their logits there would not show it.

    Args:
        model: The graph before it is cast to fp16.
        images: Preprocessed images, float32 [n, 3, height, width].
        batch: Images that the graph takes at once, or None for any number.

    Raises:
        EngineError: An activation is too large; the message names it.
    """
    names = [str(value.name) for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    size = batch or _IMAGES
    largest = largest_values(model, names, (images[start : start + size] for start in range(0, len(images), size)))
    name = max(largest, key=lambda name: largest[name])
    if largest[name] > _LARGEST:
        message = f"{name} reaches {largest[name]:.3g}, and fp16 ends at {_LARGEST:.0f}"
        raise EngineError(message, hint="build with --precision bf16 or fp32")
