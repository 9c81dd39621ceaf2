"""The tokens that the classifier reads, taken as early as they can be.

A ViT's classifier reads one token (DeiT's with distillation two), but exporters take it from the last normalized
tensor, so that the last layer computes its projection, both products of its MLP and two normalizations for all tokens:
of ViT-B/16's 17.6 GMAC an image 1.04 for nothing. Every operation between the last attention and that token works on
each token alone, so the token can be taken first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trt_vit.graph.edit import constant, initializer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_TOKENS = 1
"""The axis of the tokens in [batch, tokens, width]."""
_RANK = 3
_TOKENWISE = frozenset({"Add", "Sub", "Mul", "Div", "Gelu", "Relu", "Tanh", "Sigmoid", "Erf", "Identity", "Cast"})


def take_tokens_early(model: ir.Model) -> int:
    """Move the choice of tokens before everything that works on each token alone.

    Returns:
        How many operations work on fewer tokens than before.
    """
    moved = 0
    for value, takers in _chosen(model.graph).items():
        rows, tokens = sorted({row for _, row in takers}), _tokens(value) or 0
        cone = _tokenwise_cone(model.graph, value, {node for node, _ in takers})
        if cone and len(rows) < tokens:
            _narrow(model.graph, cone, np.array(rows, dtype=np.int64), tokens)
            _renumber(model.graph, takers, rows)
            moved += len(cone)
    return moved


def _chosen(graph: ir.Graph) -> dict[ir.Value, list[tuple[ir.Node, int]]]:
    """Return the tensors [batch, tokens, width] whose readers all take one token, and each reader with its token."""
    found: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    for node in graph:
        row = _row(node)
        if row is not None and node.inputs[0] is not None:
            found.setdefault(node.inputs[0], []).append((node, row))
    return {value: takers for value, takers in found.items() if len(takers) == len(value.uses())}


def _row(node: ir.Node) -> int | None:
    """Return which token a Gather with a scalar index takes, or None for any other node."""
    if (
        node.op_type != "Gather"
        or node.domain != ""
        or node.attributes.get_int("axis", 0) not in {_TOKENS, _TOKENS - _RANK}
    ):
        return None
    value, index = node.inputs[0], constant(node.inputs[1])
    tokens = _tokens(value)
    if tokens is None or index is None or index.ndim != 0:
        return None
    return int(index) % tokens


def _tokens(value: ir.Value | None) -> int | None:
    """Return how many tokens a tensor [batch, tokens, width] has, or None for any other tensor."""
    if value is None or value.shape is None or len(value.shape) != _RANK:
        return None
    size = value.shape[_TOKENS]
    return size if isinstance(size, int) else None


def _tokenwise_cone(graph: ir.Graph, value: ir.Value, takers: set[ir.Node]) -> list[ir.Node]:
    """Return, in order, the nodes that work on each token alone and are read only by ``takers`` and each other."""
    cone: set[ir.Node] = set()
    for node in reversed(graph):
        (output, *others) = node.outputs
        readers = {reader for reader, _ in output.uses()}
        inside = bool(readers) and readers <= (cone | takers) and not output.is_graph_output()
        if inside and not others and _tokens(output) == _tokens(value) and _works_on_each_token(node):
            cone.add(node)
    return [node for node in graph if node in cone]


def _works_on_each_token(node: ir.Node) -> bool:
    if node.domain not in {"", "ai.onnx"}:
        return False
    if node.op_type == "MatMul":
        weight = constant(node.inputs[1])
        return weight is not None and weight.ndim == 2  # noqa: PLR2004 - a weight [width, width]
    if node.op_type == "LayerNormalization":
        parameters = [constant(value) for value in node.inputs[1:]]
        if any(array is None or array.ndim != 1 for array in parameters):
            return False  # a scale for each token, say
        return node.attributes.get_int("axis", -1) in {-1, _RANK - 1}
    return node.op_type in _TOKENWISE and all(
        constant(value) is not None or _tokens(value) == _tokens(node.outputs[0]) for value in node.inputs
    )


def _narrow(graph: ir.Graph, cone: Sequence[ir.Node], rows: NDArray[np.int64], tokens: int) -> None:
    """Give the nodes of the cone only some rows of what they read."""
    inside = {output for node in cone for output in node.outputs}
    taken: dict[ir.Value, ir.Value] = {}
    for node in cone:
        for index, value in enumerate(node.inputs):
            parameter = index > 0 and node.op_type not in _TOKENWISE
            if value is None or value in inside or parameter:
                continue
            if value not in taken:
                taken[value] = _rows_of(graph, value, rows, tokens)
            node.replace_input_with(index, taken[value])
        output = node.outputs[0]
        if output.shape is not None:
            output.shape = ir.Shape([output.shape[0], len(rows), output.shape[2]])


def _renumber(graph: ir.Graph, takers: Sequence[tuple[ir.Node, int]], rows: Sequence[int]) -> None:
    """Let the takers count among the rows that are left."""
    for node, row in takers:
        node.replace_input_with(1, initializer(graph, "token", np.array(rows.index(row), dtype=np.int64)))


def _rows_of(graph: ir.Graph, value: ir.Value, rows: NDArray[np.int64], tokens: int) -> ir.Value:
    """Return some rows of an operand: of a constant only where it has one for each token."""
    array = constant(value)
    if array is None:
        gather = ir.node("Gather", [value, initializer(graph, "tokens", rows)], {"axis": _TOKENS})
        (output,) = gather.outputs
        output.type = value.type
        if value.shape is not None:
            output.shape = ir.Shape([value.shape[0], len(rows), value.shape[2]])
        after = value.producer()
        if after is None:
            graph.insert_before(graph[0], gather)
        else:
            graph.insert_after(after, gather)
        return output
    if array.ndim in {2, _RANK} and array.shape[-2] == tokens != 1:
        return initializer(graph, f"{value.name}.tokens", np.take(array, rows, axis=-2))
    return value
