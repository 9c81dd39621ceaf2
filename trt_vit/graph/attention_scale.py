"""The scale of attention, 1/sqrt(head size), on the queries before their product with the keys, or in their weights.

softmax(c * Q K^T) = softmax((c * Q) K^T). Scaled before, the scores stay within fp16, and TensorRT's fused attention in
INT8 wants it so. As queries come from a linear layer, c * (x W + b) = x (c * W) + c * b, which costs nothing at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trt_vit.graph.attentions import product_before
from trt_vit.graph.edit import constant, initializer, producer, scalar, sole_user

if TYPE_CHECKING:
    from collections.abc import Iterator

_VIEWS = ("Reshape", "Transpose")
_Scale = tuple[ir.Node, ir.Value, float]
"""A node that multiplies by a number, what it multiplies, and the number."""


@dataclass
class _Path:
    """From an operand of a product upwards, through views and scales that nothing else reads.

    Attributes:
        top: What the path begins with.
        scales: The scales on it.
    """

    top: ir.Value
    scales: list[_Scale] = field(default_factory=list)


def scale_queries(model: ir.Model) -> int:
    """Scale queries instead of scores or keys, and where they come straight from a linear layer, its weights instead.

    Weights are multiplied in float32 only: in fp16 the small ones would lose digits. Attention whose product reads
    quantized tensors, and scales that are not one number, stay.

    Args:
        model: A model, which is changed.

    Returns:
        How many attentions were changed.
    """
    return sum(_scale(model.graph, product) for product in list(_attention_products(model.graph)))


def _attention_products(graph: ir.Graph) -> Iterator[ir.Node]:
    """The product of queries and keys before each Softmax."""
    for node in graph:
        if node.domain == "" and node.op_type == "Softmax":
            product = product_before(node.inputs[0])
            if product is not None and all(constant(value) is None for value in product.inputs):
                yield product


def _scale(graph: ir.Graph, product: ir.Node) -> bool:
    queries, keys = product.inputs
    if queries is None or keys is None or queries is keys:
        return False
    query_path, key_path = _path(queries), _path(keys)
    if any(producer(path.top, "DequantizeLinear") is not None for path in (query_path, key_path)):
        return False
    user = sole_user(product.outputs[0])
    after = None if user is None else _as_scale(user)
    elsewhere = [*key_path.scales, *([after] if after is not None and after[1] is product.outputs[0] else [])]
    scales = [*elsewhere, *query_path.scales]
    layer = _linear(query_path.top)
    if not scales or (layer is None and not elsewhere and len(scales) == 1):
        return False
    total = math.prod(number for _, _, number in scales)
    kind = next(array.dtype for value in scales[0][0].inputs if (array := constant(value)) is not None)
    for node, scaled, _ in scales:
        node.outputs[0].replace_all_uses_with(scaled)
        graph.remove(node, safe=True)
    if layer is not None:
        _multiply_weights(graph, layer, total)
        return True
    number = initializer(graph, "query_scale", np.array(total, dtype=kind))
    multiply = ir.node("Mul", [product.inputs[0], number])
    multiply.outputs[0].shape, multiply.outputs[0].type = queries.shape, queries.type
    graph.insert_before(product, multiply)
    product.replace_input_with(0, multiply.outputs[0])
    return True


def _path(value: ir.Value) -> _Path:
    path = _Path(value)
    while (node := path.top.producer()) is not None and sole_user(path.top) is not None and node.domain == "":
        scale = _as_scale(node)
        if scale is not None:
            path.scales.append(scale)
            path.top = scale[1]
        elif node.op_type in _VIEWS and node.inputs[0] is not None:
            path.top = node.inputs[0]
        else:
            break
    return path


def _as_scale(node: ir.Node) -> _Scale | None:
    """Read a node as the multiplication of a computed tensor by one number that leaves its shape alone."""
    if node.domain != "" or node.op_type not in {"Div", "Mul"} or node.outputs[0].is_graph_output():
        return None
    for side in (1,) if node.op_type == "Div" else (0, 1):
        scaled, number, array = node.inputs[1 - side], scalar(node.inputs[side]), constant(node.inputs[side])
        if scaled is None or not number or array is None or constant(scaled) is not None:
            continue
        rank = 2 if scaled.shape is None else len(scaled.shape)
        if array.ndim <= rank:
            return node, scaled, 1 / number if node.op_type == "Div" else number
    return None


def _linear(value: ir.Value) -> list[tuple[ir.Node, int]] | None:
    """Find the float32 weight and the bias of the linear layer that makes a tensor: nodes and which of their inputs."""
    node = value.producer()
    if node is None or sole_user(value) is None or node.domain != "":
        return None
    places: list[tuple[ir.Node, int]] = []
    if node.op_type == "Add":
        side = 0 if constant(node.inputs[0]) is not None else 1
        places.append((node, side))
        product = node.inputs[1 - side]
        node = producer(product, "MatMul")
        if product is None or node is None or sole_user(product) is None:
            return None
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:  # noqa: PLR2004  # has a bias
        places.append((node, 2))
    if node.op_type not in {"Gemm", "MatMul"}:
        return None
    places.append((node, 1))
    arrays = [constant(layer.inputs[side]) for layer, side in places]
    return places if all(array is not None and array.dtype == np.float32 for array in arrays) else None


def _multiply_weights(graph: ir.Graph, layer: list[tuple[ir.Node, int]], number: float) -> None:
    for node, side in layer:
        value, array = node.inputs[side], constant(node.inputs[side])
        if value is not None and array is not None:
            scaled = (array.astype(np.float64) * number).astype(array.dtype)
            node.replace_input_with(side, initializer(graph, f"{value.name}_scaled", scaled))
