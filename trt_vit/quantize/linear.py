"""The layers that hold a ViT's arithmetic: which ones there are, what each costs, and in which numbers it runs.

Quantization works on these layers alone, and a build reports what share of their multiply-accumulates runs in INT8, so
that an engine called INT8 cannot hide layers that fell back.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from trt_vit.errors import EngineError
from trt_vit.graph.edit import constant

if TYPE_CHECKING:
    from collections.abc import Sequence

Number = Literal["int8", "fp8", "fp16", "bf16", "fp32"]

_KINDS: dict[str, Literal["MatMul", "Gemm", "Conv"]] = {"MatMul": "MatMul", "Gemm": "Gemm", "Conv": "Conv"}
_MATRIX = 2
_FLOATS: dict[ir.DataType | None, Number] = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
_CODES: dict[ir.DataType | None, Number] = {
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "int8",
    ir.DataType.FLOAT8E4M3FN: "fp8",
    ir.DataType.FLOAT8E5M2: "fp8",
}
_TRANSPARENT = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear"})
_ELEMENTWISE = frozenset({"Add", "Cast", "Identity", "Mul"})
"""What stands between the last layer and the logits."""


@dataclass(frozen=True)
class LinearLayer:
    """A product with a constant weight.

    Attributes:
        node: MatMul with a weight of two axes, Gemm, or Conv.
        name: The node's name; of a node without one, its output's.
        kind: The operator.
        macs: Multiply-accumulates for one image.
        number: What it multiplies: codes of 8 bits where both operands are dequantized from such, else the floats of
            its output.
    """

    node: ir.Node
    name: str
    kind: Literal["MatMul", "Gemm", "Conv"]
    macs: int
    number: Number

    @property
    def activation(self) -> ir.Value:
        """The operand that depends on the image."""
        return _operand(self.node, 0)

    @property
    def weight(self) -> ir.Value:
        """The constant operand: [in, out] of MatMul, and of Gemm unless ``transB`` is set; [out, in, h, w] of Conv."""
        return _operand(self.node, 1)

    @property
    def weight_shape(self) -> list[int]:
        """The shape of the constant operand, as it is stored."""
        array = constant(self.weight)
        return [] if array is None else list(array.shape)

    @property
    def output_axis(self) -> int:
        """The axis of the weight that its output channels lie along."""
        return 0 if self.kind == "Conv" or _is_transposed(self.node) else 1


@dataclass(frozen=True)
class Group:
    """Layers that read the same tensor, and so share the Q/DQ pair behind it.

    Attributes:
        layers: The layers, in the order of the graph.
    """

    layers: tuple[LinearLayer, ...]

    @property
    def name(self) -> str:
        """The name of its first layer."""
        return self.layers[0].name

    @property
    def tensor(self) -> str:
        """The name of the tensor they read."""
        return str(self.layers[0].activation.name)

    @property
    def macs(self) -> int:
        """Their multiply-accumulates for one image."""
        return sum(layer.macs for layer in self.layers)


def groups(layers: Sequence[LinearLayer]) -> list[Group]:
    """Gather matrix products that read the same tensor, in the order of their first ones; a convolution is alone."""
    found: dict[str, list[LinearLayer]] = {}
    for layer in layers:
        key = f"Conv {layer.name}" if layer.kind == "Conv" else str(layer.activation.name)
        found.setdefault(key, []).append(layer)
    return [Group(tuple(members)) for members in found.values()]


def linear_layers(model: ir.Model) -> list[LinearLayer]:
    """Find the layers with weights, in the order of the graph.

    A weight counts as constant whether it is stored as float or as codes, and through the operators that tools leave
    between a weight and its layer: QuantizeLinear, DequantizeLinear, Cast, Transpose, Reshape.

    Raises:
        EngineError: The shape of a layer's output cannot be told, so that its cost is unknown.
    """
    copy = _with_batch_of_one(model)
    layers = []
    for node, twin in zip(model.graph, copy.graph, strict=True):
        if node.op_type in _KINDS and node.domain == "" and _is_constant(twin.inputs[1]) and _is_layer(twin):
            name = node.name or str(node.outputs[0].name)
            macs = _macs(twin, name) // _batch(copy)
            layers.append(LinearLayer(node, name, _KINDS[node.op_type], macs, _number(twin)))
    return layers


def int8_coverage(model: ir.Model) -> float:
    """Return the share of the linear layers' multiply-accumulates that run in INT8, 0 to 1.

    Raises:
        EngineError: The graph has no linear layer.
    """
    layers = linear_layers(model)
    if not layers:
        message = f"{model.graph.name}: the graph has no MatMul, Gemm or Conv with a constant weight"
        raise EngineError(message, hint="export the model again, with its weights inside the graph")
    return sum(layer.macs for layer in layers if layer.number == "int8") / sum(layer.macs for layer in layers)


def _with_batch_of_one(model: ir.Model) -> ir.Model:
    """Copy a graph, weights shared, and infer its shapes for one image where the batch is free.

    The first size of what the graph gives out is the batch too, and is said to be: some exports of average pooling
    choose the rows of the logits by operators whose shape cannot be inferred.
    """
    copy = model.clone()
    given = [*copy.graph.inputs, *(value for output in copy.graph.outputs for value in _same_shape(output))]
    for node in copy.graph:
        for value in node.outputs:
            if value not in given:
                value.shape = None
    batch = _batch(copy)
    for value in given:
        if value.shape is not None and value.shape.rank() and not isinstance(value.shape[0], int):
            value.shape = ir.Shape([batch, *value.shape[1:]])
    ShapeInferencePass(strict_mode=False)(copy)
    return copy


def _same_shape(output: ir.Value) -> list[ir.Value]:
    """Return an output and what it is cast, scaled or biased from, each given the output's shape: it has the same."""
    values, node = [output], output.producer()
    while node is not None and node.op_type in _ELEMENTWISE and (value := node.inputs[0]) is not None:
        if constant(value) is not None:
            break
        value.shape = output.shape
        values.append(value)
        node = value.producer()
    return values


