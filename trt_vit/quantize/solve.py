"""How each group of layers is quantized, from what calibration has measured: ranges, codes of weights, biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.graph.edit import constant
from trt_vit.quantize.codes import LARGEST, Code, activation_scale, encode, round_up, rounded
from trt_vit.quantize.equalize import Methods, Numbers, Operand, exact_scales, find_operand
from trt_vit.quantize.rounding import round_together

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    from trt_vit.quantize.linear import Group, LinearLayer
    from trt_vit.quantize.statistics import Statistics, TensorStatistics

BIAS = 2
"""The input of a Gemm and of a Conv that is the bias."""
_FLOATS = (np.dtype(np.float32), np.dtype(np.float16))
_STEPS = 255
_BELOW_ZERO = 128
"""Steps from the least code to zero."""
_LARGEST_PRODUCT = float(np.finfo(np.float16).max) / 2
"""Before the factors, on calibration images: others may double it."""


@dataclass(frozen=True)
class LayerCodes:
    """One layer's weight as codes.

    Attributes:
        codes: [in, out] of a matrix product, [out, in, height, width] of a convolution; int8 or float8_e4m3fn.
        scale: What they are dequantized by, float32: one number, or of a convolution one for each output channel.
        factors: What the product's channels are multiplied by then, float32 [out]; None for nothing.
        bias: What is added to the layer's output beside its bias, float32 [out]; None for nothing.
    """

    codes: NDArray[np.generic]
    scale: NDArray[np.float32]
    factors: NDArray[np.float32] | None
    bias: NDArray[np.float32] | None


@dataclass(frozen=True)
class GroupCodes:
    """How a group of layers is quantized.

    Attributes:
        number: The numbers to multiply.
        operand: How the tensor is that the layers read.
        layers: Their weights, by the layer's name.
        attention: Where the attention that they read is quantized with them, the largest absolute value of its queries,
            keys and values, by the tensor's name.
    """

    number: Code
    operand: Operand
    layers: Mapping[str, LayerCodes]
    attention: Mapping[str, float] | None = None


def reason_to_leave_out(group: Group, statistics: Statistics, number: Code) -> str | None:
    """Return why a group of layers cannot be quantized, or None."""
    for layer in group.layers:
        weight = constant(layer.weight)
        reasons = {
            f"it is quantized to {layer.number} already": layer.number in {"int8", "fp8"},
            "FP8 is for matrix products": number == "fp8" and layer.kind == "Conv",
            "its weight is not a constant of floats": weight is None or weight.dtype not in _FLOATS,
            "it is a convolution in groups": layer.node.attributes.get_int("group", 1) != 1,
            "its bias has a factor": layer.node.attributes.get_float("beta", 1.0) != 1.0,
            "its bias is not a constant": _bias(layer) is not None and constant(_bias(layer)) is None,
            "its product has a factor": layer.node.attributes.get_float("alpha", 1.0) != 1.0,
            "its input is transposed": layer.node.attributes.get_int("transA", 0) != 0,
            "its input was zero in every calibration image": all(
                not half.low.any() and not half.high.any() for half in statistics.groups[group.name]
            ),
        }
        reason = next((reason for reason, holds in reasons.items() if holds), None)
        if reason is not None:
            return reason
    return None


def solve(group: Group, statistics: Statistics, numbers: Numbers, methods: Methods) -> GroupCodes:
    """Find how a group of layers is quantized best.

    Args:
        group: Layers for which there is no reason to leave them out.
        statistics: What calibration has measured.
        numbers: What they multiply.
        methods: What may be done for accuracy.
    """
    halves = statistics.groups[group.name]
    whole = halves[0].merged(halves[1])
    matrices = {layer.name: _matrix(layer) for layer in group.layers}
    if group.layers[0].kind == "Conv":
        operand = _pixels(whole, group.layers[0], numbers.activations, methods)
        spread = operand.repeated(whole.rows.shape[1] // len(whole.low))
    else:
        beside = np.concatenate(list(matrices.values()), axis=1)
        operand = spread = find_operand(halves, beside, numbers, methods)
    rows = whole.rows.astype(np.float32)
    read = spread.codes(rows, numbers.activations)
    codes = {}
    for layer in group.layers:
        product = statistics.largest[str(layer.node.outputs[0].name)]
        codes[layer.name] = _layer_codes(
            layer,
            matrices[layer.name],
            spread,
            rows=rows,
            read=read,
            product=product,
            number=numbers.weights,
            together=methods.round_together,
            correct=methods.correct_biases,
        )
    return GroupCodes(numbers.activations, operand, codes)


def _layer_codes(
    layer: LinearLayer,
    matrix: NDArray[np.float32],
    operand: Operand,
    *,
    rows: NDArray[np.float32],
    read: NDArray[np.float32],
    product: float,
    number: Code,
    together: bool,
    correct: bool,
) -> LayerCodes:
    """Quantize a weight [in, out] whose layer reads some rows, and reads them so when they are quantized."""
    undone = operand.undo(matrix)
    moved = None if operand.shift is None else operand.shift @ matrix
    if layer.kind == "Conv":
        scale, factors = exact_scales(undone, number), None
    else:
        scale, factors = _split_scales(undone, product + _largest(moved) + _largest(constant(_bias(layer))), number)
    scales = scale if factors is None else scale * factors
    weight = rounded(undone, scales, number)
    if together:
        weight = round_together(undone, scales, read, number)
    # The mean difference holds what the shift has moved as well as what rounding has.
    bias = (rows @ matrix - read @ weight).mean(axis=0) if correct else moved
    return LayerCodes(_as_stored(encode(weight / scales, number), layer), scale, factors, bias)


def _split_scales(
    matrix: NDArray[np.float32], product: float, number: Code
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return one scale for a weight [in, out] and, in INT8, a factor of at most 1 for each column.

    What the product writes is its result divided by the factor, so no factor is so small that this would be beyond half
    of what fp16 holds.
    """
    exact = np.abs(matrix).max(axis=0).astype(np.float64) / LARGEST[number]
    scale = round_up(np.asarray(exact.max()))
    if number == "fp8":
        return scale, None
    least = min(1.0, product / _LARGEST_PRODUCT)
    return scale, round_up(np.maximum(exact / scale, least))


def _pixels(tensor: TensorStatistics, layer: LinearLayer, number: Code, methods: Methods) -> Operand:
    """Return how the images that a convolution reads are quantized.

    Pixels are 256 equal steps in each channel, and there are 256 codes: where black and white have been seen, and no
    padding wants a zero to stay one, nothing is lost.
    """
    low, high = tensor.low, tensor.high
    padded = any(layer.node.attributes.get_ints("pads", ()))
    if number != "int8" or not methods.equalize or padded or np.any(low == high):
        return Operand(float(np.maximum(np.abs(low), np.abs(high)).max()))
    steps = (high - low).astype(np.float64) / _STEPS
    amax = float(steps.max()) * LARGEST["int8"]
    scale = (steps / activation_scale(amax, "int8")).astype(np.float32)
    return Operand(amax, (low + _BELOW_ZERO * steps).astype(np.float32), scale)


def _matrix(layer: LinearLayer) -> NDArray[np.float32]:
    """Return the weight of a layer as [in, out]."""
    weight = np.array(constant(layer.weight), dtype=np.float32)
    if layer.kind == "Conv":
        weight = weight.reshape(len(weight), -1)
    return weight if layer.output_axis == 1 else np.ascontiguousarray(weight.T)


def _as_stored(codes: NDArray[np.generic], layer: LinearLayer) -> NDArray[np.generic]:
    """Return codes [in, out] as the layer takes them: a Gemm becomes a MatMul."""
    if layer.kind != "Conv":
        return codes
    return np.ascontiguousarray(codes.T).reshape(layer.weight_shape)


def _bias(layer: LinearLayer) -> ir.Value | None:
    return layer.node.inputs[BIAS] if len(layer.node.inputs) > BIAS else None


def _largest(array: NDArray[np.generic] | None) -> float:
    return 0.0 if array is None else float(np.abs(array.astype(np.float32)).max())
