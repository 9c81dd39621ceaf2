"""How many attentions a graph has, whatever its form: what a compiler can at best fuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_THROUGH = frozenset({"Cast", "DequantizeLinear", "Dropout", "Identity", "IsNaN", "QuantizeLinear", "Where"})
"""What may stand between a softmax and the product that reads it."""


def count_attentions(model: ir.Model) -> int:
    """Return how many softmaxes of a graph weight the rows of a product, Attention nodes included."""
    return sum(
        node.op_type == "Attention" or (node.op_type == "Softmax" and _reaches_product(node.outputs[0]))
        for node in model.graph
    )


def _reaches_product(value: ir.Value) -> bool:
    return any(
        reader.op_type == "MatMul" or (reader.op_type in _THROUGH and _reaches_product(reader.outputs[0]))
        for reader, _ in value.uses()
    )
