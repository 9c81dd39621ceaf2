"""Which layers are quantized: as many as leave the answers as they were.

Each group of layers has a cost, what it does to the logits when it is quantized alone, and a worth, its share of the
arithmetic. Squared errors of groups add up, near enough, so layers are left out in the order of cost over worth, and
the plan is the first in that order that agrees with fp32 on images that no range comes from. What costs much and is
worth next to nothing, as a classifier often does, is left out in any case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.quantize.agreement import agreement, expected_agreement
from trt_vit.quantize.qdq import place
from trt_vit.quantize.session import run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from trt_vit.quantize.solve import GroupCodes

_FIRM = 0.995
"""The largest expected agreement that is asked for: a few dozen images do not tell more."""
_ROUNDING = 1e-9
_WORTHLESS = 0.002
"""Share of the arithmetic that groups may have together and be left out for their cost alone."""
_DEAR = 10.0
"""How often a group's share of the cost is its share of the arithmetic then, at least."""


@dataclass(frozen=True)
class Score:
    """How a plan does on the images that were held back.

    Attributes:
        images: How many they are.
        disagreeing: How many of them have another top-1 than in floating point.
        expected: Share of images like them that is to be expected to have the same.
    """

    images: int
    disagreeing: int
    expected: float

    @classmethod
    def of(cls, logits: NDArray[np.float32], reference: NDArray[np.float32]) -> Score:
        """Compare logits [images, classes] with those of the float graph."""
        same = agreement(logits, reference)
        return cls(len(reference), round((1 - same) * len(reference)), expected_agreement(logits, reference))

    @property
    def agreement(self) -> float:
        """Share of the images with the same top-1."""
        return 1 - self.disagreeing / self.images

    def reaches(self, least: float) -> bool:
        """Tell whether images agree as often as asked, to the image, and are to be expected to."""
        allowed = math.ceil((1 - least) * self.images - _ROUNDING)
        return self.disagreeing <= allowed and self.expected >= min(least, _FIRM)


@dataclass(frozen=True)
class Plan:
    """Which groups of layers are quantized.

    Attributes:
        quantized: Names of the groups that are.
        score: How it does; None where that was not looked at.
        reached: Whether that is what was asked for.
    """

    quantized: tuple[str, ...]
    score: Score | None
    reached: bool


def search(
    model: ir.Model,
    groups: Mapping[str, GroupCodes],
    *,
    costs: Mapping[str, float],
    macs: Mapping[str, int],
    batches: Sequence[NDArray[np.float32]],
    reference: NDArray[np.float32],
    least: float,
    tell: Callable[[int, Score], None],
) -> Plan:
    """Find the plan with the most arithmetic quantized that agrees with floating point as often as asked.

    Args:
        model: The float graph; it is left as it is.
        groups: How each group is quantized, by its name.
        costs: Squared error of the logits that each group causes alone.
        macs: Multiply-accumulates of each group.
        batches: Preprocessed images that were held back, float32 [n, 3, height, width] each.
        reference: Logits of the float graph for them, float32 [images, classes]; what more a batch has is filling.
        least: The least agreement, 0 to 1.
        tell: Called with how many groups are left out and how that does, for each plan that is tried.

    Returns:
        The plan; where none reaches ``least``, the one that agrees most often and, of several, has most quantized.
    """
    order = sorted(groups, key=lambda name: costs[name] / macs[name], reverse=True)
    trials: dict[int, tuple[Score, NDArray[np.float32]]] = {}

    def passes(left_out: int) -> bool:
        if left_out not in trials:
            quantized = model.clone()
            place(quantized, [groups[name] for name in groups if name in order[left_out:]])
            logits = run(quantized, list(batches))[: len(reference)]
            trials[left_out] = Score.of(logits, reference), logits
            tell(left_out, trials[left_out][0])
        return trials[left_out][0].reaches(least)

    chosen = start = _not_worth_it([(costs[name], macs[name]) for name in order])
    if not passes(start) and start < len(order) - 1:
        errors = trials[start][1] - reference
        remaining = np.array([sum(costs[name] for name in order[count:]) for count in range(start, len(order))])
        guess = _guess(errors, reference, remaining / max(remaining[0], np.finfo(float).tiny), least)
        chosen = _first(passes, start, len(order) - 1, start + guess)
    if not passes(chosen):
        chosen = max(trials, key=lambda count: (min(trials[count][0].agreement, trials[count][0].expected), -count))
    score = trials[chosen][0]
    kept = set(order[chosen:])
    return Plan(tuple(name for name in groups if name in kept), score, score.reaches(least))


def _not_worth_it(order: Sequence[tuple[float, int]]) -> int:
    """Return how many groups, of the first in an order of cost and arithmetic, are left out in any case."""
    cost, arithmetic = (sum(column) for column in zip(*order, strict=True))
    count, spent = 0, 0
    for own_cost, own in order[:-1]:
        spent += own
        if spent > _WORTHLESS * arithmetic or own_cost * arithmetic < _DEAR * own * cost or not own_cost:
            break
        count += 1
    return count


def _guess(
    errors: NDArray[np.float32], reference: NDArray[np.float32], shares: NDArray[np.float64], least: float
) -> int:
    """Return how many groups have to be left out if squared errors fall by what these cost."""
    for count, share in enumerate(shares):
        logits = reference + np.float32(np.sqrt(share)) * errors
        if Score.of(logits, reference).reaches(least):
            return count
    return len(shares) - 1


def _first(passes: Callable[[int], bool], fails: int, last: int, guess: int) -> int:
    """Return the first number after one that fails, up to the last, that passes; the last where none is found to."""
    while last - fails > 1:
        probe = min(max(guess, fails + 1), last - 1)
        if passes(probe):
            last = probe
            guess = (fails + last) // 2
        else:
            fails = probe
            guess = (fails + last + 1) // 2
    return last
