"""Take the branch of every If whose condition is known, as a compiler and the passes here want one straight graph.

torch's TorchScript exporter writes ``x.squeeze(1)`` as an If that compares a dimension with 1, wherever it has lost
count of the dimensions. They follow from the image size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, NameFixPass

from trt_vit.errors import ExportError
from trt_vit.graph.constants import fold_constants
from trt_vit.graph.edit import initializer
from trt_vit.graph.fold import settle_integers
from trt_vit.graph.shapes import infer_shapes

if TYPE_CHECKING:
    from trt_vit.graph.shapes import Shapes

_SUBGRAPHS = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
_HINT = "export the model again with dynamo=True, or without branches and loops that depend on its input"


def take_branches(model: ir.Model) -> int:
    """Put the nodes of the branch that is taken in the place of each If.

    Args:
        model: A model of opset 13 or later, which is changed.

    Returns:
        How many were replaced.

    Raises:
        ExportError: An If depends on the input, or the graph has another node with a graph inside, such as a Loop.
    """
    count = 0
    while left := [node for node in model.graph if _has_subgraph(node)]:
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        known = infer_shapes(model)
        taken = sum(_take(model.graph, node, known) for node in left)
        NameFixPass()(model)  # branches may use the same names
        count += taken
        if not taken + settle_integers(model.graph, known) + fold_constants(model):
            node = f"{left[0].op_type} node {left[0].name}, which makes {left[0].outputs[0].name}"
            raise ExportError(f"{model.graph.name}: {node}: control flow that the input decides", hint=_HINT)
    return count


def _has_subgraph(node: ir.Node) -> bool:
    return any(attribute.type in _SUBGRAPHS for attribute in node.attributes.values())


def _take(graph: ir.Graph, node: ir.Node, known: Shapes) -> bool:
    condition = known.elements(node.inputs[0]) if node.op_type == "If" and node.domain == "" else None
    if condition is None or condition.size != 1:
        return False
    branch = node.attributes["then_branch" if condition.item() else "else_branch"].as_graph()
    results = [ir.node("Identity", [value]) for value in branch.outputs]
    nodes = list(branch)
    branch.outputs.clear()
    branch.remove(nodes)
    for value in list(branch.initializers.values()):
        if value.const_value is not None:
            value.replace_all_uses_with(initializer(graph, value.name or "constant", value.const_value.numpy()))
    made = [result.outputs[0] for result in results]
    for old, new in zip(node.outputs, made, strict=True):
        new.type, new.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [*nodes, *results], node.outputs, made)
    return True
