"""Explicit quantization: the QuantizeLinear and DequantizeLinear pairs that make a compiler multiply codes of 8 bits.

Activations are quantized symmetrically with one scale for a tensor. Weights are stored as codes, a byte for each: FP8
with one scale for a tensor, INT8 with one for each output channel. Biases are not quantized.

The INT8 scales of a matrix are split in two: one scalar in DequantizeLinear, and a factor for each channel, at most 1,
by which a Mul after the product multiplies. Given a vector in DequantizeLinear and fp16, TensorRT for RTX 1.7 builds a
product that writes its bare sums of codes as fp16, and multiplies them by the scales in the next kernel: sums beyond
65504, which are common, are infinite by then. With a scalar the product itself multiplies by the scales, in fp32. The
kernels are as many. A convolution has its sums in fp32 and so keeps the vector.

A shift and scale of the channels before the pair go into the LayerNormalization that makes the tensor, where there is
one. Elsewhere they are a Mul and an Add, which compilers compute with the pair, in the kernel before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trt_vit.graph.edit import constant, free_name, initializer, producer, sole_user
from trt_vit.quantize.attention import attention_behind, quantize_attention
from trt_vit.quantize.codes import activation_scale
from trt_vit.quantize.solve import BIAS
from trt_vit.quantize.tensors import insert_behind, like, numbers, quantize_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from trt_vit.quantize.equalize import Operand
    from trt_vit.quantize.solve import GroupCodes, LayerCodes

FACTORS = "factors"
"""Behind a layer's name and an underscore, this is the name of the node that multiplies by its factors."""
_NORMALIZATION_SCALE = 1
_NORMALIZATION_BIAS = 2


def place(model: ir.Model, groups: Iterable[GroupCodes]) -> None:
    """Quantize the operands of some groups of layers, in place.

    Args:
        model: The graph that the layers were found in, or a copy or a part of it: they are found by name. Opset 19 or
            later, in fp32, or in fp16 where its weights came so.
        groups: What they become.
    """
    nodes = {node.name or str(node.outputs[0].name): node for node in model.graph}
    for group in groups:
        members = {name: nodes[name] for name in group.layers}
        first = next(iter(members.values()))
        axis = 1 if first.op_type == "Conv" else -1
        value = _operand_of(first)
        attention = None if group.attention is None else attention_behind(value)
        moved = _equalize(model.graph, value, group.operand, list(members.values()), axis)
        dequantized = quantize_tensor(
            model.graph, moved, float(activation_scale(group.operand.amax, group.number)), group.number
        )
        for name, node in members.items():
            node.replace_input_with(0, dequantized)
            _replace_weight(model.graph, node, group.layers[name])
        if attention is not None:
            quantize_attention(model.graph, attention, group.attention or {})


def _equalize(graph: ir.Graph, value: ir.Value, operand: Operand, readers: list[ir.Node], axis: int) -> ir.Value:
    """Shift and scale the channels of a tensor for its readers, and return the tensor to quantize."""
    if operand.shift is None and operand.scale is None:
        return value
    shape = (-1, 1, 1) if axis == 1 else (-1,)
    inverse = None if operand.scale is None else np.reciprocal(operand.scale).reshape(shape)
    offset = None if operand.shift is None else operand.apply(np.zeros_like(operand.shift))
    if _fold_into_normalization(graph, value, inverse, offset, readers):
        return value
    nodes = []
    moved = value
    for kind, array in (("Mul", inverse), ("Add", None if offset is None else offset.reshape(shape))):
        if array is not None:
            result = like(graph, value, "scaled" if kind == "Mul" else "centred")
            number = numbers(graph, f"{result.name}_by", array, value)
            nodes.append(ir.node(kind, [moved, number], outputs=[result], name=str(result.name)))
            moved = result
    insert_behind(graph, value, nodes)
    return moved


def _fold_into_normalization(
    graph: ir.Graph,
    value: ir.Value,
    inverse: NDArray[np.float32] | None,
    offset: NDArray[np.float32] | None,
    readers: list[ir.Node],
) -> bool:
    """Let a LayerNormalization give out the tensor shifted and scaled, if nothing else reads it."""
    node = producer(value, "LayerNormalization")
    if node is None or value.is_graph_output() or any(user not in readers for user, _ in value.uses()):
        return False
    gamma = constant(node.inputs[_NORMALIZATION_SCALE])
    given = node.inputs[_NORMALIZATION_BIAS] if len(node.inputs) > _NORMALIZATION_BIAS else None
    beta = constant(given)
    if gamma is None or gamma.ndim != 1 or (given is not None and (beta is None or beta.ndim != 1)):
        return False
    factor = np.float32(1) if inverse is None else inverse
    scaled = gamma.astype(np.float32) * factor
    moved = (np.float32(0) if beta is None else beta.astype(np.float32) * factor) + (0 if offset is None else offset)
    node.replace_input_with(_NORMALIZATION_SCALE, numbers(graph, f"{value.name}_gamma", scaled, value))
    if given is not None or offset is not None:
        node.resize_inputs(_NORMALIZATION_BIAS + 1)
        node.replace_input_with(_NORMALIZATION_BIAS, numbers(graph, f"{value.name}_beta", np.asarray(moved), value))
    return True


