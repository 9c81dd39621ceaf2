from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

from tests.quantize.graphs import graph_of, kinds
from trt_vit.errors import EngineError
from trt_vit.quantize.cast import cast
from trt_vit.quantize.linear import linear_layers
from trt_vit.quantize.ranges import activation_ranges, largest_values

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray


def _model(factor: float = -2.0) -> ir.Model:
    """x -> MatMul -> h -> Mul by a factor -> m -> MatMul -> y, and another MatMul that reads m too."""
    return graph_of(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"]),
            helper.make_node("Mul", ["h", "factor"], ["m"]),
            helper.make_node("MatMul", ["m", "a"], ["y"]),
            helper.make_node("MatMul", ["m", "b"], ["z"]),
        ],
        {"a": np.eye(4, dtype=np.float32), "b": np.eye(4, dtype=np.float32), "factor": np.array(factor, np.float32)},
        given={"x": ("batch", 4)},
        outputs={"y": ("batch", 4), "z": ("batch", 4)},
    )


def _batches(*numbers: float) -> list[NDArray[np.float32]]:
    return [np.array([[0.5, number, 0, -0.25]], np.float32) for number in numbers]


def test_the_largest_absolute_value_over_all_batches() -> None:
    model = _model()
    before = kinds(model)
    batches = [*_batches(1, -7, 3), np.full((3, 4), 0.125, np.float32)]
    assert activation_ranges(model, iter(batches)) == {"x": 7.0, "h": 7.0, "m": 14.0, "y": 14.0, "z": 14.0}
    assert kinds(model) == before
    assert len(model.graph.outputs) == 2


def test_every_linear_layer_of_a_vit_has_a_range(vit: ir.Model, pixels: NDArray[np.float32]) -> None:
    ranges = activation_ranges(vit, [pixels[:3], pixels[3:]])
    layers = linear_layers(vit)
    assert set(ranges) == {value.name for layer in layers for value in (layer.activation, layer.node.outputs[0])}
    assert len({layer.activation.name for layer in layers}) == 6  # of 8 layers: Q, K and V read the same tensor
    assert ranges["pixel_values"] == np.abs(pixels).max()
    assert all(0 < amax < 1e4 for amax in ranges.values())


def test_a_tensor_of_zeros_has_the_range_zero() -> None:
    assert activation_ranges(_model(factor=0.0), _batches(2)) == {"x": 2.0, "h": 2.0, "m": 0.0, "y": 0.0, "z": 0.0}


def test_no_batch_is_an_error() -> None:
    with pytest.raises(EngineError, match="no calibration image"):
        activation_ranges(_model(), [])


def test_an_infinite_tensor_is_named() -> None:
    with pytest.raises(EngineError, match="m: infinite or not a number"):
        activation_ranges(_model(factor=3e38), _batches(2))


def test_not_a_number_is_noticed() -> None:
    with pytest.raises(EngineError, match="infinite or not a number"):
        activation_ranges(_model(), _batches(1, float("nan"), 1))


def test_tensors_of_a_graph_in_fp16_are_measured() -> None:
    model = _model()
    cast(model, "fp16")
    assert activation_ranges(model, _batches(1, -7, 3))["m"] == 14.0


def test_the_largest_value_with_its_sign() -> None:
    assert largest_values(_model(), ["h", "m"], _batches(1, 7, 3), signed={"m"}) == {
        "h": 7.0, "m": 0.5, "y": 14.0, "z": 14.0,
    }  # fmt: skip
