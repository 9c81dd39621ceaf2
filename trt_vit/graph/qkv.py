"""Queries, keys and values by one product, cut apart where that costs the compiler least.

TensorRT multiplies Q, K and V at once whatever the graph says, but then needs a kernel each to add their biases and
bring the heads to the front. With one bias, one Reshape to [batch, tokens, 3 * heads, d], one Transpose and a Split
along the heads, one kernel does all of it: for ViT-B/16 in fp16 102 kernels in place of 126. Cutting before the heads
are apart, or a Reshape to [batch, tokens, 3, heads, d] as timm and DINOv2 write it, gives 126 too. benchmarks/build.py
counts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trt_vit.graph.edit import constant, initializer, producer, scalar, sole_user

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_HEADS_FIRST = (0, 2, 1, 3)
"""[batch, tokens, heads, d] to [batch, heads, tokens, d]."""
_KEYS_TRANSPOSED = (0, 2, 3, 1)
"""The same, and the last two axes exchanged, as the right operand of queries times keys wants them."""
_LAST_TWO = (0, 1, 3, 2)
_STACKED = (2, 0, 3, 1, 4)
"""[batch, tokens, parts, heads, d] to [parts, batch, heads, tokens, d]."""


@dataclass(frozen=True)
class _Projection:
    """One of Q, K and V on its way from the tokens to the heads.

    Attributes:
        product: MatMul of the tokens [batch, tokens, width] and a constant weight [width, heads * d].
        bias: The Add after it, if there is one.
        reshape: Reshape to [batch, tokens, heads, d].
        transpose: Transpose that brings the heads to the front.
    """

    product: ir.Node
    bias: ir.Node | None
    reshape: ir.Node
    transpose: ir.Node

    @property
    def nodes(self) -> list[ir.Node]:
        return [node for node in (self.product, self.bias, self.reshape, self.transpose) if node is not None]

    @property
    def weight(self) -> NDArray[np.generic]:
        return _array(self.product.inputs[1])

    @property
    def bias_or_zeros(self) -> NDArray[np.generic]:
        if self.bias is None:
            return np.zeros(self.weight.shape[1], dtype=self.weight.dtype)
        return _array(_constant_operand(self.bias))

    @property
    def shape(self) -> tuple[int, ...]:
        """The Reshape's target; its first two entries may be -1 and 0."""
        return tuple(int(size) for size in _array(self.reshape.inputs[1]))


def merge_projections(model: ir.Model) -> int:
    """Multiply by Q's, K's and V's weights at once, wherever they read the same tokens.

    Two of the three are merged where the third reads something else (attention pooling). A bias that one of them lacks
    (BEiT's keys) becomes zeros.

    Returns:
        How many groups were merged.
    """
    groups: dict[tuple[ir.Value, tuple[int, ...]], list[_Projection]] = {}
    for node in model.graph:
        found = _projection(node)
        if found is not None and node.inputs[0] is not None:
            groups.setdefault((node.inputs[0], found.shape), []).append(found)
    merged = [group for group in groups.values() if len(group) > 1]
    for group in merged:
        _merge(model.graph, group)
    return len(merged)


def split_along_heads(model: ir.Model) -> int:
    """Cut a product that is merged already along its heads, not along an axis of its own.

    Returns:
        How many were changed.
    """
    found = 0
    for node in list(model.graph):
        if node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == _STACKED:
            found += _unstack(model.graph, node)
    return found


def fold_scales(model: ir.Model) -> int:
    """Fold a factor that is applied to a part of a merged product into that part of the weight and the bias.

    Returns:
        How many factors were folded.
    """
    found = 0
    for node in list(model.graph):
        if node.op_type == "Split":
            found += sum(_fold_scale(model.graph, node, part) for part in range(len(node.outputs)))
    return found


def _projection(product: ir.Node) -> _Projection | None:
    """Follow a MatMul with a constant weight to the Transpose of its heads, each step the only reader of the last."""
    if product.op_type != "MatMul" or (weight := constant(product.inputs[1])) is None or weight.ndim != 2:  # noqa: PLR2004
        return None
    after = sole_user(product.outputs[0])
    bias = after if after is not None and after.op_type == "Add" else None
    if bias is not None:
        operand = _constant_operand(bias)
        if operand is None or _array(operand).shape != weight.shape[1:]:
            return None
        after = sole_user(bias.outputs[0])
    if after is None or after.op_type != "Reshape":
        return None
    shape, transpose = constant(after.inputs[1]), sole_user(after.outputs[0])
    if shape is None or transpose is None or transpose.op_type != "Transpose":
        return None
    perm = tuple(transpose.attributes.get_ints("perm", ()))
    if perm not in {_HEADS_FIRST, _KEYS_TRANSPOSED} or shape[2] * shape[3] != weight.shape[1]:
        return None
    return _Projection(product, bias, after, transpose)


def _merge(graph: ir.Graph, group: Sequence[_Projection]) -> None:
    first = group[0]
    batch, tokens, heads, size = first.shape
    weight = np.concatenate([part.weight for part in group], axis=1)
    product = ir.node("MatMul", [first.product.inputs[0], initializer(graph, "qkv.weight", weight)])
    new = [product]
    if any(part.bias is not None for part in group):
        bias = np.concatenate([part.bias_or_zeros for part in group])
        new.append(ir.node("Add", [product.outputs[0], initializer(graph, "qkv.bias", bias)]))
    shape = initializer(graph, "qkv.shape", np.array([batch, tokens, heads * len(group), size], dtype=np.int64))
    new.append(ir.node("Reshape", [new[-1].outputs[0], shape]))
    new.append(ir.node("Transpose", [new[-1].outputs[0]], {"perm": _HEADS_FIRST}))
    new.append(_split(graph, new[-1].outputs[0], heads, len(group)))
    by: list[ir.Value] = []
    for part, value in zip(group, new[-1].outputs, strict=True):
        if tuple(part.transpose.attributes.get_ints("perm")) == _KEYS_TRANSPOSED:
            new.append(ir.node("Transpose", [value], {"perm": _LAST_TWO}))
            by.append(new[-1].outputs[0])
        else:
            by.append(value)
    graph.insert_before(first.product, new)
    for part, value in zip(group, by, strict=True):
        old = part.nodes
        ir.convenience.replace_nodes_and_values(graph, old[-1], old[::-1], [], [old[-1].outputs[0]], [value])


