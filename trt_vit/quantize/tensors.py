"""What quantizing a graph is made of: a Q/DQ pair behind a tensor, numbers in the type of what they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trt_vit.graph.edit import free_name, initializer
from trt_vit.quantize.codes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trt_vit.quantize.codes import Code


def quantize_tensor(graph: ir.Graph, value: ir.Value, scale: float, number: Code) -> ir.Value:
    """Put a Q/DQ pair behind a tensor and return what comes out of it, which nothing reads yet."""
    scales = numbers(graph, f"{value.name}_scale", np.array(scale, np.float32), value)
    zero = initializer(graph, f"{value.name}_zero_point", np.zeros((), DTYPES[number]))
    codes = ir.Value(name=free_name(graph, f"{value.name}_{number}"), shape=value.shape, type=zero.type)
    result = like(graph, value, "dequantized")
    quantize = ir.node("QuantizeLinear", [value, scales, zero], outputs=[codes], name=f"quantize_{codes.name}")
    dequantize = ir.node("DequantizeLinear", [codes, scales, zero], outputs=[result], name=str(result.name))
    insert_behind(graph, value, [quantize, dequantize])
    return result


def like(graph: ir.Graph, value: ir.Value, what: str) -> ir.Value:
    """Return a tensor of the shape and type of another, not made by anything yet, whose name nothing else has."""
    return ir.Value(name=free_name(graph, f"{value.name}_{what}"), shape=value.shape, type=value.type)


def insert_behind(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Insert nodes where a tensor is known: behind the node that makes it, or first of all."""
    source = value.producer()
    if source is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(source, nodes)


def numbers(graph: ir.Graph, name: str, array: NDArray[np.float32], like: ir.Value) -> ir.Value:
    """Store scales, factors and biases in the type of the tensor that they are for."""
    half = like.dtype == ir.DataType.FLOAT16
    return initializer(graph, name, array.astype(np.float16) if half else array.astype(np.float32))
