"""From an fp32 graph to one that computes in fp16 or bf16.

A TensorRT network is strongly typed: every layer runs in the types that the graph gives it. So precision is decided
here, tensor by tensor, and what must not lose any is kept in float32:

- The graph's inputs and outputs. Logits are cast after the classifier, so softmax and top-k see float32.
- The statistics of normalizations. LayerNormalization as one node has them in float32 by itself (``stash_type`` 1).
  Where a normalization is spelled out (means, powers, roots), these nodes and the arithmetic on them are in float32.
- The softmax of attention. TensorRT for RTX 1.7 fuses attention with the Casts around it as it does without: ViT-B/16
  becomes 126 kernels either way, 102 with merged projections, 12 of them fused attentions (compute capability 8.9).
- Arithmetic that ends in integers, as that of positions: fp16 counts by ones only to 2048.
- A node one of whose weights is beyond the range of the type (fp16: 65504), or whose quantization scale would be lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass

from trt_vit.errors import EngineError
from trt_vit.graph.edit import constant, initializer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TARGETS = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_SPELLING = {ir.DataType.FLOAT16: "tensor(float16)", ir.DataType.BFLOAT16: "tensor(bfloat16)"}
_STATISTICS = frozenset({
    "LpNormalization", "MeanVarianceNormalization", "Pow", "Reciprocal",
    "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Sqrt",
})  # fmt: skip
_ELEMENTWISE = frozenset({"Add", "Clip", "Div", "Max", "Min", "Mul", "Sub"})
MOVEMENT = frozenset({
    "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape",
    "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that give numbers as they take them."""
_MASKS = frozenset({"Mul", "Where"})
"""What makes a mask of a large negative number: it must reach the scores as a number, as infinity times 0 is none."""
_QUANTIZATION = frozenset({"DequantizeLinear", "QuantizeLinear"})
_TO_INTEGERS = _ELEMENTWISE | MOVEMENT | {"Cast", "Ceil", "Floor", "Neg", "Round"}
_SCALE = 1


def cast(model: ir.Model, precision: Literal["fp16", "bf16"]) -> None:
    """Let every float32 weight and activation of a graph be fp16 or bf16, in place.

    What the module keeps in float32 is reached by Casts, never by two in a row. Integer tensors and quantized weights
    stay as they are. The scales of QuantizeLinear and DequantizeLinear take the new type, as an output of
    DequantizeLinear has the type of its scale; where the type does not hold a scale to its usual precision (in fp16
    from 3e-5 downwards), the node stays in float32. An operator that the graph's operator set does not define for the
    type stays in float32 too: Conv in bf16 needs opset 22.

    Args:
        model: A graph without functions and control flow.
        precision: The type of the weights and activations.

    Raises:
        EngineError: The graph has functions or control flow.
    """
    _check_flat(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        ShapeInferencePass()(model)
    _Caster(model, _TARGETS[precision]).run()


def _check_flat(model: ir.Model) -> None:
    branching = [
        node for node in model.graph if any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values())
    ]
    if branching or model.functions:
        what = f"control flow (node {branching[0].name})" if branching else "functions"
        message = f"{model.graph.name}: a graph with {what} cannot be cast"
        raise EngineError(message, hint="export the model as one flat ONNX graph")