def _split(graph: ir.Graph, value: ir.Value, heads: int, parts: int) -> ir.Node:
    sizes = initializer(graph, "qkv.heads", np.full(parts, heads, dtype=np.int64))
    return ir.node("Split", [value, sizes], {"axis": 1}, num_outputs=parts)


def _unstack(graph: ir.Graph, transpose: ir.Node) -> int:
    """Rewrite Reshape [b, n, parts, heads, d] -> Transpose -> one Gather a part; 1 if it was that, 0 if not."""
    reshape = producer(transpose.inputs[0], "Reshape")
    shape = None if reshape is None else constant(reshape.inputs[1])
    if reshape is None or shape is None or sole_user(reshape.outputs[0]) is not transpose:
        return 0
    users = [node for node, _ in transpose.outputs[0].uses()]
    indices = [scalar(node.inputs[1]) for node in users if _takes_a_part(node)]
    batch, tokens, parts, heads, size = (int(entry) for entry in shape)
    if len(indices) != len(users) or not {int(index) for index in indices if index is not None} <= set(range(parts)):
        return 0
    target = initializer(graph, "qkv.shape", np.array([batch, tokens, parts * heads, size], dtype=np.int64))
    flat = ir.node("Reshape", [reshape.inputs[0], target])
    turned = ir.node("Transpose", [flat.outputs[0]], {"perm": _HEADS_FIRST})
    split = _split(graph, turned.outputs[0], heads, parts)
    graph.insert_before(reshape, [flat, turned, split])
    for node, index in zip(users, indices, strict=True):
        value = split.outputs[int(index or 0)]
        ir.convenience.replace_all_uses_with(node.outputs[0], value)
        value.shape, value.type = node.outputs[0].shape, node.outputs[0].type
        graph.remove(node, safe=True)
    graph.remove([transpose, reshape], safe=True)
    return 1


def _takes_a_part(node: ir.Node) -> bool:
    """Tell whether a node takes one part of stacked ones, by an index that is a scalar, so that the axis goes."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0 or node.outputs[0].is_graph_output():
        return False
    index = constant(node.inputs[1])
    return index is not None and index.ndim == 0


def _fold_scale(graph: ir.Graph, split: ir.Node, part: int) -> int:
    """Fold the factor on one part of MatMul -> Add -> Reshape -> Transpose -> Split; 1 if there was one, 0 if not."""
    scaled = sole_user(split.outputs[part])
    factor = scalar(_constant_operand(scaled)) if scaled is not None and scaled.op_type == "Mul" else None
    transpose = producer(split.inputs[0], "Transpose")
    reshape = producer(transpose.inputs[0], "Reshape") if transpose is not None else None
    sum_ = producer(reshape.inputs[0], "Add") if reshape is not None else None
    if (
        scaled is None
        or factor is None
        or transpose is None
        or reshape is None
        or split.attributes.get_int("axis") != 1
    ):
        return 0
    product = producer(_computed_operand(sum_) if sum_ is not None else reshape.inputs[0], "MatMul")
    chain = [node for node in (product, sum_, reshape, transpose) if node is not None]
    shape, sizes = constant(reshape.inputs[1]), constant(split.inputs[1]) if len(split.inputs) > 1 else None
    if product is None or sizes is None or shape is None or shape.size != len(_HEADS_FIRST):
        return 0
    if constant(product.inputs[1]) is None:
        return 0
    if any(sole_user(node.outputs[0]) is None for node in chain):
        return 0
    columns = _columns(sizes, part, int(shape[3]))
    _scale_columns(graph, product, 1, columns, factor)
    if sum_ is not None:
        _scale_columns(graph, sum_, _constant_index(sum_), columns, factor)
    ir.convenience.replace_all_uses_with(scaled.outputs[0], split.outputs[part])
    graph.remove(scaled, safe=True)
    return 1


def _columns(sizes: NDArray[np.generic], part: int, size: int) -> slice:
    """Return the columns of the weight that a part comes from: ``sizes`` heads a part, ``size`` columns a head."""
    end = int(sizes[: part + 1].sum())
    return slice((end - int(sizes[part])) * size, end * size)


def _scale_columns(graph: ir.Graph, node: ir.Node, index: int, columns: slice, factor: float) -> None:
    old = node.inputs[index]
    array = np.array(_array(old))
    array[..., columns] *= np.asarray(factor, dtype=array.dtype)
    node.replace_input_with(index, initializer(graph, old.name or "qkv", array) if old is not None else None)


def _array(value: ir.Value | None) -> NDArray[np.generic]:
    array = constant(value)
    if array is None:
        raise ValueError(f"{value} is not a constant")
    return array


def _constant_index(node: ir.Node) -> int:
    return 0 if constant(node.inputs[0]) is not None else 1


def _constant_operand(node: ir.Node) -> ir.Value | None:
    """Return the operand of a binary node that is a constant, or None where both are computed."""
    value = node.inputs[_constant_index(node)]
    return value if constant(value) is not None else None


def _computed_operand(node: ir.Node) -> ir.Value | None:
    return node.inputs[1 - _constant_index(node)]
