"""Raise the operator set of a graph, so that the passes after it know one form of every operator.

onnx's own converter is used: it knows how every operator changed, where onnxscript's begins at operator set 18 and
leaves what it does not know as it was (a ReduceMean of operator set 14 would keep axes that no longer exist).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx.checker
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveInitializersFromInputsPass

from trt_vit.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_CONVERTED = 1024
"""Larger weights stay out of the conversion. Smaller ones may be axes and shapes, whose values it needs."""
_HINT = "export the model again at opset 17 or later"


def upgrade(model: ir.Model, opset: int) -> ir.Model:
    """Convert a model to an operator set, unless it has that or a newer one already. Its functions become inlined.

    Weights are neither copied nor serialised, so their size does not matter. Names of inputs and outputs, metadata and
    the versions of other domains stay.

    Args:
        model: A model, which is changed.
        opset: The version of the default domain to reach.

    Returns:
        The same model.

    Raises:
        ExportError: The model cannot be converted.
    """
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        if "ai.onnx" in imports:  # the default domain's other name, which nodes have lost on reading
            imports.setdefault("", imports.pop("ai.onnx"))
    InlinePass()(model)
    RemoveInitializersFromInputsPass()(model)
    current = model.graph.opset_imports.get("")
    if current is None:
        raise ExportError(f"{model.graph.name}: no version of the default operator set", hint=_HINT)
    if current >= opset:
        return model
    weights = _take_out(model.graph)
    try:
        converted = onnx.version_converter.convert_version(ir.to_proto(model), opset)
        onnx.checker.check_model(converted)
    except (onnx.version_converter.ConvertError, onnx.checker.ValidationError, RuntimeError) as error:
        _put_back(model.graph, weights)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        message = f"{model.graph.name}: opset {current} cannot be converted to {opset}: {reason}"
        raise ExportError(message, hint=_HINT) from error
    graph = ir.from_proto(converted).graph
    _put_back(graph, weights)
    model.graph = graph
    needed = onnx.helper.find_min_ir_version_for(list(converted.opset_import), ignore_unknown=True)
    model.ir_version = max(model.ir_version, needed)
    return model


def _take_out(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Turn large weights into inputs, and return their tensors by name."""
    weights = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.size > _MAX_CONVERTED:
            weights[name] = tensor
            value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
            value.const_value = None
            del graph.initializers[name]
            graph.inputs.append(value)
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.tensor(tensor.numpy(), name=name)  # the conversion reads no other file
    return weights


def _put_back(graph: ir.Graph, weights: Mapping[str, ir.TensorProtocol]) -> None:
    for value in [value for value in graph.inputs if value.name in weights]:
        graph.inputs.remove(value)
        value.const_value = weights[value.name or ""]
        graph.register_initializer(value)
