"""How many attentions a graph has, whatever its form: what a compiler can at best fuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_THROUGH = frozenset({"Cast", "DequantizeLinear", "Dropout", "Identity", "IsNaN", "QuantizeLinear", "Where"})
"""What may stand between a softmax and the product that reads it."""
_BETWEEN = frozenset({"Add", "Div", "MatMul", "Mul", "Reshape", "Transpose"})
"""What may stand between the product of queries and keys, that itself included, and the softmax that reads it."""


def count_attentions(model: ir.Model) -> int:
    """Return how many softmaxes of a graph weight the rows of a product, Attention nodes included."""
    return sum(
        node.op_type == "Attention" or (node.op_type == "Softmax" and _reaches_product(node.outputs[0]))
        for node in model.graph
    )


def product_before(scores: ir.Value | None) -> ir.Node | None:
    """Follow what a softmax reads up to the product of queries and keys, through masks, biases, views and scales."""
    node = None if scores is None else scores.producer()
    if node is None or node.domain != "" or node.op_type not in _BETWEEN:
        return None
    if node.op_type == "MatMul":
        return node
    operands = node.inputs if node.op_type in {"Add", "Mul"} else node.inputs[:1]
    return next((found for operand in operands if (found := product_before(operand)) is not None), None)


def _reaches_product(value: ir.Value) -> bool:
    return any(
        reader.op_type == "MatMul" or (reader.op_type in _THROUGH and _reaches_product(reader.outputs[0]))
        for reader, _ in value.uses()
    )