def _replace_weight(graph: ir.Graph, node: ir.Node, layer: LayerCodes) -> None:
    """Give a layer its weight as codes, and put its factors and what is added to its bias behind it."""
    value = _operand_of(node, 1)
    stored = initializer(graph, f"{value.name}_codes", layer.codes)
    scale = numbers(graph, f"{value.name}_scale", layer.scale, value)
    result = like(graph, value, "dequantized")
    result.shape = ir.Shape(layer.codes.shape)
    attributes = {"axis": 0} if layer.scale.ndim else {}
    dequantize = ir.node("DequantizeLinear", [stored, scale], attributes, outputs=[result], name=str(result.name))
    graph.insert_before(graph[0], dequantize)
    node.replace_input_with(1, result)
    if value.is_initializer() and not value.uses() and not value.is_graph_output():
        del graph.initializers[str(value.name)]
    if node.op_type == "Conv":
        _add_to_operand(graph, node, layer.bias)
    else:
        _finish_product(graph, _as_product(graph, node), layer)


def _as_product(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Let a Gemm be a MatMul and an Add: runtimes have more kernels for these."""
    if node.op_type == "MatMul":
        return node
    output, bias = node.outputs[0], node.inputs[BIAS] if len(node.inputs) > BIAS else None
    product = ir.node("MatMul", node.inputs[:BIAS], name=node.name)
    made = product.outputs[0]
    made.name, made.shape, made.type = f"{output.name}_product", output.shape, output.type
    final, nodes = made, [product]
    if bias is not None:
        nodes.append(ir.node("Add", [made, bias], name=f"bias_{output.name}"))
        final = nodes[-1].outputs[0]
        final.shape, final.type = output.shape, output.type
    name = output.name
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [output], [final])
    final.name = name
    return product


def _add_to_operand(graph: ir.Graph, node: ir.Node, extra: NDArray[np.float32] | None) -> None:
    """Add numbers to the bias of a convolution."""
    if extra is None:
        return
    node.resize_inputs(max(len(node.inputs), BIAS + 1))
    given = constant(node.inputs[BIAS])
    total = extra if given is None else given.astype(np.float32) + extra
    node.replace_input_with(BIAS, numbers(graph, f"{node.outputs[0].name}_bias", total, node.outputs[0]))


def _finish_product(graph: ir.Graph, node: ir.Node, layer: LayerCodes) -> None:
    """Multiply what a MatMul computes by the factors of its channels, then add its bias and what is added to that."""
    output = node.outputs[0]
    follower = _bias_behind(node)
    extra = layer.bias
    if follower is not None and extra is not None:
        side = next(index for index, value in enumerate(follower.inputs) if value is not output)
        given = np.asarray(constant(follower.inputs[side]), dtype=np.float32)
        total = numbers(graph, f"{output.name}_bias", (given + extra).astype(np.float32), output)
        follower.replace_input_with(side, total)
        extra = None
    if extra is not None:
        _follow(graph, node, "Add", "bias", numbers(graph, f"{output.name}_bias", extra, output))
    if layer.factors is not None:
        _follow(graph, node, "Mul", FACTORS, numbers(graph, f"{output.name}_factors", layer.factors, output))


def _bias_behind(node: ir.Node) -> ir.Node | None:
    """Return the Add behind a product that adds a constant vector to it, or None."""
    user = sole_user(node.outputs[0])
    if user is None or user.op_type != "Add" or user.domain != "":
        return None
    arrays = [array for value in user.inputs if (array := constant(value)) is not None]
    return user if len(arrays) == 1 and arrays[0].ndim == 1 else None


def _follow(graph: ir.Graph, node: ir.Node, kind: str, what: str, operand: ir.Value) -> None:
    """Put an operation directly behind a node, whose output keeps its name."""
    output = node.outputs[0]
    final = ir.Value(name=output.name, shape=output.shape, type=output.type)
    output.name = free_name(graph, f"{final.name}_{'codes' if kind == 'Mul' else 'scaled'}")
    output.replace_all_uses_with(final, replace_graph_outputs=True)
    graph.insert_after(node, ir.node(kind, [output, operand], outputs=[final], name=f"{node.name}_{what}"))


def _operand_of(node: ir.Node, index: int = 0) -> ir.Value:
    value = node.inputs[index]
    assert value is not None  # noqa: S101 - a linear layer has both
    return value
