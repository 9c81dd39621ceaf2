"""A graph cut into parts that follow one another, wherever a single tensor leads from what is before to what is after.

In a ViT that is the residual stream, once behind each attention and each MLP. What changes inside of one part then
costs that part and those after it, not the whole graph again.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import onnx_ir as ir

from trt_vit.graph.edit import constant

if TYPE_CHECKING:
    from collections.abc import Collection


def cut(model: ir.Model, at_most_one_of: Collection[str]) -> list[ir.Model]:
    """Cut a graph of one input and one output into parts, weights shared.

    Args:
        model: Its nodes in an order in which they can run; it is left as it is.
        at_most_one_of: Names of nodes. A part that holds none of them would be of no use and is joined to the next.

    Returns:
        Models of one input and one output each, every one's output being the input of the next. A graph that no single
        tensor divides is one part.
    """
    copy = model.clone()
    graph = copy.graph
    given, result = graph.inputs[0], graph.outputs[0]
    bounds = [given, *_bridges(graph, at_most_one_of), result]
    parts = []
    for first, last in pairwise(bounds):
        part = ir.convenience.extract(graph, [first], [last])
        parts.append(ir.Model(part, ir_version=model.ir_version, functions=list(model.functions.values())))
    return parts


def _bridges(graph: ir.Graph, wanted: Collection[str]) -> list[ir.Value]:
    """Return the tensors that alone lead from the nodes before them to those after, one behind each wanted node."""
    nodes = list(graph)
    places = {node: place for place, node in enumerate(nodes)}
    last_use = {value: max((places[user] for user, _ in value.uses()), default=-1) for value in _computed(graph, nodes)}
    bridges: list[ir.Value] = []
    alive: set[ir.Value] = set(graph.inputs)
    useful = False
    for place, node in enumerate(nodes[:-1]):
        alive.update(value for value in node.outputs if value in last_use)
        alive = {value for value in alive if last_use.get(value, -1) > place or value.is_graph_output()}
        useful = useful or node.name in wanted
        if useful and len(alive) == 1 and (bridge := next(iter(alive))).producer() is node and _is_float(bridge):
            bridges.append(bridge)
            useful = False
    return bridges


def _computed(graph: ir.Graph, nodes: list[ir.Node]) -> list[ir.Value]:
    values = [*graph.inputs, *(value for node in nodes for value in node.outputs)]
    return [value for value in values if constant(value) is None]


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT and not value.is_graph_output()
