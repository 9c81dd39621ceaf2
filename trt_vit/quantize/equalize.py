"""How the layers that read one tensor are quantized best: found on rows that calibration has kept, layer by layer.

A tensor is quantized with one scale, so that one channel much larger than the others takes the codes from them. What
helps is to shift and to scale the channels before, and to undo both in the weights, which changes nothing in exact
arithmetic (Outlier Suppression+, Wei et al. 2023, https://arxiv.org/abs/2304.09145):

    x W = ((x - shift) / scale) (scale W) + shift W

A shift centres each channel, which halves the range of what comes from a GELU. Scales are those of SmoothQuant (Xiao et
al. 2022, https://arxiv.org/abs/2211.10438), or bring down only what is beyond a threshold.

Which of these ways is taken, and where the range ends, is decided by the error of the layers' output, on images other
than those the ranges come from: what lies beyond a range in an image that was not seen costs most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.quantize.codes import LARGEST, activation_scale, round_up, rounded
from trt_vit.quantize.ranges import largest_kept

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from trt_vit.engine.manifest import RangeMethod
    from trt_vit.quantize.codes import Code
    from trt_vit.quantize.statistics import TensorStatistics

_ROWS = 256
"""Rows of each half that the ways are compared on."""
_THRESHOLDS = (0.5, 0.25, 0.1, 0.04)
_EXPONENTS = (0.5, 0.75)
_ENDS = (1.5, 1.25, 1.1, 0.9, 0.8, 0.65, 0.5)
"""Where a range may end, beside its largest value."""
_WORTHWHILE = 0.97
"""Another way is taken only where its error is less than this share of that of the best so far."""
_RATIO = 256.0
"""How far the scales of a tensor lie apart at most: they and what is divided by them are fp16 numbers in the engine."""
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Numbers:
    """What a layer multiplies."""

    activations: Code
    weights: Code


@dataclass(frozen=True)
class Methods:
    """What is done for accuracy; all of it, unless what each is worth is being measured.

    Attributes:
        equalize: Whether channels are shifted and scaled.
        ranges: Where the range of a tensor ends.
        round_together: Whether weights are rounded by GPTQ, else each to its nearest code.
        correct_biases: Whether the mean error of each output channel is taken from its bias.
    """

    equalize: bool = True
    ranges: RangeMethod = "error"
    round_together: bool = True
    correct_biases: bool = True


@dataclass(frozen=True)
class Operand:
    """How a tensor is quantized.

    Attributes:
        amax: Largest absolute value that is not clipped, after shift and scale.
        shift: What is subtracted from each channel, float32 [channels], or None for nothing.
        scale: What each channel is divided by then, float32 [channels], or None for nothing.
    """

    amax: float
    shift: NDArray[np.float32] | None = None
    scale: NDArray[np.float32] | None = None

    def apply(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return rows [n, channels] shifted and scaled."""
        shifted = rows if self.shift is None else rows - self.shift
        return shifted if self.scale is None else shifted / self.scale

    def undo(self, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a weight [channels, out] that takes the scale back."""
        return matrix if self.scale is None else matrix * self.scale[:, None]

    def repeated(self, times: int) -> Operand:
        """Return the operand of rows that have each channel several times, one after the other."""
        shift, scale = (None if array is None else np.repeat(array, times) for array in (self.shift, self.scale))
        return Operand(self.amax, shift, scale)

    def codes(self, rows: NDArray[np.float32], number: Code) -> NDArray[np.float32]:
        """Return rows as a layer reads them: shifted, scaled, quantized and dequantized."""
        return rounded(self.apply(rows), activation_scale(self.amax, number), number)


@dataclass(frozen=True)
class _Way:
    """One way to come to an operand from the ranges of channels.

    Attributes:
        centred: Whether channels are shifted to the middle of their range.
        threshold: Share of the largest channel's range that larger channels are scaled down to, or None.
        exponent: SmoothQuant's, or None.
        end: Where the range ends, as a multiple of the largest value.
    """

    centred: bool = False
    threshold: float | None = None
    exponent: float | None = None
    end: float = 1.0


_PLAIN = _Way()
_SAFE_END = 1.1
"""How far beyond the calibration images' values a range reaches while scales are compared."""


def find_operand(
    halves: tuple[TensorStatistics, TensorStatistics], matrix: NDArray[np.float32], numbers: Numbers, methods: Methods
) -> Operand:
    """Find how a tensor is quantized best for the layers that read it.

    Args:
        halves: What is known of the tensor from each half of the calibration images.
        matrix: The weights of the layers that read it, side by side, float32 [channels, out].
        numbers: What they multiply.
        methods: What may be done.
    """
    search = _Search(halves, matrix, numbers)
    way = search.best_scales(_PLAIN) if methods.equalize else _PLAIN
    whole = halves[0].merged(halves[1])
    if methods.ranges == "error":
        return search.operand(search.best_end(way), whole)
    operand = search.operand(way, whole)
    rows = operand.apply(whole.rows.astype(np.float32))
    return replace(operand, amax=largest_kept(rows, operand.amax, methods.ranges, numbers.activations))


class _Search:
    """The errors of ways: operands from the ranges of one half, tried on the rows of the other."""

    def __init__(
        self, halves: tuple[TensorStatistics, TensorStatistics], matrix: NDArray[np.float32], numbers: Numbers
    ) -> None:
        self._numbers = numbers
        self._weights = np.abs(matrix).max(axis=1)
        self._trials = [
            (ranges, _Trial(rows.rows[:: max(1, len(rows.rows) // _ROWS)], matrix, numbers))
            for ranges, rows in (halves, halves[::-1])
        ]

    def best_scales(self, start: _Way) -> _Way:
        """Return the best of all shifts and scales."""
        found = self._best(replace(way, end=_SAFE_END) for way in [start, *_equalizations()])
        return replace(found, end=1.0)

    def best_end(self, way: _Way) -> _Way:
        """Return a way with the best end of its range."""
        return self._best([way, *(replace(way, end=end) for end in _ENDS)])

    def _best(self, ways: Iterator[_Way] | list[_Way]) -> _Way:
        """Return the first of some ways, or another that is better by more than chance."""
        best, least = None, np.inf
        for way in ways:
            error = sum(trial.error(self.operand(way, ranges)) for ranges, trial in self._trials)
            if best is None or error < _WORTHWHILE * least:
                best, least = way, error
        assert best is not None  # noqa: S101 - no list of ways is empty
        return best

    def operand(self, way: _Way, tensor: TensorStatistics) -> Operand:
        """Return what a way comes to with the ranges of a tensor."""
        shift = (tensor.low + tensor.high) * np.float32(0.5) if way.centred else None
        ranges = _ranges(tensor, shift)
        scale = self._scale(way, ranges)
        amax = float((ranges if scale is None else ranges / scale).max()) * way.end
        if shift is not None and self._numbers.activations == "int8":
            # A zero, which a GELU gives most often, is a code of its own; for that a range is longer by half a step.
            amax *= LARGEST["int8"] / (LARGEST["int8"] - 0.5)
            step = activation_scale(amax, "int8") * (np.float32(1) if scale is None else scale)
            shift = (np.rint(shift / step) * step).astype(np.float32)
        return Operand(amax, shift, scale)

    def _scale(self, way: _Way, ranges: NDArray[np.float32]) -> NDArray[np.float32] | None:
        if way.threshold is not None:
            beyond = ranges / (way.threshold * max(float(ranges.max()), _TINY))
            return np.asarray(np.clip(beyond, 1, _RATIO), dtype=np.float32)
        if way.exponent is None:
            return None
        known = (ranges > 0) & (self._weights > 0)
        if not known.any():
            return None
        exact = np.ones(len(ranges))
        exact[known] = ranges[known] ** way.exponent / self._weights[known] ** (1 - way.exponent)
        middle = np.exp(np.log(exact[known]).mean())
        around = np.clip(exact / middle, _RATIO**-0.5, _RATIO**0.5)
        return np.asarray(np.where(known, around, 1), dtype=np.float32)


def _equalizations() -> Iterator[_Way]:
    for centred in (False, True):
        if centred:
            yield _Way(centred)
        for threshold in _THRESHOLDS:
            yield _Way(centred, threshold=threshold)
        for exponent in _EXPONENTS:
            yield _Way(centred, exponent=exponent)


def _ranges(tensor: TensorStatistics, shift: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Return the largest absolute value of each channel after a shift."""
    low, high = (tensor.low, tensor.high) if shift is None else (tensor.low - shift, tensor.high - shift)
    return np.maximum(np.abs(low), np.abs(high))


class _Trial:
    """Rows, and what their product with a weight should be."""

    def __init__(self, rows: NDArray[np.floating], matrix: NDArray[np.float32], numbers: Numbers) -> None:
        self._rows = rows.astype(np.float32)
        self._matrix = matrix
        self._numbers = numbers
        self._target = self._rows @ matrix
        self._weights = row_weights(self._target)

    def error(self, operand: Operand) -> float:
        """Return the error of the product relative to the product, each row's to its own: 0 is none."""
        matrix = operand.undo(self._matrix)
        weights = self._numbers.weights
        read = operand.codes(self._rows, self._numbers.activations)
        error = read @ rounded(matrix, exact_scales(matrix, weights), weights) - self._target
        error -= error.mean(axis=0)  # which the bias makes up for, as it does for the shift
        return float(np.sum(self._weights * np.sum(np.square(error), axis=1)))


def row_weights(product: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what the squared error of each row of a product [rows, out] counts.

    Tokens differ in size by orders of magnitude, and a normalization follows: an error matters relative to its row.
    """
    norms = np.sum(np.square(product), axis=1)
    weights = 1 / (norms + norms.mean() + _TINY)
    return np.asarray(weights / len(product), dtype=np.float32)


def exact_scales(matrix: NDArray[np.float32], number: Code) -> NDArray[np.float32]:
    """Return scales of the columns of a weight [in, out]: of INT8 one each, of FP8 one for all."""
    largest = np.abs(matrix).max(axis=None if number == "fp8" else 0).astype(np.float64)
    return round_up(np.asarray(largest / LARGEST[number]))
