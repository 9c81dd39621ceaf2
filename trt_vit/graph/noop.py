"""Take out nodes that change nothing, and merge those that only undo what their input did.

Exporters leave many: reshapes to the shape that is there, masks of zeros, pads of nothing, guards against rows that are
masked altogether. Each stands between two nodes that a compiler would have fused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trt_vit.graph.edit import constant, producer
from trt_vit.graph.views import (
    VIEWS,
    as_expand,
    as_reshape,
    as_transpose,
    merge_transposes,
    put_before,
    weight_before,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from trt_vit.graph.shapes import Shapes

_WIDENED = {
    ir.DataType.FLOAT16: {ir.DataType.FLOAT, ir.DataType.DOUBLE},
    ir.DataType.BFLOAT16: {ir.DataType.FLOAT, ir.DataType.DOUBLE},
    ir.DataType.FLOAT: {ir.DataType.DOUBLE},
    ir.DataType.INT32: {ir.DataType.INT64},
    ir.DataType.BOOL: {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT},
}
"""The types that hold every value of a type, so that a cast to them and back is exact."""


def remove_noops(model: ir.Model, known: Shapes) -> int:
    """Take out the nodes of the main graph whose output is there already, and simplify views.

    A softmax's guard against NaN goes where its scores are a product to which no mask with infinities was added: such
    a row has a NaN only if the model's own arithmetic has failed, which a guard would hide.

    Args:
        model: A model, which is changed.
        known: Its shapes, from infer_shapes.

    Returns:
        How many nodes were taken out or replaced.
    """
    count = 0
    for node in list(model.graph):
        rules = _RULES.get(node.op_type, ()) if node.domain == "" else ()
        value = next((found for rule in rules if (found := rule(node, known)) is not None), None)
        if value is not None and _put_in_place_of(value, node.outputs[0]):
            model.graph.remove(node, safe=True)
            count += 1
    return count


def _put_in_place_of(value: ir.Value, old: ir.Value) -> bool:
    if not old.is_graph_output():
        old.replace_all_uses_with(value)
        return True
    if value.producer() is None or value.is_graph_output():
        return False  # an input, a weight or another output cannot bear the name of this one
    name = old.name
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    old.name, value.name = None, name
    return True


def _same(node: ir.Node, known: Shapes) -> ir.Value | None:
    """Return the first input if it has the shape of the output, for operators that then change nothing."""
    sizes = known.sizes(node.inputs[0])
    return node.inputs[0] if sizes is not None and sizes == known.sizes(node.outputs[0]) else None


def _cast(node: ir.Node, _: Shapes) -> ir.Value | None:
    given = node.inputs[0]
    if given is None or given.dtype is None:
        return None
    target = ir.DataType(node.attributes.get_int("to", 0))
    if given.dtype == target:
        return given
    inner = producer(given, "Cast")
    source = None if inner is None else inner.inputs[0]
    exact = source is not None and source.dtype == target and given.dtype in _WIDENED.get(target, ())
    return source if exact else None


def _dropout(node: ir.Node, _: Shapes) -> ir.Value | None:
    training = constant(node.inputs[2]) if len(node.inputs) > 2 else np.array(False)  # noqa: PLR2004  # optional
    idle = training is not None and not training.any() and not any(mask.uses() for mask in node.outputs[1:])
    return node.inputs[0] if idle else None


def _slice(node: ir.Node, known: Shapes) -> ir.Value | None:
    steps = constant(node.inputs[4]) if len(node.inputs) > 4 else np.array([1])  # noqa: PLR2004  # optional
    return _same(node, known) if steps is not None and np.all(np.sign(steps) == 1) else None


def _pad(node: ir.Node, _: Shapes) -> ir.Value | None:
    pads = constant(node.inputs[1])
    return node.inputs[0] if pads is not None and not pads.any() else None


def _concat(node: ir.Node, _: Shapes) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _neutral(number: float, *sides: int) -> Callable[[ir.Node, Shapes], ir.Value | None]:
    """A rule for an operand that is ``number`` in all its elements and does not broadcast the other one."""

    def other_operand(node: ir.Node, known: Shapes) -> ir.Value | None:
        for side in sides:
            other, sizes = node.inputs[1 - side], known.sizes(node.inputs[1 - side])
            if sizes is not None and sizes == known.sizes(node.outputs[0]) and _fill(node.inputs[side]) == number:
                return other
        return None

    return other_operand


def _constant_mask(node: ir.Node, known: Shapes) -> ir.Value | None:
    """Add a mask that was expanded to the batch as the constant that it was expanded from."""
    for side in (0, 1):
        other, sizes, array = node.inputs[1 - side], known.sizes(node.inputs[1 - side]), None
        if constant(node.inputs[side]) is None and sizes is not None and sizes == known.sizes(node.outputs[0]):
            array = _before_expansion(node.inputs[side])
        if array is not None:
            return put_before(node, "Add", [other, weight_before(node, "mask", array)], known)
    return None


def _where(node: ir.Node, known: Shapes) -> ir.Value | None:
    condition, one, other = node.inputs
    test = producer(condition, "IsNaN")
    if test is not None and test.inputs[0] is other and other is not None:
        softmax = producer(other, "Softmax")
        return other if softmax is not None and _has_finite_rows(softmax, known) else None
    choice = _fill(condition)
    chosen = None if choice is None else one if choice else other
    sizes = known.sizes(chosen)
    return chosen if sizes is not None and sizes == known.sizes(node.outputs[0]) else None


def _has_finite_rows(softmax: ir.Node, known: Shapes) -> bool:
    """Say whether a softmax is over the last axis of scores of a product, and no row of them is masked altogether."""
    sizes = known.sizes(softmax.inputs[0])
    if sizes is None or softmax.attributes.get_int("axis", -1) not in {-1, len(sizes) - 1}:
        return False
    with np.errstate(all="ignore"):
        added = _added(softmax.inputs[0], known)
    if added is None or np.isnan(added).any() or np.isposinf(added.astype(np.float64)).any():
        return False
    return bool(np.isfinite(added).any(axis=-1).all())


def _added(scores: ir.Value | None, known: Shapes) -> NDArray[np.generic] | None:
    """Return what constants add to a product on its way to these scores, None if anything else has changed them.

    Two masks may together hide what neither hides alone, so they are computed with, in the type that they have. The
    array broadcasts to the scores, and has one axis at least.
    """
    node = None if scores is None else scores.producer()
    if scores is None or node is None or node.domain != "" or scores.dtype is None or known.sizes(scores) is None:
        return None
    if node.op_type in {"MatMul", "DequantizeLinear"}:
        return np.zeros(1, scores.dtype.numpy())
    if node.op_type in {*VIEWS, "Cast"}:
        added = _added(node.inputs[0], known)
        if added is None or node.op_type == "Cast":
            return None if added is None else _cast_array(node, added)
        return added.reshape(-1)[[np.abs(added).argmax()]]  # which row the others come to lie in is not followed
    for side in {"Add": (0, 1), "Div": (1,), "Mul": (0, 1)}.get(node.op_type, ()):
        array = constant(node.inputs[side])
        added = None if array is None else _added(node.inputs[1 - side], known)
        if array is not None and added is not None:
            return _ARITHMETIC[node.op_type](added, array)
    return None


_ARITHMETIC: dict[str, Callable[..., NDArray[np.generic]]] = {"Add": np.add, "Div": np.divide, "Mul": np.multiply}


def _fill(value: ir.Value | None) -> float | None:
    """Return the number that all elements of a tensor are, also where how many there are depends on the batch."""
    array = _before_expansion(value)
    uniform = array is not None and array.dtype.kind in "biuf" and array.size > 0 and (array == array.flat[0]).all()
    return float(array.flat[0]) if array is not None and uniform else None


def _before_expansion(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the constant that a tensor equals but for an Expand to the batch: what broadcasting makes of it."""
    array = constant(value)
    if array is not None:
        return array
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or node.op_type not in _EXPANDED:
        return None
    count, rule = _EXPANDED[node.op_type]
    operands = [array for operand in node.inputs[:count] if (array := _before_expansion(operand)) is not None]
    try:
        with np.errstate(all="ignore"):
            return rule(node, *operands) if len(operands) == count else None
    except ValueError:
        return None  # shapes that do not broadcast: the node cannot run


