"""Compute at build time what depends on weights alone: position embeddings that are resized, indices, masks, scales.

ONNX Runtime computes them, all in one run: it is the reference that the engine is compared with, and onnx's evaluator
takes minutes for the bicubic Resize of a position embedding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx_ir as ir

from trt_vit.errors import ArtifactError, ExportError
from trt_vit.graph.edit import initializer
from trt_vit.runtime.onnxruntime import failures_as, open_session

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

_MAX_GROWN = 2**24
"""A node whose outputs are larger than its inputs by more bytes than these is left for the run."""
_MAX_EMBEDDED = 2**24
"""Constants of more bytes are no part of the file that ONNX Runtime reads."""
_KEPT = frozenset({"Constant", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""A weight that is stored quantized must stay so: folding would undo the quantization."""
_SUBGRAPHS = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
_IR_VERSION = 10
_HINT = "correct the node that is named, or export the model again with its constants folded"
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_PLAIN = frozenset("?bhilqBHILQefd")
"""Kinds of numpy arrays that ONNX Runtime takes and returns."""


def fold_constants(model: ir.Model) -> int:
    """Replace the nodes of the main graph whose inputs are all constants by their results.

    Q/DQ nodes stay, and so do nodes that would make a weight larger. Shapes must have been inferred.

    Returns:
        How many nodes are gone.

    Raises:
        ExportError: ONNX Runtime cannot compute a node.
    """
    nodes = _constant_nodes(model.graph)
    results = [value for node in nodes for value in node.outputs if any(user not in nodes for user, _ in value.uses())]
    arrays = _computed(nodes, results, model.graph.opset_imports) if results else []
    for value, array in zip(results, arrays, strict=True):
        value.replace_all_uses_with(initializer(model.graph, value.name or "constant", array))
    model.graph.remove(nodes, safe=True)
    return len(nodes)


def _constant_nodes(graph: ir.Graph) -> dict[ir.Node, None]:
    """Nodes that depend on nothing but constants, in their order."""
    nodes: dict[ir.Node, None] = {}
    for node in graph:
        given = [value for value in node.inputs if value is not None]
        known = all(value.producer() in nodes or _is_plain_constant(value) for value in given)
        if known and _can_fold(node) and _grown(node) <= _MAX_GROWN:
            nodes[node] = None
    return nodes


def _is_plain_constant(value: ir.Value) -> bool:
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and not value.is_graph_input() and tensor.dtype.numpy().char in _PLAIN


def _can_fold(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type in _KEPT | _RANDOM or any(value.is_graph_output() for value in node.outputs):
        return False
    return all(attribute.type not in _SUBGRAPHS for attribute in node.attributes.values())


def _grown(node: ir.Node) -> float:
    """By how many bytes a node's outputs are larger than its inputs, as far as known."""
    before = sum(_bytes(value) for value in node.inputs if value is not None)
    return sum(_bytes(value) for value in node.outputs) - before


def _bytes(value: ir.Value) -> float:
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        return 0
    return math.prod(value.shape.numpy()) * value.dtype.itemsize


def _computed(
    nodes: Iterable[ir.Node], results: Sequence[ir.Value], opsets: Mapping[str, int]
) -> list[NDArray[np.generic]]:
    """Run these nodes alone.

    Their constants are initializers of the graph that runs, for ONNX Runtime to fold them: when it may not, it moves a
    Transpose past a Resize, whose other form it cannot run. Larger ones are its inputs, as a file ends at 2 GiB.
    """
    copies: dict[ir.Value, ir.Value] = {}
    feeds: dict[str, NDArray[np.generic]] = {}
    for value in {value: None for node in nodes for value in node.inputs if value is not None}:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            copy = ir.Value(name=f"constant_{len(copies)}", type=ir.TensorType(tensor.dtype))
            copy.shape = ir.Shape(tensor.shape.numpy())
            copies[value] = copy
            if tensor.nbytes > _MAX_EMBEDDED:
                feeds[copy.name or ""] = tensor.numpy()
            else:
                copy.const_value = ir.tensor(tensor.numpy(), name=copy.name)
    weights = list(copies.values())
    copied = [_copied(node, copies) for node in nodes]
    graph = ir.Graph(
        [value for value in weights if value.const_value is None],
        [copies[value] for value in results],
        nodes=copied,
        initializers=[value for value in weights if value.const_value is not None],
        opset_imports={"": opsets[""]},
        name="constants",
    )
    message = "constants of the graph cannot be computed"
    try:
        session = open_session(ir.to_proto(ir.Model(graph, ir_version=_IR_VERSION)).SerializeToString(), threads=1)
        with failures_as(ExportError, message, _HINT):  # the reason names the node
            computed: list[NDArray[np.generic]] = session.run(None, feeds)
    except ArtifactError as error:
        raise ExportError(f"{message}: {error.message}", hint=_HINT) from error
    return computed


def _copied(node: ir.Node, copies: dict[ir.Value, ir.Value]) -> ir.Node:
    """Copy a node between values that were copied before, and remember its outputs among them."""
    outputs = [ir.Value(name=value.name, type=value.type) for value in node.outputs]
    given = [None if value is None else copies[value] for value in node.inputs]
    copies |= zip(node.outputs, outputs, strict=True)
    return ir.Node(
        "", node.op_type, given, node.attributes.values(), outputs=outputs, name=node.name or outputs[0].name
    )
