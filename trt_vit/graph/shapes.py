"""Shapes of all tensors of a graph, and the integers computed from them, with a batch that is only a name.

ONNX's own inference knows the shape of a tensor from the shapes of a node's inputs, but not from integers that depend
on the batch: after ``Reshape(x, Concat(Shape(x)[0], 196, 768))`` it knows nothing. Here such integers are followed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir

from trt_vit.graph.edit import constant
from trt_vit.graph.integers import MAX_INTEGERS, Dim, Size, UndecidableError, broadcast, compute, divided, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

_UNNAMED = "?"


@dataclass
class Shapes:
    """What is known about the tensors of a graph.

    Attributes:
        of: Shapes; a dimension that is not known has a name that nothing else has.
        names: The named dimensions of the inputs.
        integers: The elements of small integer tensors, as far as they follow from shapes and constants.
    """

    of: dict[ir.Value, tuple[Size, ...]] = field(default_factory=dict)
    integers: dict[ir.Value, NDArray[np.object_]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    _unnamed: int = 0

    def sizes(self, value: ir.Value | None) -> tuple[Size, ...] | None:
        """Return the shape of a tensor, None where even its rank is not known."""
        return None if value is None else self.of.get(value)

    def elements(self, value: ir.Value | None) -> NDArray[np.object_] | None:
        """Return the elements of an integer or boolean tensor, each a Size, where they are known."""
        if value is None:
            return None
        if value not in self.integers and (array := constant(value)) is not None:
            if array.size > MAX_INTEGERS or array.dtype.kind not in "iub":
                return None
            self.integers[value] = array.astype(object)
        return self.integers.get(value)

    def unnamed(self) -> Dim:
        """Return a dimension that is known to equal no other."""
        self._unnamed += 1
        return Dim(f"{_UNNAMED}{self._unnamed}")


def infer_shapes(model: ir.Model) -> Shapes:
    """Find out the shapes and types of all tensors of the main graph, and write them into it.

    A dimension of an input that has no name is given one, as all that follows from it is known by that name.

    Returns:
        The shapes, with what ONNX cannot spell: the integers computed from them.
    """
    known = Shapes()
    for value in model.graph.inputs:
        if value.shape is not None:
            _name_dimensions(value)
            known.of[value] = tuple(parse_size(size) for size in value.shape)
            known.names.update(str(size) for size in value.shape if isinstance(size, ir.SymbolicDim))
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            known.of[value] = tuple(int(size) for size in value.const_value.shape.numpy())
    for node in model.graph:
        _infer(node, known, model.graph.opset_imports)
        _follow_integers(node, known)
    return known


def _name_dimensions(value: ir.Value) -> None:
    shape = value.shape or ir.Shape([])
    named = [f"{value.name}_{axis}" if size == ir.SymbolicDim(None) else size for axis, size in enumerate(shape)]
    value.shape = ir.Shape(named)


def _infer(node: ir.Node, known: Shapes, opsets: Mapping[str, int]) -> None:
    for output, inferred in _by_onnx(node, known, opsets).items():
        output.type = ir.serde.deserialize_type_proto_for_type(inferred) or output.type
        shape = ir.serde.deserialize_type_proto_for_shape(inferred)
        if shape is not None:
            said = output.shape if output.shape is not None and len(output.shape) == len(shape) else shape
            known.of[output] = tuple(_better(*sizes, known) for sizes in zip(shape, said, strict=True))
    rule = _RULES.get(node.op_type) if node.domain == "" else None
    try:
        if rule is not None and (sizes := rule(node, known)) is not None:
            known.of[node.outputs[0]] = sizes
    except UndecidableError:
        pass  # what ONNX said is all there is to know
    for output in node.outputs:
        if output in known.of:
            output.shape = ir.Shape([_spelled(size) for size in known.of[output]])


def _better(inferred: int | ir.SymbolicDim, said: int | ir.SymbolicDim, known: Shapes) -> Size:
    if inferred == ir.SymbolicDim(None):
        return parse_size(said) if isinstance(said, int) or str(said) in known.names else known.unnamed()
    return parse_size(inferred)


def _spelled(size: Size) -> int | str | None:
    if isinstance(size, Dim):
        return None if size.symbol.startswith(_UNNAMED) else str(size)
    return size


def _by_onnx(node: ir.Node, known: Shapes, opsets: Mapping[str, int]) -> dict[ir.Value, onnx.TypeProto]:
    """Infer by ONNX, which is called for each node apart, so that weights are never copied."""
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None:
            continue
        if value.type is None or value.name is None or value not in known.of:
            return {}
        types[value.name] = ir.serde.serialize_type(value.type)
        sizes = [str(size) if isinstance(size, Dim) else size for size in known.of[value]]
        ir.serde.serialize_shape_into(types[value.name], ir.Shape(sizes))
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None and tensor.size <= MAX_INTEGERS:
            data[value.name] = ir.serde.serialize_tensor(tensor)
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
        found = onnx.shape_inference.infer_node_outputs(schema, ir.serde.serialize_node(node), types, data)
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
        return {}  # an operator of another domain, one that says nothing of its shapes, or one that cannot run
    return {output: found[output.name] for output in node.outputs if output.name in found}


def _reshaped(node: ir.Node, known: Shapes) -> tuple[Size, ...] | None:
    before, target = known.sizes(node.inputs[0]), known.elements(node.inputs[1])
    if before is None or target is None:
        return None
    if node.attributes.get_int("allowzero", 0) == 1 and 0 in target:
        return None
    if 0 in target[len(before) :] or np.count_nonzero(target == -1) > 1:
        return None  # there is no such dimension to copy, or to tell from the others
    sizes = [before[axis] if size == 0 else size for axis, size in enumerate(target.tolist())]
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = divided(math.prod(before), rest)
    return tuple(sizes)


def _expanded(node: ir.Node, known: Shapes) -> tuple[Size, ...] | None:
    before, target = known.sizes(node.inputs[0]), known.elements(node.inputs[1])
    if before is None or target is None:
        return None
    after = tuple(target.tolist())
    rank = max(len(before), len(after))
    pairs = zip((1,) * (rank - len(before)) + before, (1,) * (rank - len(after)) + after, strict=True)
    return tuple(broadcast(*pair) for pair in pairs)


def _filled(node: ir.Node, known: Shapes) -> tuple[Size, ...] | None:
    target = known.elements(node.inputs[0])
    return None if target is None else tuple(target.tolist())


_RULES: dict[str, Callable[[ir.Node, Shapes], tuple[Size, ...] | None]] = {
    "ConstantOfShape": _filled,
    "Expand": _expanded,
    "Reshape": _reshaped,
}


def _follow_integers(node: ir.Node, known: Shapes) -> None:
    if node.domain != "" or len(node.outputs) != 1:
        return
    try:
        result = _computed(node, known)
    except UndecidableError:
        return
    if result is not None and result.size <= MAX_INTEGERS:
        known.integers[node.outputs[0]] = result


def _computed(node: ir.Node, known: Shapes) -> NDArray[np.object_] | None:
    if node.op_type in {"Shape", "Size"}:
        sizes = known.sizes(node.inputs[0])
        if sizes is None:
            return None
        if node.op_type == "Size":
            return np.asarray(math.prod(sizes), dtype=object)
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(sizes))
        return np.array(sizes[start:end], dtype=object)
    operands = [elements for value in node.inputs if (elements := known.elements(value)) is not None]
    return compute(node, operands) if len(operands) == len(node.inputs) else None
