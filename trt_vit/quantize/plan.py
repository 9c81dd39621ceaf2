"""From a float graph and calibration images to a quantized graph that still answers as the float one does."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onnx_ir.passes.common import RemoveUnusedNodesPass

from trt_vit.quantize.attention import attention_behind
from trt_vit.quantize.equalize import Methods, Numbers
from trt_vit.quantize.linear import groups, linear_layers
from trt_vit.quantize.qdq import place
from trt_vit.quantize.search import Plan, Score, search
from trt_vit.quantize.sensitivity import sensitivities
from trt_vit.quantize.solve import GroupCodes, reason_to_leave_out, solve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import onnx_ir as ir

    from trt_vit.quantize.calibrate import Calibration
    from trt_vit.quantize.linear import Group

    Tell = Callable[[str, int, int], None]

_SENSITIVITY_IMAGES = 16
"""Enough to rank layers: what is measured is the error of logits, which every image has, not a change of the answer."""
_UNPAID = "an attention's output: in INT8 it costs TensorRT a kernel more, and is a twelfth of a layer"


_SOUND = frozenset({
    "Add", "Erf", "Gather", "Gelu", "LayerNormalization", "Mul", "Relu", "Reshape", "Sigmoid", "Tanh", "Transpose",
})  # fmt: skip
"""Operators behind which OpenVINO 2026.4 shifts and scales channels as it is told to. It fuses that into the operator
before, and what it makes of a ReduceMean that drops its axis, or of a Concat with one, takes the wrong channels."""


@dataclass(frozen=True)
class Wish:
    """What a quantized graph is to be.

    Attributes:
        numbers: What layers are to multiply.
        least_agreement: How often it is to have the top-1 of the float graph, 0 to 1. At 0 nothing is searched for:
            whatever can be quantized is.
        tensorrt: Whether it is TensorRT that compiles it.
        attention: Whether attentions are to be quantized too, where TensorRT has kernels for that.
        methods: What is done for accuracy.
    """

    numbers: Numbers
    least_agreement: float
    tensorrt: bool
    attention: bool = False
    methods: Methods = field(default_factory=Methods)


@dataclass(frozen=True)
class Placement:
    """What became of one linear layer.

    Attributes:
        layer: Name of the layer.
        macs: Its multiply-accumulates for one image.
        left_out: Why it stays in floating point, or None where it is quantized.
        amax: Largest absolute value of its input that is not clipped; None where it was not to be quantized at all.
        equalized: Whether channels of its input are shifted or scaled.
        attention: Whether the attention that it reads is quantized with it.
        cost: Squared error of the logits when nothing but its group is quantized; None where that was not measured.
    """

    layer: str
    macs: int
    left_out: str | None
    amax: float | None = None
    equalized: bool = False
    attention: bool = False
    cost: float | None = None


@dataclass(frozen=True)
class Quantization:
    """What became of a graph.

    Attributes:
        placements: One for each linear layer, in the order of the graph.
        score: How the graph does on the images that were held back; None where it was not looked at.
        reached: Whether it agrees with the float graph as often as asked.
    """

    placements: tuple[Placement, ...]
    score: Score | None
    reached: bool


def quantize(model: ir.Model, calibration: Calibration, wish: Wish, tell: Tell) -> Quantization:
    """Quantize as many linear layers of a graph as leave its answers as they were, in place.

    Args:
        model: A float graph of opset 19 or later.
        calibration: What was measured of it.
        wish: What it is to be.
        tell: Called with what is being done, how much of it is done and how much there is.
    """
    found = groups(linear_layers(model))
    reasons = {group.name: reason for group in found if (reason := _reason(group, calibration, wish)) is not None}
    codes: dict[str, GroupCodes] = {}
    candidates = [group for group in found if group.name not in reasons]
    for group in candidates:
        codes[group.name] = _solve(group, calibration, wish)
        tell("quantizing layer by layer", len(codes), len(candidates))
    costs: Mapping[str, float] = {}
    plan = Plan(tuple(codes), None, reached=True)
    if wish.least_agreement > 0 and codes:
        some = calibration.held_back_batches(_SENSITIVITY_IMAGES)
        costs = sensitivities(model, codes, some, lambda done, of: tell("measuring what each layer costs", done, of))
        plan = search(
            model,
            codes,
            costs=costs,
            macs={group.name: group.macs for group in candidates},
            batches=calibration.held_back,
            reference=calibration.reference,
            least=wish.least_agreement,
            tell=lambda left_out, score: tell(_told(left_out, score), 1, 1),
        )
    place(model, [codes[name] for name in plan.quantized])
    RemoveUnusedNodesPass()(model)
    for name in codes.keys() - set(plan.quantized):
        reasons[name] = f"for agreement with fp32: alone it moves the logits by {costs[name] ** 0.5:.2g}"
    return Quantization(tuple(_placements(found, codes, reasons, costs)), plan.score, plan.reached)


def _told(left_out: int, score: Score) -> str:
    same = f"{score.images - score.disagreeing} of {score.images} answers as before, {score.expected:.1%} expected"
    return f"{left_out} groups of layers left out: {same}"


def _reason(group: Group, calibration: Calibration, wish: Wish) -> str | None:
    reason = reason_to_leave_out(group, calibration.statistics, wish.numbers.activations)
    if (
        reason is not None
        or not wish.tensorrt
        or wish.numbers.activations != "int8"
        or _attention(group, wish) is not None
    ):
        return reason
    return _UNPAID if attention_behind(group.layers[0].activation) is not None else None


def _attention(group: Group, wish: Wish) -> tuple[str, ...] | None:
    """Return the names of the tensors of an attention that is quantized with a group, or None."""
    attention = attention_behind(group.layers[0].activation) if wish.attention and wish.tensorrt else None
    if attention is None or not attention.fuses_in_int8 or wish.numbers.activations != "int8":
        return None
    return tuple(str(value.name) for value in attention.tensors)


def _solve(group: Group, calibration: Calibration, wish: Wish) -> GroupCodes:
    attention = _attention(group, wish)
    read = group.layers[0].activation
    # Between an attention and the codes of its output nothing may stand, or TensorRT does not write them with it.
    sound = attention_behind(read) is None if wish.tensorrt else _is_sound_behind(read.producer())
    methods = replace(wish.methods, equalize=wish.methods.equalize and sound)
    codes = solve(group, calibration.statistics, wish.numbers, methods)
    if attention is None:
        return codes
    return replace(codes, attention={name: calibration.statistics.largest[name] for name in attention})


def _is_sound_behind(source: ir.Node | None) -> bool:
    return source is None or (source.op_type in _SOUND and source.domain == "")


def _placements(
    found: list[Group], codes: Mapping[str, GroupCodes], reasons: Mapping[str, str], costs: Mapping[str, float]
) -> Iterator[Placement]:
    for group in found:
        solved = codes.get(group.name)
        for layer in group.layers:
            yield Placement(
                layer=layer.name,
                macs=layer.macs,
                left_out=reasons.get(group.name),
                amax=None if solved is None else solved.operand.amax,
                equalized=solved is not None and (solved.operand.shift is not None or solved.operand.scale is not None),
                attention=solved is not None and solved.attention is not None,
                cost=costs.get(group.name),
            )
