"""What every pass over a graph needs: constants by value, the one user of a tensor, new weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the array behind an initializer or the output of a Constant node, or None for what is computed."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """Return the number that a constant of one element holds, or None for anything else."""
    array = constant(value)
    return None if array is None or array.size != 1 else float(array.reshape(-1)[0])


def producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    """Return the node that makes ``value``, if it is of the default domain and of this operator."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind and node.domain in {"", "ai.onnx"} else None


def sole_user(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads ``value``; None if there are several, or if the graph gives it out."""
    users = {node for node, _ in value.uses()}
    return next(iter(users)) if len(users) == 1 and not value.is_graph_output() else None


def initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Add a weight to the graph under a name that nothing else has, starting with ``name``."""
    free = free_name(graph, name)
    tensor = ir.tensor(np.asarray(array, order="C"), name=free)  # ascontiguousarray would make a vector of a scalar
    value = ir.Value(name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def free_name(graph: ir.Graph, name: str) -> str:
    """Return a name for a tensor that nothing else has: ``name``, or that with a number behind it."""
    free, count = name, 0
    while free in graph.initializers or _is_computed(graph, free):
        count += 1
        free = f"{name}_{count}"
    return free


def _is_computed(graph: ir.Graph, name: str) -> bool:
    return any(value.name == name for value in graph.inputs) or any(
        value.name == name for node in graph for value in node.outputs
    )


def is_number(value: ir.Value | None, expected: float) -> bool:
    """Say whether a constant of one element is this number, as rounded to the constant's own type."""
    array = constant(value)
    if array is None or array.size != 1 or array.dtype.kind not in "fi":
        return False
    return bool(np.isclose(float(array.reshape(-1)[0]), expected, rtol=rounding(array), atol=0.0))


def rounding(array: NDArray[np.generic]) -> float:
    """Return by how much a number may differ, relative to it, when an exporter has computed and rounded it.

    A few units in the last place of the array's type, and of float32 where that is float64: exporters widen constants.
    """
    half = array.dtype == np.dtype(np.float16)
    return 2.0 * float(np.finfo(np.float16).eps if half else np.finfo(np.float32).eps)


def widened(x: ir.Value, nodes: Sequence[ir.Node]) -> bool:
    """Say whether a constant that these nodes read has more axes than ``x``, so that their output has them too."""
    rank = 1 if x.shape is None else len(x.shape)
    arrays = [array for node in nodes for value in node.inputs if (array := constant(value)) is not None]
    return any(array.ndim > rank for array in arrays)


def used_within(nodes: Sequence[ir.Node], output: ir.Value) -> bool:
    """Say whether nothing but these nodes reads what they compute, ``output`` apart, so that they can be replaced."""
    inner = [value for node in nodes for value in node.outputs if value is not output]
    return not any(value.is_graph_output() or any(user not in nodes for user, _ in value.uses()) for value in inner)


def replace(graph: ir.Graph, nodes: Sequence[ir.Node], new: ir.Node, output: ir.Value) -> None:
    """Put one node of one output in the place of several, of which ``output`` is all that others read."""
    made = new.outputs[0]
    made.shape, made.type = output.shape, output.type
    last = next(node for node in nodes if output in node.outputs)
    ir.convenience.replace_nodes_and_values(graph, last, nodes, [new], [output], [made])
