"""Explicit quantization: the QuantizeLinear and DequantizeLinear pairs that make TensorRT multiply codes of 8 bits.

Activations are quantized symmetrically with one scale for a tensor. Weights are stored as codes, a byte for each: FP8
with one scale for a tensor, INT8 with one for each output channel. Biases are not quantized.

The INT8 scales of a matrix are split in two: one scalar in DequantizeLinear, and a factor for each channel, at most 1,
by which a Mul after the product multiplies. Given a vector in DequantizeLinear and fp16, TensorRT for RTX 1.7 builds a
product that writes its bare sums of codes as fp16, and multiplies them by the scales in the next kernel: sums beyond
65504, which are common, are infinite by then. With a scalar the product itself multiplies by the scales, in fp32. The
kernels are as many. What the product writes is still its result divided by the factor, so no factor is so small that
this could be beyond half of 65504. A convolution has its sums in fp32 and so keeps the vector.

Every scale is the smallest fp16 number that does not clip the range, and not below 2^-14 for an activation, as its
reciprocal is an fp16 number in the engine. So casting the rest of the graph to fp16 changes no scale. INT8 codes are
whole numbers from -127 to 127, rounded half to even, at a scale of ``amax / 127``: TensorRT's symmetric quantization,
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html. FP8 is E4M3FN, whose
largest number is 448, at a scale of ``amax / 448``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from trt_vit.graph.edit import constant, initializer
from trt_vit.quantize.linear import LinearLayer, linear_layers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_BIAS = 2
_SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)
_LARGEST_CODE = {"int8": 127.0, "fp8": 448.0}
_FLOATS = (np.dtype(np.float32), np.dtype(np.float16))
_LARGEST_PRODUCT = float(np.finfo(np.float16).max) / 2
"""Before the factors, on calibration images: others may double it."""
_CODE_TYPES = {"int8": np.dtype(np.int8), "fp8": np.dtype(ml_dtypes.float8_e4m3fn)}


@dataclass(frozen=True)
class Placement:
    """What became of one linear layer.

    Attributes:
        layer: Name of the layer.
        macs: Its multiply-accumulates for one image.
        left_out: Why it stays in floating point, or None where it is quantized.
    """

    layer: str
    macs: int
    left_out: str | None


def quantize(model: ir.Model, ranges: Mapping[str, float], number: Literal["int8", "fp8"]) -> list[Placement]:
    """Quantize the operands of every linear layer of a graph that can be, in place.

    Layers that read the same tensor share its pair. FP8 is for matrix products: the patch convolution stays as it is.

    Args:
        model: A graph of opset 19 or later, in fp32, or in fp16 where its weights came so.
        ranges: Largest absolute value of each tensor that a linear layer reads or writes, by the tensor's name. A
            layer whose input is not listed is left out; one whose output is not is taken never to overflow.
        number: The numbers to multiply.

    Returns:
        One entry for each linear layer, in the order of the graph.
    """
    layers = linear_layers(model)
    quantizer = _Quantizer(model.graph, number, _products(layers, ranges))
    placements = []
    for layer in layers:
        reason = _reason_to_leave_out(layer, ranges, number)
        if reason is None:
            quantizer.quantize(layer, ranges[str(layer.activation.name)])
        placements.append(Placement(layer.name, layer.macs, reason))
    return placements


def _reason_to_leave_out(layer: LinearLayer, ranges: Mapping[str, float], number: Literal["int8", "fp8"]) -> str | None:
    weight, amax = constant(layer.weight), ranges.get(str(layer.activation.name))
    reasons = {
        f"it is quantized to {layer.number} already": layer.number in {"int8", "fp8"},
        "FP8 is for matrix products": number == "fp8" and layer.kind == "Conv",
        "its weight is not a constant of floats": weight is None or weight.dtype not in _FLOATS,
        "its bias has a factor": layer.node.attributes.get_float("beta", 1.0) != 1.0,
        "the range of its input is not known": amax is None,
        "its input was zero in every calibration image": amax == 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _products(layers: list[LinearLayer], ranges: Mapping[str, float]) -> dict[ir.Value, float]:
    """Return for each weight the largest absolute value that a product with it has, before the bias of a Gemm."""
    products: dict[ir.Value, float] = {}
    for layer in layers:
        bias = constant(layer.node.inputs[_BIAS]) if len(layer.node.inputs) > _BIAS else None
        product = ranges.get(str(layer.node.outputs[0].name), 0.0)
        if bias is not None:
            product += float(np.abs(bias).max())
        products[layer.weight] = max(products.get(layer.weight, 0.0), product)
    return products


class _Quantizer:
    """Places the pairs in one graph, each once however many layers read it."""

    def __init__(self, graph: ir.Graph, number: Literal["int8", "fp8"], products: Mapping[ir.Value, float]) -> None:
        self._graph = graph
        self._products = products
        self._largest = _LARGEST_CODE[number]
        self._codes = _CODE_TYPES[number]
        self._activations: dict[ir.Value, ir.Value] = {}
        self._weights: dict[tuple[ir.Value, int], tuple[ir.Value, ir.Value | None]] = {}

    def quantize(self, layer: LinearLayer, amax: float) -> None:
        activation, weight, axis = layer.activation, layer.weight, layer.output_axis
        if activation not in self._activations:
            self._activations[activation] = self._activation(activation, amax)
        if (weight, axis) not in self._weights:
            self._weights[weight, axis] = self._weight(weight, axis, split=layer.kind != "Conv")
        dequantized, factors = self._weights[weight, axis]
        layer.node.replace_input_with(0, self._activations[activation])
        layer.node.replace_input_with(1, dequantized)
        if factors is not None:
            self._multiply(layer.node, factors)
        if weight.is_initializer() and not weight.uses() and not weight.is_graph_output():
            del self._graph.initializers[str(weight.name)]

    def _activation(self, value: ir.Value, amax: float) -> ir.Value:
        """Put a pair behind a tensor and return what comes out of it."""
        scale = self._numbers(
            f"{value.name}_scale", _scales(np.array(max(amax / self._largest, _SMALLEST_SCALE))), value
        )
        zero = initializer(self._graph, f"{value.name}_zero_point", np.zeros((), self._codes))
        codes = ir.Value(name=f"{value.name}_{self._codes.name}", shape=value.shape, type=zero.type)
        result = _like(value)
        quantize = ir.node("QuantizeLinear", [value, scale, zero], outputs=[codes], name=f"quantize_{value.name}")
        dequantize = ir.node(
            "DequantizeLinear", [codes, scale, zero], outputs=[result], name=f"dequantize_{value.name}"
        )
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], [quantize, dequantize])
        else:
            self._graph.insert_after(producer, [quantize, dequantize])
        return result

    def _weight(self, value: ir.Value, axis: int, *, split: bool) -> tuple[ir.Value, ir.Value | None]:
        """Store a weight as codes; return what they are dequantized to, and the factors of its output channels."""
        array = np.asarray(constant(value), dtype=np.float64)
        others = tuple(i for i in range(array.ndim) if i != axis)
        exact = np.abs(array).max(axis=others) / self._largest
        scales, factors = _scales(exact), None
        if split:
            scales = _scales(exact.max())
            if self._codes == np.int8:
                least = min(1.0, self._products[value] / _LARGEST_PRODUCT)
                factors = _scales(np.maximum(exact / scales, least))
        whole = scales.astype(np.float64) * (1 if factors is None else factors)
        codes = _encode(array / (np.expand_dims(whole, others) if whole.ndim else whole), self._codes)
        stored = initializer(self._graph, f"{value.name}_{self._codes.name}", codes)
        scale = self._numbers(f"{value.name}_scale", scales, value)
        result = _like(value)
        attributes = {} if split else {"axis": axis}
        node = ir.node(
            "DequantizeLinear", [stored, scale], attributes, outputs=[result], name=f"dequantize_{value.name}"
        )
        self._graph.insert_before(self._graph[0], node)
        return result, None if factors is None else self._numbers(f"{value.name}_factors", factors, value)

    def _numbers(self, name: str, array: NDArray[np.float32], like: ir.Value) -> ir.Value:
        """Store scales or factors, which are fp16 numbers, in the type of the tensor that they are for."""
        half = like.dtype == ir.DataType.FLOAT16
        return initializer(self._graph, name, array.astype(np.float16) if half else array)

    def _multiply(self, node: ir.Node, factors: ir.Value) -> None:
        """Multiply what a MatMul or Gemm computes by factors of its channels, before the bias of a Gemm is added."""
        output = node.outputs[0]
        final = ir.Value(name=output.name, shape=output.shape, type=output.type)
        output.name = f"{final.name}_codes"
        output.replace_all_uses_with(final, replace_graph_outputs=True)
        bias = node.inputs[_BIAS] if len(node.inputs) > _BIAS else None
        if bias is None:
            after = [ir.node("Mul", [output, factors], outputs=[final], name=f"scale_{final.name}")]
        else:
            node.resize_inputs(_BIAS)
            scaled = ir.Value(name=f"{final.name}_scaled", shape=output.shape, type=output.type)
            after = [
                ir.node("Mul", [output, factors], outputs=[scaled], name=f"scale_{final.name}"),
                ir.node("Add", [scaled, bias], outputs=[final], name=f"bias_{final.name}"),
            ]
        self._graph.insert_after(node, after)


def _like(value: ir.Value) -> ir.Value:
    return ir.Value(name=f"{value.name}_dequantized", shape=value.shape, type=value.type)


def _scales(exact: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round scales up to fp16 numbers; a channel of zeros gets 1, which makes zeros of its codes."""
    nearest = exact.astype(np.float16)
    upwards = np.where(nearest < exact, np.nextafter(nearest, np.float16(np.inf)), nearest)
    return np.where(exact == 0, 1, upwards).astype(np.float32)


def _encode(scaled: NDArray[np.float64], codes: np.dtype[np.generic]) -> NDArray[np.generic]:
    return (np.rint(scaled) if codes == np.int8 else scaled).astype(codes)
