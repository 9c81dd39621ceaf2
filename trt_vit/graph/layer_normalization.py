"""LayerNormalization as one node, of the nine that exporters write below operator set 17.

Compilers have a kernel for it that computes in float32 whatever the graph is cast to; the parts in fp16 overflow, as
the square of an activation above 255 does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trt_vit.graph.edit import (
    constant,
    initializer,
    is_number,
    producer,
    replace,
    scalar,
    sole_user,
    used_within,
    widened,
)
from trt_vit.graph.shapes import infer_shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray


_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""What LayerNormalization computes in float32; a float64 would lose digits."""


@dataclass
class _Normalization:
    """What was found: a normalization of ``x`` by ``nodes``, the last of which makes its output."""

    x: ir.Value
    epsilon: float
    nodes: list[ir.Node]
    scale: NDArray[np.generic] | None = None
    bias: NDArray[np.generic] | None = None

    @property
    def output(self) -> ir.Value:
        return self.nodes[-1].outputs[0]


def fuse_layer_normalization(model: ir.Model) -> int:
    """Replace the arithmetic of a normalization over the last axis by LayerNormalization, with its scale and bias.

    Mean and variance may be squared by Pow or Mul, and divided by Div, Reciprocal or a quotient of one. A part that
    something else reads keeps the whole as it is.

    Args:
        model: A model of opset 18 or later, which is changed.

    Returns:
        How many normalizations were replaced.
    """
    infer_shapes(model)
    count = 0
    for node in list(model.graph):
        found = _normalization(node) if node.graph is not None else None
        if found is None:
            continue
        _take_affine(found)
        if used_within(found.nodes, found.output) and not widened(found.x, found.nodes):
            count += _replace(model.graph, found)
    return count


def _normalization(node: ir.Node) -> _Normalization | None:
    """Match the node that divides by the standard deviation, and all before it."""
    for centered, deviation, inverting in _quotients(node):
        add = producer(deviation.inputs[0], "Add")
        subtract = producer(centered, "Sub")
        if add is None or subtract is None:
            continue
        for side in (0, 1):
            variance, epsilon = producer(add.inputs[1 - side], "ReduceMean"), scalar(add.inputs[side])
            square = None if variance is None else _square(variance.inputs[0], centered)
            mean, x = producer(subtract.inputs[1], "ReduceMean"), subtract.inputs[0]
            if variance is None or mean is None or square is None or epsilon is None or x is None:
                continue
            if mean.inputs[0] is x and _over_last_axis(mean) and _over_last_axis(variance) and x.dtype in _TYPES:
                return _Normalization(x, epsilon, [mean, subtract, square, variance, add, deviation, *inverting, node])
    return None


def _quotients(node: ir.Node) -> list[tuple[ir.Value, ir.Node, list[ir.Node]]]:
    """Numerator, Sqrt of the denominator and nodes that invert it, for each way to read a node as a quotient."""
    if node.domain != "" or node.op_type not in {"Div", "Mul"} or None in node.inputs:
        return []
    one, other = node.inputs
    found = []
    if node.op_type == "Div":
        root = producer(other, "Sqrt")
        return [(one, root, [])] if one is not None and root is not None else []
    for numerator, factor in ((one, other), (other, one)):
        inverse = producer(factor, "Reciprocal") or producer(factor, "Div")
        if inverse is None or (inverse.op_type == "Div" and not is_number(inverse.inputs[0], 1.0)):
            continue
        root = producer(inverse.inputs[-1], "Sqrt")
        if root is not None and numerator is not None:
            found.append((numerator, root, [inverse]))
    return found


def _square(value: ir.Value | None, base: ir.Value) -> ir.Node | None:
    power, product = producer(value, "Pow"), producer(value, "Mul")
    if power is not None and power.inputs[0] is base and is_number(power.inputs[1], 2.0):
        return power
    return product if product is not None and product.inputs[0] is base and product.inputs[1] is base else None


def _over_last_axis(node: ir.Node) -> bool:
    given, axes = node.inputs[0], constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None or given.shape is None or axes is None or node.attributes.get_int("keepdims", 1) != 1:
        return False
    return axes.tolist() in ([-1], [len(given.shape) - 1])


def _take_affine(found: _Normalization) -> None:
    """Add the multiplication by a scale and the addition of a bias that follow, if they are per channel."""
    for kind in ("Mul", "Add"):
        user = sole_user(found.output)
        if user is None or user.domain != "" or user.op_type != kind:
            continue
        array = _per_channel(user.inputs[1 if user.inputs[0] is found.output else 0], found.x)
        if array is None:
            continue
        if kind == "Mul":
            found.scale = array
        else:
            found.bias = array
        found.nodes.append(user)


def _per_channel(value: ir.Value | None, x: ir.Value) -> NDArray[np.generic] | None:
    array = constant(value)
    if array is None or x.shape is None or not 0 < array.ndim <= len(x.shape):
        return None
    return array.reshape(-1) if array.size == array.shape[-1] == x.shape[-1] else None


def _replace(graph: ir.Graph, found: _Normalization) -> bool:
    channels = None if found.x.shape is None else found.x.shape[-1]
    if found.x.dtype is None or not isinstance(channels, int):
        return False
    name = found.output.name or "normalized"
    scale = np.ones(channels, found.x.dtype.numpy()) if found.scale is None else found.scale
    inputs = [found.x, initializer(graph, f"{name}_scale", scale)]
    if found.bias is not None:
        inputs.append(initializer(graph, f"{name}_bias", found.bias))
    attributes = {"axis": -1, "epsilon": found.epsilon, "stash_type": 1}
    replace(graph, found.nodes, ir.node("LayerNormalization", inputs, attributes), found.output)
    return True