def _batch(model: ir.Model) -> int:
    """Return the batch that the graph is for, 1 where it is free."""
    shape = model.graph.inputs[0].shape
    size = shape[0] if shape is not None and shape.rank() else 1
    return size if isinstance(size, int) else 1


def _is_constant(value: ir.Value | None) -> bool:
    if value is None or constant(value) is not None:
        return value is not None
    node = value.producer()
    return node is not None and node.op_type in _TRANSPARENT | _QUANTIZATION and _is_constant(node.inputs[0])


def _is_layer(node: ir.Node) -> bool:
    shape = _operand(node, 1).shape
    return not _is_constant(node.inputs[0]) and (
        node.op_type != "MatMul" or (shape is not None and shape.rank() == _MATRIX)
    )


def _macs(node: ir.Node, name: str) -> int:
    """Return the multiply-accumulates of a layer: the elements of its output times what each one sums up."""
    output, weight = _sizes(node.outputs[0], name), _sizes(_operand(node, 1), name)
    if node.op_type == "Conv":
        return prod(output) * prod(weight[1:])
    return prod(output) * weight[1 if _is_transposed(node) else 0]


def _is_transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1


def _sizes(value: ir.Value, layer: str) -> list[int]:
    sizes = [] if value.shape is None else [size for size in value.shape if isinstance(size, int)]
    if value.shape is None or len(sizes) != value.shape.rank():
        message = f"{layer}: the shape of {value.name} is not known, so the cost of the layer is not"
        raise EngineError(message, hint="export the model with a fixed image size and only the batch dynamic")
    return sizes


def _number(node: ir.Node) -> Number:
    codes = {_codes(node.inputs[0]), _codes(node.inputs[1])}
    both = codes.pop()
    if not codes and both is not None:
        return both
    return _FLOATS.get(node.outputs[0].dtype, "fp32")


def _codes(value: ir.Value | None) -> Number | None:
    """Return the codes that an operand is dequantized from, if it is."""
    node = None if value is None else value.producer()
    if node is None or not node.inputs:
        return None
    if node.op_type == "DequantizeLinear":
        return _CODES.get(_operand(node, 0).dtype)
    return _codes(node.inputs[0]) if node.op_type in _TRANSPARENT else None


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise EngineError(f"{node.name}: {node.op_type} lacks input {index}", hint="export the model to ONNX again")
    return value
