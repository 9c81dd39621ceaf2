"""Queries, keys and values that are one product already, but stacked along an axis of their own.

timm and DINOv2's own code write Reshape to [batch, tokens, 3, heads, d], a Transpose that brings the 3 to the front,
and take the parts one by one. Cut along the heads as trt_vit.graph.qkv does it, they cost the compiler less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trt_vit.graph.edit import constant, initializer, producer, sole_user
from trt_vit.graph.fold import fold
from trt_vit.graph.qkv import HEADS_FIRST, split_heads

if TYPE_CHECKING:
    from collections.abc import Sequence

_STACKED = (2, 0, 3, 1, 4)
"""[batch, tokens, parts, heads, d] to [parts, batch, heads, tokens, d]."""


@dataclass(frozen=True)
class _Part:
    """A tensor that is one of the stacked parts.

    Attributes:
        value: It, [batch, heads, tokens, d], or with a first axis of 1.
        index: Which part.
        has_axis: Whether the axis of the parts is left.
    """

    value: ir.Value
    index: int
    has_axis: bool


def split_along_heads(model: ir.Model) -> int:
    """Cut a product that is merged already along its heads, not along an axis of its own.

    The parts may be taken by Gather, Slice or Split. Where these leave the first axis, a Squeeze or Reshape has to
    follow that takes it away.

    Returns:
        How many were changed.
    """
    found = 0
    for node in list(model.graph):
        if node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == _STACKED:
            found += _unstack(model.graph, node)
    if found:
        fold(model)  # a Reshape that did more than taking the axis away may be idle now
    return found


def _unstack(graph: ir.Graph, transpose: ir.Node) -> int:
    """Rewrite Reshape [b, n, parts, heads, d] -> Transpose -> parts; 1 if it was that, 0 if not."""
    reshape, stacked = producer(transpose.inputs[0], "Reshape"), transpose.outputs[0]
    shape = None if reshape is None else constant(reshape.inputs[1])
    if reshape is None or shape is None or sole_user(reshape.outputs[0]) is not transpose:
        return 0
    batch, tokens, parts, heads, size = (int(entry) for entry in shape)
    if min(parts, heads, size) < 1 or stacked.is_graph_output():
        return 0
    readers = [node for node, _ in stacked.uses()]
    taken = [_parts(node, parts) for node in readers]
    found = [part for group in taken for part in group]
    if not all(taken) or not all(_can_be_cut(part) for part in found):
        return 0
    target = initializer(graph, "qkv.shape", np.array([batch, tokens, parts * heads, size], dtype=np.int64))
    flat = ir.node("Reshape", [reshape.inputs[0], target])
    turned = ir.node("Transpose", [flat.outputs[0]], {"perm": HEADS_FIRST})
    split = split_heads(graph, turned.outputs[0], heads, parts)
    graph.insert_before(reshape, [flat, turned, split])
    for part in found:
        _read_instead(graph, part, split.outputs[part.index], (heads, tokens, size))
    graph.remove([*readers, transpose, reshape], safe=True)
    return 1


def _parts(node: ir.Node, parts: int) -> list[_Part]:
    """Return the parts that a reader of stacked ones takes; none if it does anything but taking one, or all, apart."""
    output = node.outputs[0]
    if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
        index = constant(node.inputs[1])
        if index is not None and index.size == 1 and index.ndim < 2:  # noqa: PLR2004 - more axes would stay
            return [_Part(output, int(index.reshape(-1)[0]) % parts, has_axis=index.ndim == 1)]
    if node.op_type == "Split" and node.attributes.get_int("axis", 0) == 0 and len(node.outputs) == parts:
        sizes = constant(node.inputs[1]) if len(node.inputs) > 1 else np.ones(1)
        if sizes is not None and np.all(np.equal(sizes, 1)):
            return [_Part(value, index, has_axis=True) for index, value in enumerate(node.outputs)]
    if node.op_type == "Slice":
        rows = _sliced_rows(node, parts)
        return [_Part(output, rows[0], has_axis=True)] if len(rows) == 1 else []
    return []


def _sliced_rows(node: ir.Node, parts: int) -> Sequence[int]:
    """Return which rows a Slice along the first axis takes, or none where that is not known."""
    start, end, axes = (constant(value) for value in (*node.inputs[1:4], *[None] * 3)[:3])
    step = constant(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1)  # noqa: PLR2004 - it is optional
    if start is None or end is None or axes is None or step is None or axes.tolist() != [0]:
        return ()
    return range(parts)[int(start[0]) : int(end[0]) : int(step[0])]


def _can_be_cut(part: _Part) -> bool:
    if part.value.is_graph_output():
        return False
    return not part.has_axis or all(_drops_axis(node) for node, _ in part.value.uses())


def _drops_axis(node: ir.Node) -> bool:
    """Tell whether a reader gives the same whether its input has a first axis of 1 or not."""
    target = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if target is None or node.outputs[0].is_graph_output():
        return False
    if node.op_type == "Squeeze":
        return bool(target.tolist() == [0])
    return node.op_type == "Reshape" and 0 not in target  # a 0 copies a size of the input by its axis


def _read_instead(graph: ir.Graph, part: _Part, new: ir.Value, sizes: tuple[int, ...]) -> None:
    """Let the readers of a part read another tensor of these sizes after the batch; idle ones go."""
    if not part.has_axis:
        _replace(part.value, new)
    for node in [node for node, _ in part.value.uses()]:
        target = constant(node.inputs[1])
        if node.op_type == "Squeeze" or (target is not None and tuple(target[1:]) == sizes):
            _replace(node.outputs[0], new)
            graph.remove(node, safe=True)
        else:
            node.replace_input_with(0, new)


def _replace(old: ir.Value, new: ir.Value) -> None:
    old.replace_all_uses_with(new)
    new.shape, new.type = old.shape, old.type
