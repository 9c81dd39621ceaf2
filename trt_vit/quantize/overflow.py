"""Whether a graph can run in fp16 at all: its largest number is 65504, and what is beyond becomes infinite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trt_vit.errors import EngineError
from trt_vit.quantize.cast import MOVEMENT
from trt_vit.quantize.ranges import UNSOUND, largest_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LARGEST = float(np.finfo(np.float16).max)
_IMAGES = 2
"""Images a pass: every activation of a pass may be in memory at once."""
_MASKING = MOVEMENT | {"Add", "Cast", "Where"}
"""What lies between the scores of an attention and its softmax, where large negative numbers are masks."""


def refuse_overflow(exact: ir.Model, model: ir.Model, images: NDArray[np.float32], *, batch: int | None) -> None:
    """Refuse a graph some of whose fp16 activations fp16 cannot hold, found by running it in fp32.

    A CPU computes fp16 graphs in fp32, so that comparing their logits there would not show it. Of the scores of an
    attention only the largest matters: a mask of large negative numbers may become minus infinity before a softmax.

    Args:
        exact: The graph as it was before ``trt_vit.quantize.cast.cast``, with its Q/DQ pairs if it has any.
        model: The graph cast to fp16.
        images: Preprocessed images, float32 [n, 3, height, width].
        batch: Images that the graph takes at once, or None for any number.

    Raises:
        EngineError: An activation is too large, or not finite in fp32 either; the message names it.
    """
    scores, dependent = _scores(model.graph), _dependent(exact.graph)
    halves = {name: value in scores for name, value in _halves(exact.graph, model.graph).items() if name in dependent}
    size = batch or _IMAGES
    batches = (images[start : start + size] for start in range(0, len(images), size))
    largest = largest_values(exact, list(halves), batches, signed={name for name, score in halves.items() if score})
    for name, number in largest.items():
        if not np.isfinite(number) and not (halves.get(name) and np.isneginf(number)):
            raise EngineError(f"{name}: infinite or not a number in fp32 already", hint=UNSOUND)
    highest = max(halves, key=lambda name: largest[name], default=None)
    if highest is not None and largest[highest] > _LARGEST:
        message = f"{highest} reaches {largest[highest]:.3g}, and fp16 ends at {_LARGEST:.0f}"
        raise EngineError(message, hint="build with --precision bf16 or fp32")


def _halves(exact: ir.Graph, model: ir.Graph) -> dict[str, ir.Value]:
    """Return the fp16 tensors of a graph by the names that they have before the cast."""
    known = {str(value.name) for value in ir.convenience.create_value_mapping(exact).values()}
    halves = {}
    for node in model:
        # The cast puts Casts behind float32 tensors, and renames an output of the graph, which a Cast then gives out.
        before = node.inputs[:1] if node.op_type == "Cast" else ()
        for value in node.outputs:
            after = [output for user in value.consumers() if user.op_type == "Cast" for output in user.outputs]
            names = [str(one.name) for one in (value, *before, *after) if one is not None and one.name in known]
            if value.dtype == ir.DataType.FLOAT16 and names:
                halves[names[0]] = value
    return halves


def _dependent(graph: ir.Graph) -> set[str]:
    """Return the names of the tensors that depend on the image."""
    dependent = {str(value.name) for value in graph.inputs}
    for node in graph:
        if any(value is not None and value.name in dependent for value in node.inputs):
            dependent.update(str(value.name) for value in node.outputs)
    return dependent


def _scores(graph: ir.Graph) -> set[ir.Value]:
    """Return the tensors from which nothing is computed but softmaxes, masks added and chosen on the way."""
    scores: set[ir.Value] = set()
    for node in reversed(graph):
        for value in node.outputs:
            users = value.consumers()
            if users and not value.is_graph_output() and all(_leads_to_softmax(user, scores) for user in users):
                scores.add(value)
    return scores


def _leads_to_softmax(node: ir.Node, scores: set[ir.Value]) -> bool:
    return node.op_type == "Softmax" or (node.op_type in _MASKING and all(value in scores for value in node.outputs))
