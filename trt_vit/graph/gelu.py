"""Gelu as one node, of the five (by erf) or eight (by tanh) that exporters write below operator set 20.

Every exporter orders the operands and groups the factors in its own way. So no list of patterns is matched: the
arithmetic around an Erf or a Tanh is expanded to a polynomial in its argument x and in that function t of x, and
compared with that of the formulas of Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016):

    by erf:   x/2 + x/2 * t,  t = erf(x / sqrt(2))
    by tanh:  x/2 + x/2 * t,  t = tanh(sqrt(2 / pi) * x + sqrt(2 / pi) * 0.044715 * x**3)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_ir as ir

from trt_vit.graph.edit import constant, replace, rounding, sole_user, used_within, widened

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_Polynomial = dict[tuple[int, int], float]
"""Coefficients by the powers of x and of t."""

_X, _T = (1, 0), (0, 1)
_GELU: _Polynomial = {(1, 0): 0.5, (1, 1): 0.5}
_TANH = math.sqrt(2 / math.pi)
_ARGUMENTS: dict[str, tuple[str, _Polynomial]] = {
    "Erf": ("none", {(1, 0): math.sqrt(0.5)}),
    "Tanh": ("tanh", {(1, 0): _TANH, (3, 0): _TANH * 0.044715}),
}
"""By operator: what Gelu calls the formula, and the argument of the operator in it."""
_MAX_DEPTH = 6
"""No way of writing either formula has more operations in a row before or after the function."""


def fuse_gelu(model: ir.Model) -> int:
    """Replace the arithmetic of a Gelu by the operator, where nothing else reads a part of it.

    Args:
        model: A model of opset 20 or later, which is changed.

    Returns:
        How many were replaced.
    """
    count = 0
    for node in list(model.graph):
        if node.domain == "" and node.op_type in _ARGUMENTS:
            count += _fuse(model.graph, node)
    return count


def _fuse(graph: ir.Graph, function: ir.Node) -> bool:
    approximate, expected = _ARGUMENTS[function.op_type]
    argument = function.inputs[0]
    for x in _candidates(argument, _MAX_DEPTH):
        inside = _Expansion({x: _X})
        if not inside.equals(argument, expected):
            continue
        outside = _Expansion({x: _X, function.outputs[0]: _T})
        for output in _following(function.outputs[0]):
            if outside.equals(output, _GELU):
                nodes = [*inside.nodes, function, *outside.nodes]
                if not used_within(nodes, output) or widened(x, nodes):
                    return False
                replace(graph, nodes, ir.node("Gelu", [x], {"approximate": approximate}), output)
                return True
    return False


def _candidates(value: ir.Value | None, depth: int) -> Iterator[ir.Value]:
    """All tensors that the argument is computed from by a few operations: one of them is x."""
    node = None if value is None else value.producer()
    if node is None or node.op_type not in _OPERATIONS or depth == 0:
        return
    for operand in node.inputs:
        if operand is not None and constant(operand) is None:
            yield operand
            yield from _candidates(operand, depth - 1)


def _following(value: ir.Value) -> Iterator[ir.Value]:
    """The results of the few operations that take the function's value."""
    for _ in range(_MAX_DEPTH):
        user = sole_user(value)
        if user is None or user.op_type not in _OPERATIONS:
            return
        value = user.outputs[0]
        yield value


_OPERATIONS = frozenset({"Add", "Div", "Mul", "Pow"})


@dataclass
class _Expansion:
    """The polynomial that a tensor is in tensors with known powers, and the nodes that compute it."""

    known: Mapping[ir.Value, tuple[int, int]]
    nodes: dict[ir.Node, None] = field(default_factory=dict)
    tolerance: float = 0.0

    def equals(self, value: ir.Value | None, expected: _Polynomial) -> bool:
        """Say whether the coefficients are these, but for the rounding of the constants they are products of."""
        self.nodes.clear()
        found = self._expand(value, _MAX_DEPTH)
        if found is None or found.keys() != expected.keys():
            return False
        return all(math.isclose(found[powers], expected[powers], rel_tol=self.tolerance) for powers in expected)

    def _expand(self, value: ir.Value | None, depth: int) -> _Polynomial | None:
        if value is not None and value in self.known:
            return {self.known[value]: 1.0}
        array = constant(value)
        if array is not None:
            if array.size != 1 or array.dtype.kind not in "fi":
                return None
            self.tolerance = max(self.tolerance, 2 * rounding(array))
            return {(0, 0): float(array.reshape(-1)[0])}
        node = None if value is None else value.producer()
        if node is None or node.domain != "" or node.op_type not in _OPERATIONS or depth == 0:
            return None
        one, other = (self._expand(operand, depth - 1) for operand in node.inputs)
        self.nodes[node] = None
        return None if one is None or other is None else _apply(node.op_type, one, other)


def _apply(kind: str, one: _Polynomial, other: _Polynomial) -> _Polynomial | None:
    if kind == "Add":
        return _sum([*one.items(), *other.items()])
    if kind == "Mul":
        return _product(one, other)
    number = other.get((0, 0)) if len(other) == 1 else None
    if not number:
        return None
    if kind == "Div":
        return _product(one, {(0, 0): 1 / number})
    power = one
    if number not in {2.0, 3.0}:
        return None
    for _ in range(int(number) - 1):
        power = _product(power, one)
    return power


def _product(one: _Polynomial, other: _Polynomial) -> _Polynomial:
    terms = [((a[0] + b[0], a[1] + b[1]), one[a] * other[b]) for a in one for b in other]
    return _sum(terms)


def _sum(terms: list[tuple[tuple[int, int], float]]) -> _Polynomial:
    total: _Polynomial = {}
    for powers, coefficient in terms:
        total[powers] = total.get(powers, 0.0) + coefficient
    return total
