"""One form for nodes that only move elements: Reshape to a constant shape, Transpose, and Expand to a computed shape.

Each rule takes a node of the default domain and the shapes of its graph, and returns the tensor that the node's first
output equals: one that is there already, or that of a simpler node put before it. None if there is nothing to change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trt_vit.graph.edit import constant, initializer, producer
from trt_vit.graph.integers import Dim, is_static

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trt_vit.graph.integers import Size
    from trt_vit.graph.shapes import Shapes

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that keep the elements in their order."""


def as_reshape(node: ir.Node, known: Shapes) -> ir.Value | None:
    """Make one Reshape to a constant shape, the batch -1, of one or several of VIEWS; none if they change nothing."""
    output, given = node.outputs[0], node.inputs[0]
    sizes = known.sizes(output)
    if sizes is None or given is None or output in known.integers:
        return None
    source = _before_views(given)
    if known.sizes(source) == sizes:
        return source
    target = [-1 if isinstance(size, Dim) else size for size in sizes]
    if target.count(-1) > 1 or 0 in target:
        return None
    if source is given and node.op_type == "Reshape" and not node.attributes.get_int("allowzero", 0):
        there = constant(node.inputs[1])
        if there is not None and there.tolist() == target:
            return None
    return put_before(node, "Reshape", [source, _integers(node, target)], known)


def as_transpose(node: ir.Node, known: Shapes) -> ir.Value | None:
    """Make one Transpose of a transposition within a block of leading axes that is merged before and split after it."""
    inner = producer(node.inputs[0], "Transpose")
    merge = None if inner is None else producer(inner.inputs[0], "Reshape")
    if inner is None or merge is None or merge.inputs[0] is None:
        return None
    whole, merged, after = (known.sizes(value) for value in (merge.inputs[0], merge.outputs[0], node.outputs[0]))
    order = permutation(inner, known)
    if whole is None or merged is None or after is None or order is None or order[0] != 0:
        return None
    leading = len(whole) - len(merged) + 1
    split = (*whole[:leading], *(merged[axis] for axis in order[1:]))
    if leading < 1 or whole[leading:] != merged[1:] or after != split:
        return None
    perm = [*range(leading), *(axis + leading - 1 for axis in order[1:])]
    return put_before(node, "Transpose", [merge.inputs[0]], known, perm=perm)


def merge_transposes(node: ir.Node, known: Shapes) -> ir.Value | None:
    """Make one Transpose of two in a row, none if the axes end where they began."""
    first, order = producer(node.inputs[0], "Transpose"), permutation(node, known)
    if order is not None and order == sorted(order):
        return node.inputs[0]
    inner = None if first is None else permutation(first, known)
    if first is None or first.inputs[0] is None or inner is None or order is None:
        return None
    perm = [inner[axis] for axis in order]
    if perm == sorted(perm):
        return first.inputs[0]
    return put_before(node, "Transpose", [first.inputs[0]], known, perm=perm)


def as_expand(node: ir.Node, known: Shapes) -> ir.Value | None:
    """Let an Expand to the batch read it from the input of the graph; none if the shape is unchanged."""
    given, sizes = node.inputs[0], known.sizes(node.outputs[0])
    if given is None or sizes is None or node.graph is None:
        return None
    if known.sizes(given) == sizes:
        return given
    if is_static(sizes) or _is_plain(node.inputs[1]):
        return None
    parts = [_runtime_size(node, size, known) if isinstance(size, Dim) else _integers(node, [size]) for size in sizes]
    if any(part is None for part in parts):
        return None
    shape = parts[0]
    if len(parts) > 1:
        concat = ir.node("Concat", parts, {"axis": 0})
        node.graph.insert_before(node, concat)
        shape = concat.outputs[0]
    return put_before(node, "Expand", [given, shape], known)


def permutation(node: ir.Node, known: Shapes) -> list[int] | None:
    """Return the axes of a Transpose's input in the order of its output; None if its rank is not known."""
    perm = node.attributes.get_ints("perm", None)
    if perm is not None:
        return list(perm)
    sizes = known.sizes(node.inputs[0])
    return None if sizes is None else list(reversed(range(len(sizes))))


def _before_views(value: ir.Value) -> ir.Value:
    node = value.producer()
    while node is not None and node.domain == "" and node.op_type in VIEWS and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _is_plain(value: ir.Value | None) -> bool:
    """Say whether a shape is read from the graph's input and completed with constants, and nothing else."""
    concat = producer(value, "Concat")
    parts = [value] if concat is None else list(concat.inputs)
    for part in parts:
        shape = producer(part, "Shape")
        if constant(part) is None and (
            shape is None or shape.inputs[0] is None or not shape.inputs[0].is_graph_input()
        ):
            return False
    return True


def _runtime_size(node: ir.Node, size: Dim, known: Shapes) -> ir.Value | None:
    """Read one dimension of an input of the graph when it runs, as a vector of one number."""
    for value in () if node.graph is None else node.graph.inputs:
        sizes = known.sizes(value) or ()
        if size in sizes and node.graph is not None:
            axis = sizes.index(size)
            shape = ir.node("Shape", [value], {"start": axis, "end": axis + 1})
            node.graph.insert_before(node, shape)
            return shape.outputs[0]
    return None


def _integers(node: ir.Node, numbers: Sequence[Size]) -> ir.Value:
    return weight_before(node, "shape", np.array(numbers, dtype=np.int64))


def weight_before(node: ir.Node, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Add a constant to the graph that a node is in."""
    if not isinstance(node.graph, ir.Graph):
        raise TypeError(f"{node.op_type} is not a node of a graph")
    return initializer(node.graph, name, array)


def put_before(
    node: ir.Node, kind: str, inputs: Sequence[ir.Value | None], known: Shapes, **attributes: Sequence[int]
) -> ir.Value:
    """Put a node before another, with an output like its first one."""
    old = node.outputs[0]
    made = ir.node(kind, inputs, attributes)
    new = made.outputs[0]
    new.shape, new.type = old.shape, old.type
    known.of[new] = known.of[old]
    if node.graph is not None:
        node.graph.insert_before(node, made)
    return new
