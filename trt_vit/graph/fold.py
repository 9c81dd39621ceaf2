"""Bring a graph to the form in which the passes after it look for layers: no arithmetic on shapes, nothing idle.

An exporter by tracing writes down how each shape was computed, with the batch in it: of the 227 nodes of a ViT of two
layers, 110 are such arithmetic. With the image size fixed all of it is known but the batch, which a Reshape may leave
open as -1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveUnusedNodesPass,
)

from trt_vit.graph.constants import fold_constants
from trt_vit.graph.edit import constant, initializer
from trt_vit.graph.integers import is_static
from trt_vit.graph.noop import remove_noops
from trt_vit.graph.shapes import infer_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

    from trt_vit.graph.shapes import Shapes

_MAX_ROUNDS = 20


def fold(model: ir.Model) -> int:
    """Compute what depends on weights and the image size alone, and take out what does nothing.

    Shapes that depend on the batch become constants with one -1. Nodes that compute the same become one, small equal
    constants too. Q/DQ nodes and the weights they read stay as they are.

    Args:
        model: A model, which is changed. Shapes of all tensors are written into it.

    Returns:
        How many nodes were computed, taken out or replaced.

    Raises:
        ExportError: ONNX Runtime cannot compute a node that depends on constants alone.
    """
    total = 0
    for _ in range(_MAX_ROUNDS):
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        known = infer_shapes(model)
        count = settle_integers(model.graph, known) + fold_constants(model) + remove_noops(model, known)
        IdentityEliminationPass()(model)
        RemoveUnusedNodesPass()(model)
        DeduplicateInitializersPass()(model)
        CommonSubexpressionEliminationPass()(model)
        NameFixPass()(model)
        if not count:
            break
        total += count
    return total


def settle_integers(graph: ir.Graph, known: Shapes) -> int:
    """Replace tensors of integers that turned out to be numbers by constants, and return how many there were."""
    count = 0
    for value, integers in list(known.integers.items()):
        node = value.producer()
        if node is None or value.is_graph_output() or constant(value) is not None or not is_static(integers.flat):
            continue
        if value.dtype is not None and value.uses():
            made = initializer(graph, value.name or "integers", integers.astype(value.dtype.numpy()))
            value.replace_all_uses_with(made)
            known.of[made], known.integers[made] = integers.shape, integers
            count += 1
    return count
