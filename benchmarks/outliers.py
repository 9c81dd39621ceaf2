"""Outlier channels as large models have them, put into a graph that has none, its answers kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trt_vit.graph.edit import constant, initializer
from trt_vit.quantize.linear import linear_layers

if TYPE_CHECKING:
    import onnx_ir as ir

CHANNELS = 3
FACTOR = 50.0


def add_outliers(model: ir.Model) -> None:
    """Multiply some channels of every LayerNormalization and fc2 input by 50, and divide the weights behind by it.

    A GELU of large numbers is the number or zero, so behind one the answers stay nearly, not exactly, what they were.

    Args:
        model: A graph rewritten by ``trt_vit.graph.rewrite``; it is changed.
    """
    generator = np.random.default_rng(0)
    for layer in linear_layers(model):
        source = layer.activation.producer()
        if source is None or layer.kind == "Conv" or source.op_type not in {"Gelu", "LayerNormalization"}:
            continue
        inputs = 1 - layer.output_axis
        channels = generator.choice(layer.weight_shape[inputs], CHANNELS, replace=False)
        if source.op_type == "LayerNormalization":
            places = [(source, 1, -1), (source, 2, -1)]
        else:
            add = source.inputs[0].producer() if source.inputs[0] is not None else None
            product = None if add is None or add.inputs[0] is None else add.inputs[0].producer()
            if add is None or product is None or constant(add.inputs[1]) is None or product.op_type != "MatMul":
                continue
            places = [(add, 1, -1), (product, 1, -1)]
        for node, index, axis in places:
            _multiply(model.graph, node, index, axis, {int(channel): FACTOR for channel in channels})
        _multiply(model.graph, layer.node, 1, inputs, {int(channel): 1 / FACTOR for channel in channels})


def _multiply(graph: ir.Graph, node: ir.Node, index: int, axis: int, factors: dict[int, float]) -> None:
    array = np.array(constant(node.inputs[index]), dtype=np.float32)
    for channel, factor in factors.items():
        np.moveaxis(array, axis, -1)[..., channel] *= np.float32(factor)
    node.replace_input_with(index, initializer(graph, f"{node.name}_outliers_{index}", array))
