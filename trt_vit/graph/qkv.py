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

HEADS_FIRST = (0, 2, 1, 3)
"""[batch, tokens, heads, d] to [batch, heads, tokens, d]."""
_KEYS_TRANSPOSED = (0, 2, 3, 1)
"""The same, and the last two axes exchanged, as the right operand of queries times keys wants them."""
_LAST_TWO = (0, 1, 3, 2)


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
    bias = _reader(product, "Add")
    if bias is not None:
        operand = _constant_operand(bias)
        if operand is None or _array(operand).shape != weight.shape[1:]:
            return None
    reshape = _reader(bias or product, "Reshape")
    transpose = None if reshape is None else _reader(reshape, "Transpose")
    if reshape is None or transpose is None or _perm(transpose) not in {HEADS_FIRST, _KEYS_TRANSPOSED}:
        return None
    if _columns_per_head(reshape, weight) is None:
        return None
    return _Projection(product, bias, reshape, transpose)


def _reader(node: ir.Node, kind: str) -> ir.Node | None:
    """Return the only node that reads what a node computes, if it is of this operator and reads it first or adds it."""
    reader = sole_user(node.outputs[0])
    if reader is None or reader.op_type != kind or reader.domain != "":
        return None
    return reader if kind == "Add" or reader.inputs[0] is node.outputs[0] else None


def _perm(transpose: ir.Node) -> tuple[int, ...]:
    return tuple(transpose.attributes.get_ints("perm", ()))


def _columns_per_head(reshape: ir.Node, weight: NDArray[np.generic]) -> int | None:
    """Return d of a Reshape to [batch, tokens, heads, d], if heads and d are numbers that the weight's columns are."""
    shape = constant(reshape.inputs[1])
    if shape is None or shape.size != len(HEADS_FIRST) or min(shape[2:]) < 1:
        return None
    heads, size = (int(entry) for entry in shape[2:])
    return size if heads * size == weight.shape[-1] else None


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
    new.append(ir.node("Transpose", [new[-1].outputs[0]], {"perm": HEADS_FIRST}))
    new.append(split_heads(graph, new[-1].outputs[0], heads, len(group)))
    by: list[ir.Value] = []
    for part, value in zip(group, new[-1].outputs, strict=True):
        if _perm(part.transpose) == _KEYS_TRANSPOSED:
            new.append(ir.node("Transpose", [value], {"perm": _LAST_TWO}))
            by.append(new[-1].outputs[0])
        else:
            by.append(value)
    graph.insert_before(first.product, new)
    for part, value in zip(group, by, strict=True):
        old = part.nodes
        ir.convenience.replace_nodes_and_values(graph, old[-1], old[::-1], [], [old[-1].outputs[0]], [value])


def split_heads(graph: ir.Graph, value: ir.Value, heads: int, parts: int) -> ir.Node:
    """Make the node that cuts [batch, parts * heads, tokens, d] into its parts, with a weight for their sizes."""
    sizes = initializer(graph, "qkv.heads", np.full(parts, heads, dtype=np.int64))
    return ir.node("Split", [value, sizes], {"axis": 1}, num_outputs=parts)


def _fold_scale(graph: ir.Graph, split: ir.Node, part: int) -> int:
    """Fold the factor on one part of MatMul -> Add -> Reshape -> Transpose -> Split; 1 if there was one, 0 if not."""
    scaled = sole_user(split.outputs[part])
    if scaled is None or scaled.op_type != "Mul" or scaled.domain != "" or scaled.outputs[0].is_graph_output():
        return 0
    operand, layer = _constant_operand(scaled), _layer_before(split)
    factor = scalar(operand)
    if factor is None or layer is None or _array(operand).ndim > len(HEADS_FIRST):  # more axes would change the shape
        return 0
    product, bias, size = layer
    columns = _columns(_array(split.inputs[1]), part, size)
    _scale_columns(graph, product, 1, columns, factor)
    if bias is not None:
        _scale_columns(graph, bias, _constant_index(bias), columns, factor)
    scaled.outputs[0].replace_all_uses_with(split.outputs[part])
    graph.remove(scaled, safe=True)
    return 1


def _layer_before(split: ir.Node) -> tuple[ir.Node, ir.Node | None, int] | None:
    """Return MatMul and Add before a Split along the heads, if nothing reads what is between, and columns a head."""
    transpose = producer(split.inputs[0], "Transpose")
    reshape = producer(transpose.inputs[0], "Reshape") if transpose is not None else None
    if transpose is None or reshape is None or split.attributes.get_int("axis", 0) != 1:
        return None
    bias = producer(reshape.inputs[0], "Add")
    product = producer(reshape.inputs[0] if bias is None else _computed_operand(bias), "MatMul")
    weight = None if product is None else constant(product.inputs[1])
    if product is None or weight is None or len(split.inputs) < 2 or constant(split.inputs[1]) is None:  # noqa: PLR2004
        return None
    chain = [node for node in (product, bias, reshape, transpose) if node is not None]
    size = _columns_per_head(reshape, weight)
    if size is None or _perm(transpose) != HEADS_FIRST or any(sole_user(node.outputs[0]) is None for node in chain):
        return None
    if bias is not None:
        operand = _constant_operand(bias)  # None where a sum of two products was found, such as LoRA's
        if operand is None or _array(operand).shape[-1:] != weight.shape[-1:]:
            return None
    return product, bias, size


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
