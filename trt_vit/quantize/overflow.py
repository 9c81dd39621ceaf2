"""Whether a graph can run in fp16 at all: its largest number is 65504, and what is beyond becomes infinite."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trt_vit.errors import EngineError
from trt_vit.quantize.cast import MOVEMENT
from trt_vit.quantize.session import opened
from trt_vit.quantize.statistics import UNSOUND

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

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


def largest_values(
    model: ir.Model, names: list[str], batches: Iterable[NDArray[np.float32]], *, signed: Collection[str] = ()
) -> dict[str, float]:
    """Measure the largest absolute value of some tensors of a graph, and of its outputs.

    Every node computes what it stands for: no Q/DQ pair is fused into a product.

    Args:
        model: A graph of opset 18 or later; it is left as it is.
        names: The tensors.
        batches: Preprocessed images, float32 [n, 3, height, width], of any n > 0 that the graph takes; read once.
        signed: Names of the tensors whose largest value is wanted instead: of these, minus infinity may be seen.

    Returns:
        The value by the tensor's name, in the order of ``names``, then of the outputs. It may be infinite or not a
        number. A reduction may skip what is not a number, but the value of an output then is not a number.

    Raises:
        EngineError: There is no batch.
        EnvironmentFault: ONNX Runtime is missing.
        ArtifactError: ONNX Runtime cannot read the graph.
    """
    if not names:
        return {}
    largest: dict[str, float] = {}
    with opened(_with_reductions(model, names, signed)) as session:
        for batch in batches:
            for name, number in _largest(session, names, batch).items():
                largest[name] = float(np.maximum(largest.get(name, -np.inf), number))
    if not largest:
        raise EngineError("there is no calibration image", hint="name a directory of images: --calibration DIR")
    return largest


def _with_reductions(model: ir.Model, names: list[str], signed: Collection[str]) -> ir.Model:
    """Copy a graph, weights shared, and let it give out the largest value of some of its tensors as float32."""
    copy = model.clone()
    values = {str(value.name): value for value in ir.convenience.create_value_mapping(copy.graph).values()}
    for index, name in enumerate(names):
        nodes = [] if name in signed else [ir.node("Abs", [values[name]], name=f"calibration_abs_{index}")]
        nodes.append(ir.node("ReduceMax", [values[name]], {"keepdims": 0}, name=f"calibration_max_{index}"))
        nodes.append(ir.node("Cast", [values[name]], {"to": ir.DataType.FLOAT}, name=f"calibration_{index}"))
        for before, after in pairwise(nodes):
            after.replace_input_with(0, before.outputs[0])
        for node in nodes:
            node.outputs[0].name = node.name
        largest = nodes[-1].outputs[0]
        largest.shape, largest.type = ir.Shape([]), ir.TensorType(ir.DataType.FLOAT)
        copy.graph.extend(nodes)
        copy.graph.outputs.append(largest)
    return copy


def _largest(session: Any, names: list[str], batch: NDArray[np.float32]) -> dict[str, float]:
    results = session.run(None, {session.get_inputs()[0].name: batch})
    reduced = dict(zip(names, map(float, results[-len(names) :]), strict=True))
    outputs = zip((output.name for output in session.get_outputs()), results[: -len(names)], strict=False)
    return reduced | {name: float(np.abs(array).max()) for name, array in outputs}