class _Caster:
    """One walk over a graph in its order, so that the inputs of a node have their new types when it is reached."""

    def __init__(self, model: ir.Model, target: ir.DataType) -> None:
        self._graph = model.graph
        self._opset = model.opset_imports[""]
        self._target = target
        self._names = {value.name for value in ir.convenience.create_value_mapping(model.graph).values()}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._sources: dict[ir.Value, ir.Value] = {}
        self._weights: dict[ir.Value, ir.Value] = {}
        self._beyond_range: set[ir.Value] = set()
        self._statistics: set[ir.Value] = set()
        self._to_integers = _nodes_to_integers(model.graph)

    def run(self) -> None:
        walk = [(node, [i for i, value in enumerate(node.inputs) if _is_float(value)]) for node in self._graph]
        for node, floats in walk:
            if node.op_type == "Cast" and node.domain == "":
                self._retarget(node)
            else:
                self._convert(node, floats)
        for index, output in enumerate(self._graph.outputs):
            if output.dtype == self._target:
                self._give_out_float(index)
        for name in [name for name, value in self._graph.initializers.items() if not value.uses()]:
            if not self._graph.initializers[name].is_graph_output():
                del self._graph.initializers[name]

    def _convert(self, node: ir.Node, floats: list[int]) -> None:
        """Give a node its float32 inputs in the types it is to compute in, and its outputs the types that follow."""
        schema = self._schema(node)
        kept = self._is_kept(node, floats) or schema is None
        types: dict[str, ir.DataType] = {}
        for index in floats:
            formal = None if kept else _formal(schema.inputs, index)
            wanted = self._target if formal and _SPELLING[self._target] in formal.types else ir.DataType.FLOAT
            if formal:
                types[formal.type_str] = wanted
            node.replace_input_with(index, self._typed(_input(node, index), wanted))
        if types:
            self._retype_outputs(node, schema, types)

    def _retype_outputs(self, node: ir.Node, schema: Any, types: dict[str, ir.DataType]) -> None:
        if node.op_type == "DequantizeLinear" and _is_float(node.outputs[0]):
            node.attributes.pop("output_dtype", None)  # without it, the output has the type of the scale
            types[schema.outputs[0].type_str] = _dtype(_input(node, _SCALE))
        for index, output in enumerate(node.outputs):
            wanted = types.get(_formal(schema.outputs, index).type_str)
            if wanted is not None and _is_float(output):
                output.type = ir.TensorType(wanted)

    def _retarget(self, node: ir.Node) -> None:
        """Let a Cast to float32 cast to the new type, or take it out where its input has that type or will have it."""
        value, output = _input(node, 0), node.outputs[0]
        wanted = ir.DataType.FLOAT if node in self._to_integers else self._target
        if output.is_graph_output() or output.dtype not in {ir.DataType.FLOAT, self._target}:
            return
        if _dtype(value).is_floating_point():
            output.replace_all_uses_with(self._activation(value, wanted))
            self._graph.remove(node, safe=True)
        else:
            node.attributes["to"] = ir.AttrInt64("to", wanted)
            output.type = ir.TensorType(wanted)

    def _is_kept(self, node: ir.Node, floats: list[int]) -> bool:
        """Decide whether a node is to compute in float32, and remember what that means for the nodes after it."""
        values = [_input(node, i) for i in floats]
        if any(v in self._beyond_range or self._is_lost(node, i) for v, i in zip(values, floats, strict=True)):
            if node.op_type in MOVEMENT | _MASKS:
                self._beyond_range.update(node.outputs)
            return True
        return node.op_type == "Softmax" or node in self._to_integers or self._is_of_statistics(node, values)

    def _is_of_statistics(self, node: ir.Node, values: list[ir.Value]) -> bool:
        """Tell whether a node computes with statistics of a normalization, and mark its outputs if they are such."""
        known = [value in self._statistics for value in values if not value.is_initializer()]
        squares = node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
        passes_on = node.op_type in _ELEMENTWISE | MOVEMENT and all(known)
        if known and (node.op_type in _STATISTICS or squares or passes_on):
            self._statistics.update(node.outputs)
            return True
        return node.op_type in _ELEMENTWISE and any(known)

    def _is_lost(self, node: ir.Node, index: int) -> bool:
        """Tell whether a weight is beyond the range of the new type or, being a scale, loses its precision in it."""
        value = _input(node, index)
        if not (value.is_initializer() and _is_float(value)):
            return False
        exact = _array(value)
        rounded = _array(self._weight(value)).astype(np.float32)
        if node.op_type in _QUANTIZATION and index == _SCALE:
            return bool(np.any(np.abs(rounded - exact) > np.abs(exact) * self._target.eps))
        return bool(np.any(np.isinf(rounded) & np.isfinite(exact)))

    def _typed(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype == dtype:
            return value
        if value.is_initializer() and dtype == self._target:
            return self._weight(value)
        return self._activation(value, dtype)

    def _weight(self, value: ir.Value) -> ir.Value:
        """Return the copy of a float32 weight in the new type."""
        if value not in self._weights:
            with np.errstate(over="ignore"):
                array = _array(value).astype(self._target.numpy())
            self._weights[value] = initializer(self._graph, self._name(value, self._target), array)
        return self._weights[value]

    def _activation(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return a tensor in another type, through one Cast however many nodes want it."""
        source = self._sources.get(value, value)
        if source.dtype == dtype:
            return source
        if (source, dtype) not in self._casts:
            result = ir.Value(name=self._name(source, dtype), shape=source.shape, type=ir.TensorType(dtype))
            self._insert_cast(source, result)
            self._casts[source, dtype] = result
            self._sources[result] = source
        return self._casts[source, dtype]

    def _insert_cast(self, source: ir.Value, result: ir.Value) -> None:
        node = ir.node("Cast", [source], {"to": result.dtype}, outputs=[result], name=f"cast_{result.name}")
        producer = source.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)

    def _give_out_float(self, index: int) -> None:
        """Cast an output of the graph to float32, under the name that it had."""
        inner = self._graph.outputs[index]
        name = inner.name
        inner.name = self._name(inner, self._target)
        result = ir.Value(name=name, shape=inner.shape, type=ir.TensorType(ir.DataType.FLOAT))
        self._insert_cast(inner, result)
        self._graph.outputs[index] = result

    def _name(self, value: ir.Value, dtype: ir.DataType) -> str:
        """Return a name for a tensor in another type that nothing in the graph has."""
        base = free = f"{value.name}_{dtype.short_name()}"
        count = 0
        while free in self._names:
            count += 1
            free = f"{base}_{count}"
        self._names.add(free)
        return free

    def _schema(self, node: ir.Node) -> Any:
        """Return what the operator set says of an operator, or None where it does not know it."""
        if node.domain not in {"", "ai.onnx"}:
            return None
        try:
            return onnx.defs.get_schema(node.op_type, self._opset)
        except onnx.defs.SchemaError:
            return None


def _nodes_to_integers(graph: ir.Graph) -> set[ir.Node]:
    """Return the elementwise nodes all of whose results are cast to integers in the end."""
    found: set[ir.Node] = set()
    for node in reversed(graph):
        users = [user for output in node.outputs for user in output.consumers()]
        given_out = any(output.is_graph_output() for output in node.outputs)
        ends = node.op_type == "Cast" and _dtype(node.outputs[0]).is_integer()
        leads = node.op_type in _TO_INTEGERS and bool(users) and not given_out and found.issuperset(users)
        if ends or leads:
            found.add(node)
    return found


def _formal(formals: Any, index: int) -> Any:
    """Return the formal parameter of an input or output: the last one may be variadic."""
    return formals[min(index, len(formals) - 1)]


def _input(node: ir.Node, index: int) -> ir.Value:
    """Return an input that is there: one that the operator requires, or that is known to have a type."""
    value = node.inputs[index]
    if value is None:
        raise EngineError(f"{node.name}: {node.op_type} lacks input {index}", hint="export the model to ONNX again")
    return value


def _dtype(value: ir.Value) -> ir.DataType:
    return value.dtype or ir.DataType.UNDEFINED


def _array(value: ir.Value) -> NDArray[Any]:
    array = constant(value)
    if array is None:
        raise EngineError(f"{value.name}: the weight has no values", hint="export the model to ONNX again")
    return array


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT
