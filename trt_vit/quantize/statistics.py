"""What calibration measures, in one pass over the images: the range of every channel, and rows to try things out on.

The reductions run inside ONNX Runtime, as nodes added to the graph: the activations of a batch are gigabytes, what
leaves the session is two numbers for each channel, and a few rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trt_vit.errors import EngineError
from trt_vit.graph.edit import initializer
from trt_vit.quantize.linear import groups, linear_layers
from trt_vit.quantize.session import opened

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from trt_vit.quantize.linear import Group, LinearLayer

ROWS = 2048
"""Rows of a tensor that are kept, or a few more: enough to rank ways to quantize it, and few enough to be kept."""

UNSOUND = "check that the checkpoint classifies in fp32, and its preprocessing"
"""What to do about a graph that gives infinities in fp32."""

_SAMPLE = "calibration_sample"
_SEED = 0


@dataclass(frozen=True)
class TensorStatistics:
    """One tensor that linear layers read, over all calibration images.

    Attributes:
        low: Least value of each channel, float32 [channels].
        high: Largest value of each channel, float32 [channels].
        rows: Rows drawn at random, [rows, in]: what a layer reads for one token. Of a convolution it is a patch,
            channel after channel, so that ``in`` is the channels times the kernel's height and width. Float16 where
            that holds them, else float32.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    rows: NDArray[np.float16] | NDArray[np.float32]

    def merged(self, other: TensorStatistics) -> TensorStatistics:
        """Return what both have seen."""
        rows = np.concatenate([self.rows, other.rows])
        return TensorStatistics(np.minimum(self.low, other.low), np.maximum(self.high, other.high), rows)


@dataclass(frozen=True)
class Statistics:
    """What one pass over the calibration images has measured.

    Attributes:
        groups: What each group of layers reads, by the group's name, in two halves: what every other batch has given,
            and the others. Where there was one batch, it is both.
        largest: Largest absolute value of each tensor that a linear layer writes and of those asked for, by its name.
        logits: What the graph gave for the images, float32 [images, classes].
    """

    groups: dict[str, tuple[TensorStatistics, TensorStatistics]]
    largest: dict[str, float]
    logits: NDArray[np.float32]


def measure(
    model: ir.Model, batches: Iterable[NDArray[np.float32]], *, images: int, also: Sequence[str] = ()
) -> Statistics:
    """Measure every tensor that a linear layer reads.

    Args:
        model: A float graph of opset 18 or later; it is left as it is.
        batches: Preprocessed images, float32 [n, 3, height, width], of any n > 0 that the graph takes; read once.
        images: How many they are in all.
        also: Further tensors whose largest absolute value is wanted.

    Raises:
        EngineError: There is no batch, or a tensor or the logits are infinite or not a number.
        EnvironmentFault: ONNX Runtime is missing.
        ArtifactError: ONNX Runtime cannot read the graph.
    """
    found = groups(linear_layers(model))
    written = [str(layer.node.outputs[0].name) for group in found for layer in group.layers]
    pass_ = _Pass(model, found, list(dict.fromkeys([*written, *also])), math.ceil(ROWS / max(images, 1)))
    with opened(pass_.model) as session:
        given = session.get_inputs()[0].name
        for batch in batches:
            pass_.take(session.run(None, {given: batch, _SAMPLE: pass_.places(len(batch))}))
    return pass_.result()


class _Pass:
    """A copy of a graph that gives out what is measured, and what it has given so far."""

    def __init__(self, model: ir.Model, found: list[Group], written: list[str], rows_an_image: int) -> None:
        self.model = model.clone()
        self._logits = len(self.model.graph.outputs)
        self._found = found
        self._written = written
        self._rows_an_image = rows_an_image
        self._generator = np.random.default_rng(_SEED)
        self._parts: list[list[NDArray[np.float32]]] = []
        self._count = 0
        graph = self.model.graph
        self._sample = ir.Value(name=_SAMPLE, shape=ir.Shape([None]), type=ir.TensorType(ir.DataType.FLOAT))
        graph.inputs.append(self._sample)
        values = {str(value.name): value for value in ir.convenience.create_value_mapping(graph).values()}
        for group in found:
            value, first = values[group.tensor], group.layers[0]
            if first.kind == "Conv":
                self._measure_images(value, first)
            else:
                self._measure_rows(value)
        for name in written:
            self._give(self._node("ReduceMax", self._node("Abs", values[name]), keepdims=0))

    def places(self, images: int) -> NDArray[np.float32]:
        """Return where in a batch the rows are to be drawn from, 0 to 1."""
        # Below 1 by more than rounding, so that the product with the number of rows names one of them.
        return self._generator.random(images * self._rows_an_image, dtype=np.float32) * np.float32(0.9999)

    def take(self, results: Sequence[NDArray[np.float32]]) -> None:
        """Keep what one batch has given."""
        self._parts.append([results[0].astype(np.float32), *results[self._logits :]])

    def result(self) -> Statistics:
        """Return what all batches have given.

        Raises:
            EngineError: As for ``measure``.
        """
        if not self._parts:
            raise EngineError("there is no calibration image", hint="name a directory of images: --calibration DIR")
        logits, *columns = (list(column) for column in zip(*self._parts, strict=True))
        given = iter(columns)
        halves = {group.name: self._halves(given) for group in self._found}
        largest = {name: float(np.max(next(given))) for name in self._written}
        ranges = {
            g.tensor: max(np.abs(side).max() for half in halves[g.name] for side in (half.low, half.high))
            for g in self._found
        }
        broken = next((name for name, number in (ranges | largest).items() if not np.isfinite(number)), None)
        if broken is None and not np.all(np.isfinite(np.concatenate(logits))):
            broken = "the logits"
        if broken is not None:
            raise EngineError(f"{broken}: infinite or not a number on calibration images", hint=UNSOUND)
        return Statistics(halves, largest, np.concatenate(logits))

    @staticmethod
    def _halves(given: Iterator[list[NDArray[np.float32]]]) -> tuple[TensorStatistics, TensorStatistics]:
        low, high, rows = next(given), next(given), next(given)
        first, second = (
            TensorStatistics(
                np.min(low[half], axis=0), np.max(high[half], axis=0), _compact(np.concatenate(rows[half]))
            )
            for half in (slice(0, None, 2), slice(1 if len(low) > 1 else 0, None, 2))
        )
        return first, second

    def _measure_rows(self, value: ir.Value) -> None:
        """Give out the range of each channel of a tensor [..., channels], and some of its rows."""
        # Reshape cannot copy the last size to another place, and the shape of a tensor may not be known here.
        channels = self._node("Slice", self._node("Shape", value), self._number(-1), self._number(2**31 - 1))
        rows = self._node("Reshape", value, self._node("Concat", self._number(-1), channels, axis=0))
        self._give_ranges(rows, 0)
        self._give_some(rows)

    def _measure_images(self, value: ir.Value, layer: LinearLayer) -> None:
        """Give out the range of each channel of a tensor [batch, channels, height, width], and some of its patches.

        A convolution whose kernels have one 1 each, at all places one after the other, gives the patches.
        """
        kernel = layer.weight_shape[1:]
        ones = np.eye(math.prod(kernel), dtype=np.float32).reshape(-1, *kernel)
        ones = ones.astype(np.float16) if value.dtype == ir.DataType.FLOAT16 else ones
        patches = self._node("Conv", value, initializer(self.model.graph, "calibration_ones", ones))
        self.model.graph[-1].attributes.update(layer.node.attributes)
        last = self._node("Transpose", patches, perm=[0, 2, 3, 1])
        self._give_ranges(value, 0, 2, 3)
        self._give_some(self._node("Reshape", last, self._number(-1, len(ones))))

    def _give_ranges(self, value: ir.Value, *over: int) -> None:
        for kind in ("ReduceMin", "ReduceMax"):
            self._give(self._node(kind, value, self._number(*over), keepdims=0))

    def _give_some(self, rows: ir.Value) -> None:
        """Give out the rows at the sampled places of a tensor [rows, in]."""
        count = self._node("Cast", self._node("Shape", rows, start=0, end=1), to=ir.DataType.FLOAT)
        place = self._node("Cast", self._node("Mul", self._sample, count), to=ir.DataType.INT64)
        self._give(self._node("Gather", rows, place, axis=0))

    def _number(self, *numbers: int) -> ir.Value:
        return initializer(self.model.graph, "calibration_number", np.array(numbers, dtype=np.int64))

    def _node(self, kind: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        self._count += 1
        node = ir.node(kind, list(inputs), attributes, name=f"calibration_{self._count}")
        node.outputs[0].name = node.name
        self.model.graph.append(node)
        return node.outputs[0]

    def _give(self, value: ir.Value) -> None:
        """Let the graph give out a tensor, as float32."""
        output = self._node("Cast", value, to=ir.DataType.FLOAT)
        output.type = ir.TensorType(ir.DataType.FLOAT)
        self.model.graph.outputs.append(output)


def _compact(rows: NDArray[np.float32]) -> NDArray[np.float16] | NDArray[np.float32]:
    """Store rows in fp16, if they are within its range: they are for comparing codes of 8 bits."""
    return rows.astype(np.float16) if np.abs(rows).max() < np.finfo(np.float16).max else rows