def _cast_array(node: ir.Node, array: NDArray[np.generic]) -> NDArray[np.generic]:
    return array.astype(ir.DataType(node.attributes.get_int("to", 0)).numpy())


def _chosen_array(
    _: ir.Node, condition: NDArray[np.bool_], one: NDArray[np.generic], other: NDArray[np.generic]
) -> NDArray[np.generic]:
    return np.where(condition, one, other)


def _filled_array(node: ir.Node) -> NDArray[np.generic]:
    tensor = node.attributes.get_tensor("value")
    return np.zeros((), np.float32) if tensor is None else tensor.numpy().reshape(())


_EXPANDED: dict[str, tuple[int, Callable[..., NDArray[np.generic]]]] = {
    "Add": (2, lambda _node, one, other: np.add(one, other)),
    "Cast": (1, _cast_array),
    "ConstantOfShape": (0, _filled_array),
    "Expand": (1, lambda _node, array: array),
    "Mul": (2, lambda _node, one, other: np.multiply(one, other)),
    "Sub": (2, lambda _node, one, other: np.subtract(one, other)),
    "Where": (3, _chosen_array),
}
"""How many of an operator's inputs decide what its output broadcasts from, and how."""

_RULES: dict[str, tuple[Callable[[ir.Node, Shapes], ir.Value | None], ...]] = {
    "Add": (_neutral(0.0, 0, 1), _constant_mask),
    "Cast": (_cast,),
    "Concat": (_concat,),
    "Div": (_neutral(1.0, 1),),
    "Dropout": (_dropout,),
    "Expand": (as_expand,),
    "Flatten": (as_reshape,),
    "Identity": (_same,),
    "Mul": (_neutral(1.0, 0, 1),),
    "Pad": (_pad,),
    "Reshape": (as_transpose, as_reshape),
    "Slice": (_slice,),
    "Squeeze": (as_reshape,),
    "Sub": (_neutral(0.0, 1),),
    "Tile": (_same,),
    "Transpose": (merge_transposes,),
    "Unsqueeze": (as_reshape,),
    "Where": (_where,),
}
