"""From the exported graph to the one TensorRT is given: rewritten, and with the precision of every layer in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from trt_vit.checkpoint.export import MAX_EMBEDDED_BYTES
from trt_vit.errors import EngineError, OutputError
from trt_vit.graph.attentions import count_attentions
from trt_vit.graph.edit import constant, initializer
from trt_vit.graph.rewrite import OPSET, rewrite
from trt_vit.quantize import cast as casting
from trt_vit.quantize.linear import linear_layers
from trt_vit.quantize.overflow import refuse_overflow

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from trt_vit.checkpoint.export import Export
    from trt_vit.engine.manifest import Precision
    from trt_vit.quantize.plan import Quantization

_STANDARD = frozenset({"", "ai.onnx"})
_TENSORRT = frozenset({"trt", "trt.plugins"})
"""Domains of the operators that TensorRT reads beside ONNX's, and that tools of NVIDIA's write."""
_OPSETS: dict[Precision, int] = {"bf16": 22}
"""Operator sets other than the usual one: Conv takes bf16 from 22 on."""


@dataclass(frozen=True)
class Prepared:
    """The graph that TensorRT is given.

    Attributes:
        path: Its file; external weights, if any, lie beside it.
        attentions: How many softmaxes over products it has: attentions that can each become one kernel.
        macs: Multiply-accumulates an image of each linear layer, by the name of its node.
        share: Share of these that the graph has in the precision it is for, 0 to 1.
        quantization: How it came to be quantized; None where it was not.
    """

    path: Path
    attentions: int
    macs: dict[str, int]
    share: float
    quantization: Quantization | None


def prepare(
    export: Export,
    precision: Precision,
    output: Path,
    *,
    quantize: Callable[[ir.Model], Quantization] | None = None,
    rest: Literal["fp16", "fp32"] = "fp16",
    probe: NDArray[np.float32] | None = None,
) -> Prepared:
    """Write the graph for one precision.

    A graph that came with Q/DQ nodes is taken as it is: whoever placed them knew the graph they were placed in. Only
    its quantized biases become fp32 again, as TensorRT has none. Metadata is left out, so that it decides nothing.

    Args:
        export: The fp32 graph, or the quantized one.
        precision: What the linear layers are to run in.
        output: The ONNX file to write.
        quantize: What quantizes the rewritten graph for INT8 and FP8, in place.
        rest: What runs around INT8 and FP8.
        probe: Images, preprocessed likewise, on which no activation may be beyond fp16; None to take that for granted.

    Raises:
        EngineError: The graph has no linear layer, none of them can be quantized, its ranges cannot be measured, or
            fp16 does not hold them.
        ExportError: The graph cannot be brought to the operator set that the precision needs.
    """
    model = ir.load(export.path)
    _refuse_unknown_operators(model, export)
    quantization = None
    if not export.quantized:
        model, _ = rewrite(model, opset=_OPSETS.get(precision, OPSET))
        _name_plainly(model)
        _refuse_without_layers(model, export)
        if quantize is not None:
            quantization = quantize(model)
            _refuse_unquantized(quantization, export)
        if precision != "fp32" and (quantize is None or rest == "fp16"):
            exact = model.clone()  # weights shared
            casting.cast(model, "bf16" if precision == "bf16" else "fp16")
            if probe is not None and precision != "bf16":
                refuse_overflow(exact, model, probe, batch=export.batch)
    else:
        _name_plainly(model)
        _dequantize_biases(model)
        _refuse_without_layers(model, export)
    layers = linear_layers(model)
    numbers = {layer.number for layer in layers}
    if export.quantized and precision not in numbers:
        message = (
            f"no linear layer of {export.source} is quantized to {precision}: they are {', '.join(sorted(numbers))}"
        )
        raise EngineError(message, hint="build with the --precision that the graph has")
    _save(model, output)
    macs = {layer.name: layer.macs for layer in layers}
    share = sum(layer.macs for layer in layers if layer.number == precision) / sum(macs.values())
    return Prepared(output, count_attentions(model), macs, share, quantization)


def _save(model: ir.Model, output: Path) -> None:
    weights = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    model.metadata_props.clear()
    external = f"{output.name}.data" if weights > MAX_EMBEDDED_BYTES else None
    try:
        ir.save(model, output, external_data=external)
    except OSError as error:
        message = f"cannot write the graph to {output.parent}: {error.strerror or error}"
        raise OutputError(message, hint="make room there, or name another directory with TMPDIR") from error


def _refuse_without_layers(model: ir.Model, export: Export) -> None:
    if not linear_layers(model):
        message = f"{export.source} has no linear layer with a constant weight"
        raise EngineError(message, hint="export the model again, with its weights inside the graph")


def _refuse_unquantized(quantization: Quantization, export: Export) -> None:
    reasons = [placement.left_out for placement in quantization.placements]
    if None not in reasons:
        message = f"no linear layer of {export.source} can be quantized: {reasons[0]}"
        raise EngineError(message, hint="build with --precision fp16 or fp32")


def _refuse_unknown_operators(model: ir.Model, export: Export) -> None:
    """Refuse an operator that is neither ONNX's nor TensorRT's own, while it can be named.

    Raises:
        EngineError: There is one.
    """
    version = model.opset_imports.get("") or model.opset_imports.get("ai.onnx") or OPSET
    for node in model.graph:
        standard = node.domain in _STANDARD and onnx.defs.has(node.op_type, version)
        if not standard and node.domain not in _TENSORRT and node.op_identifier() not in model.functions:
            kind = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
            message = (
                f"{export.source}: node {node.name or node.outputs[0].name} is a {kind}, which TensorRT does not know"
            )
            raise EngineError(message, hint="export the model with standard operators")


def _name_plainly(model: ir.Model) -> None:
    """Give every node a name of its own, of letters that TensorRT's lists of layers leave whole."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph):
        plain = re.sub(r"[^\w./:-]", "_", node.name or node.op_type)
        node.name = plain if plain not in taken else f"{plain}_{index}"
        taken.add(node.name)


def _dequantize_biases(model: ir.Model) -> None:
    """Compute the DequantizeLinear nodes of int32 constants: ONNX Runtime quantizes biases, TensorRT does not."""
    for node in [node for node in model.graph if node.op_type == "DequantizeLinear" and node.domain == ""]:
        codes, scale = constant(node.inputs[0]), constant(node.inputs[1])
        if codes is None or scale is None or codes.dtype != np.int32 or codes.ndim > 1:
            continue
        bias = initializer(model.graph, f"{node.outputs[0].name}_fp32", np.multiply(codes, scale, dtype=scale.dtype))
        node.outputs[0].replace_all_uses_with(bias)
    RemoveUnusedNodesPass()(model)
