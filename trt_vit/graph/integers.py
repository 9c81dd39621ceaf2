"""Integers of a graph that depend on the batch: what Shape, Gather, Mul and Concat make for a Reshape to read.

An element is a number, or a number times one named dimension, which is all that windows, heads and patches need.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray


MAX_INTEGERS = 1024
"""Integer tensors with more elements are data, such as the indices of a position bias, and no shapes."""


class UndecidableError(ArithmeticError):
    """A result that depends on the value of a named dimension in a way that is not followed."""


@dataclass(frozen=True)
class Dim:
    """``scale`` times the dimension named ``symbol``, which is not negative."""

    symbol: str
    scale: int = 1

    def __str__(self) -> str:
        return self.symbol if self.scale == 1 else f"{self.scale}*{self.symbol}"

    def __add__(self, other: Size) -> Size:
        if isinstance(other, Dim) and other.symbol == self.symbol:
            return Dim(self.symbol) * (self.scale + other.scale)
        if other == 0:
            return self
        raise UndecidableError

    def __mul__(self, other: Size) -> Size:
        if isinstance(other, Dim):
            raise UndecidableError
        return Dim(self.symbol, self.scale * other) if other else 0

    def __neg__(self) -> Size:
        return self * -1

    def __sub__(self, other: Size) -> Size:
        return self + -other

    def __rsub__(self, other: int) -> Size:
        return -self + other

    __radd__ = __add__
    __rmul__ = __mul__


Size = int | Dim
"""One dimension of a tensor, or another integer computed from such."""


def parse_size(size: int | ir.SymbolicDim) -> Size:
    """Read a dimension that a file spells; what is more than a product gets a name of its own, its spelling."""
    if isinstance(size, int):
        return size
    scale, _, symbol = str(size).rpartition("*")
    return Dim(symbol, int(scale)) if scale.isdecimal() and int(scale) else Dim(str(size))


def is_static(sizes: Iterable[Any]) -> bool:
    """Say whether all of these sizes are numbers."""
    return not any(isinstance(size, Dim) for size in sizes)


def divided(dividend: Size, divisor: Size) -> Size:
    """Divide as ONNX divides integers, towards zero.

    Raises:
        UndecidableError: A named dimension does not cancel out, or is not divided exactly.
    """
    if isinstance(divisor, Dim):
        if not isinstance(dividend, Dim) or dividend.symbol != divisor.symbol:
            raise UndecidableError
        dividend, divisor = dividend.scale, divisor.scale
        exact = True
    else:
        exact = isinstance(dividend, Dim)
    scale = dividend.scale if isinstance(dividend, Dim) else dividend
    if divisor == 0 or (exact and scale % divisor):
        raise UndecidableError
    quotient = abs(scale) // abs(divisor) * (1 if scale * divisor >= 0 else -1)
    return Dim(dividend.symbol) * quotient if isinstance(dividend, Dim) else quotient


def broadcast(one: Size, other: Size) -> Size:
    """Return the dimension that two dimensions broadcast to.

    Raises:
        UndecidableError: A named dimension may or may not be 1.
    """
    if one in {1, other}:
        return other
    if other == 1:
        return one
    raise UndecidableError


def compute(node: ir.Node, operands: list[NDArray[np.object_]]) -> NDArray[np.object_] | None:
    """Apply a node of the default domain to integers, each element a Size.

    Returns:
        The elements of its one output, or None if they are not integers or its operator is not followed.

    Raises:
        UndecidableError: They depend on a named dimension in a way that is not followed, or the node cannot run.
    """
    rule = _RULES.get(node.op_type)
    if rule is None:
        return None
    try:
        return np.asarray(rule(node, *operands), dtype=object)
    except (IndexError, OverflowError, ValueError) as error:  # an index or a shape that the operands do not have
        raise UndecidableError from error


def _same(one: Size, other: Size) -> bool:
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    if one == other:
        return True
    for dimension, number in ((one, other), (other, one)):
        if isinstance(dimension, Dim) and dimension.scale > 0 and isinstance(number, int) and number < 0:
            return False
    raise UndecidableError


def _modulo(dividend: Size, divisor: Size) -> Size:
    if isinstance(dividend, int) and isinstance(divisor, int) and divisor:
        return dividend % divisor
    raise UndecidableError


def _elementwise(function: Callable[..., Any], operands: int) -> Callable[..., Any]:
    applied = np.frompyfunc(function, operands, 1)
    return lambda _node, *given: applied(*given)


def _numbers(array: NDArray[np.object_]) -> NDArray[np.int64]:
    if not is_static(array.flat):
        raise UndecidableError
    return array.astype(np.int64)


def _gather(node: ir.Node, data: NDArray[np.object_], indices: NDArray[np.object_]) -> Any:
    return np.take(data, _numbers(indices), axis=node.attributes.get_int("axis", 0))


def _slice(_: ir.Node, data: NDArray[np.object_], *bounds: NDArray[np.object_]) -> Any:
    starts, ends, axes, steps = [_numbers(bound).tolist() for bound in bounds] + [[0], [1]][len(bounds) - 2 :]
    if data.ndim != 1 or axes not in ([0], [-1]) or steps[0] < 0:
        raise UndecidableError
    return data[starts[0] : ends[0] : steps[0]]


def _concat(node: ir.Node, *parts: NDArray[np.object_]) -> Any:
    return np.concatenate(parts, axis=node.attributes.get_int("axis", 0))


def _squeeze(_: ir.Node, data: NDArray[np.object_], axes: NDArray[np.object_] | None = None) -> Any:
    return np.squeeze(data, None if axes is None else tuple(_numbers(axes).tolist()))


def _unsqueeze(_: ir.Node, data: NDArray[np.object_], axes: NDArray[np.object_]) -> Any:
    return np.expand_dims(data, tuple(_numbers(axes).tolist()))


def _reshape(_: ir.Node, data: NDArray[np.object_], shape: NDArray[np.object_]) -> Any:
    sizes = _numbers(shape).tolist()
    return data.reshape([data.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)])


def _cast(node: ir.Node, data: NDArray[np.object_]) -> Any:
    if ir.DataType(node.attributes.get_int("to", 0)) not in {ir.DataType.INT64, ir.DataType.INT32}:
        raise UndecidableError
    return data


def _filled(node: ir.Node, shape: NDArray[np.object_]) -> Any:
    value = node.attributes.get_tensor("value")
    array = np.zeros(1, dtype=np.float32) if value is None else value.numpy()
    if array.dtype.kind not in "iub":
        raise UndecidableError
    sizes = _numbers(shape).tolist()
    if math.prod(sizes) > MAX_INTEGERS:
        raise UndecidableError
    return np.full(sizes, array.item(), dtype=object)


def _product(node: ir.Node, data: NDArray[np.object_], axes: NDArray[np.object_] | None = None) -> Any:
    if data.ndim != 1 or (axes is None and node.attributes.get_int("noop_with_empty_axes", 0) == 1):
        raise UndecidableError
    product = math.prod(data.tolist())
    return [product] if node.attributes.get_int("keepdims", 1) else product


_RULES: dict[str, Callable[..., Any]] = {
    "Add": _elementwise(operator.add, 2),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Div": _elementwise(divided, 2),
    "Equal": _elementwise(_same, 2),
    "Gather": _gather,
    "Identity": lambda _node, data: data,
    "Mod": _elementwise(_modulo, 2),
    "Mul": _elementwise(operator.mul, 2),
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(operator.sub, 2),
    "Unsqueeze": _unsqueeze,
    "Where": _elementwise(lambda condition, one, other: one if condition else other, 3),
}
