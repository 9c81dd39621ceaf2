from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

from tests.quantize.graphs import evaluate, graph_of, kinds
from trt_vit.errors import EngineError
from trt_vit.quantize.cast import cast
from trt_vit.quantize.linear import groups, linear_layers
from trt_vit.quantize.statistics import ROWS, Statistics, TensorStatistics, measure

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir
    from numpy.typing import NDArray


def _model(factor: float = -2.0) -> ir.Model:
    """x -> MatMul -> h -> Mul by a factor -> m -> MatMul -> y, and another MatMul that reads m too."""
    return graph_of(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
            helper.make_node("Mul", ["h", "factor"], ["m"]),
            helper.make_node("MatMul", ["m", "a"], ["y"], name="second"),
            helper.make_node("MatMul", ["m", "b"], ["z"], name="third"),
        ],
        {"a": np.eye(4, dtype=np.float32), "b": np.eye(4, dtype=np.float32), "factor": np.array(factor, np.float32)},
        given={"x": ("batch", 4)},
        outputs={"y": ("batch", 4), "z": ("batch", 4)},
    )


def _batches(*numbers: float) -> list[NDArray[np.float32]]:
    return [np.array([[0.5, number, 0, -0.25]], np.float32) for number in numbers]


def _measure(model: ir.Model, batches: Iterable[NDArray[np.float32]]) -> Statistics:
    given = list(batches)
    return measure(model, iter(given), images=sum(len(batch) for batch in given))


def _whole(statistics: Statistics, group: str) -> TensorStatistics:
    first, second = statistics.groups[group]
    return first.merged(second)


def test_the_range_of_each_channel_over_all_batches() -> None:
    model = _model()
    before = kinds(model)
    statistics = _measure(model, [*_batches(1, -7, 3), np.full((3, 4), 0.125, np.float32)])
    assert list(statistics.groups) == ["first", "second"]  # the third layer reads what the second does
    x, m = _whole(statistics, "first"), _whole(statistics, "second")
    assert x.low.dtype == x.high.dtype == np.float32
    assert (x.low.tolist(), x.high.tolist()) == ([0.125, -7, 0, -0.25], [0.5, 3, 0.125, 0.125])
    assert (m.low.tolist(), m.high.tolist()) == ([-1, -6, -0.25, -0.25], [-0.25, 14, 0, 0.5])
    assert kinds(model) == before
    assert (len(model.graph.inputs), len(model.graph.outputs)) == (1, 2)


def test_the_largest_value_of_what_layers_write_and_of_what_is_asked_for() -> None:
    batches = _batches(1, -7, 3)
    assert measure(_model(), batches, images=3).largest == {"h": 7.0, "y": 14.0, "z": 14.0}
    assert measure(_model(), batches, images=3, also=["m", "h"]).largest == {"h": 7.0, "y": 14.0, "z": 14.0, "m": 14.0}


def test_every_other_batch_is_in_the_other_half() -> None:
    first, second = _measure(_model(), _batches(1, 20, -3, -40, 5)).groups["first"]
    assert (first.low[1], first.high[1]) == (-3, 5)
    assert (second.low[1], second.high[1]) == (-40, 20)
    assert set(first.rows[:, 1].tolist()) == {1, -3, 5}
    assert set(second.rows[:, 1].tolist()) == {20, -40}


def test_one_batch_is_both_halves() -> None:
    first, second = _measure(_model(), _batches(7)).groups["first"]
    for one, other in ((first.low, second.low), (first.high, second.high), (first.rows, second.rows)):
        np.testing.assert_array_equal(one, other)
    assert first.high.tolist() == [0.5, 7, 0, -0.25]


def test_halves_merge_to_what_both_have_seen() -> None:
    one = TensorStatistics(*(np.array(row, np.float32) for row in ([-1, 2], [3, 4], [[1, 2]])))
    other = TensorStatistics(*(np.array(row, np.float32) for row in ([-5, 3], [1, 9], [[3, 4], [5, 6]])))
    merged = one.merged(other)
    assert (merged.low.tolist(), merged.high.tolist()) == ([-5, 2], [3, 9])
    assert merged.rows.tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize(("batches", "images"), [(1, 5), (3, 4), (2, ROWS)])
def test_as_many_rows_are_kept_as_were_to_be(batches: int, images: int) -> None:
    generator = np.random.default_rng(0)
    given = [generator.standard_normal((images, 4), dtype=np.float32) for _ in range(batches)]
    first, second = _measure(_model(), given).groups["first"]
    counts = [len(first.rows)] if batches == 1 else [len(first.rows), len(second.rows)]
    assert ROWS <= sum(counts) < ROWS + batches * images
    seen = {tuple(row) for row in np.concatenate(given).astype(np.float16).tolist()}
    assert {tuple(row) for row in first.rows.tolist()} <= seen


def test_rows_are_drawn_from_all_over_a_batch() -> None:
    x = np.arange(400, dtype=np.float32).reshape(100, 4)
    first, _ = _measure(_model(), [x]).groups["first"]
    drawn, counts = np.unique(first.rows[:, 0], return_counts=True)
    assert set(drawn.tolist()) == set(x[:, 0].tolist())  # of 2100 draws
    assert counts.max() < 60  # of 21 to be expected


def test_rows_are_the_same_every_time() -> None:
    x = np.random.default_rng(0).standard_normal((10, 4), dtype=np.float32)
    one, other = (_measure(_model(), [x]).groups["second"][0].rows for _ in range(2))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("largest", "dtype"), [(60000, np.float16), (70000, np.float32)])
def test_rows_are_stored_in_fp16_where_that_holds_them(largest: float, dtype: type) -> None:
    rows = _measure(_model(factor=1), _batches(largest)).groups["first"][0].rows
    assert rows.dtype == dtype
    assert rows[0].tolist() == [0.5, largest, 0, -0.25]


def test_the_logits_are_those_of_the_graph() -> None:
    batches = _batches(1, -7, 3)
    logits = _measure(_model(), batches).logits
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, np.concatenate(batches) * -2)


def test_a_row_is_a_token() -> None:
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        {"w": np.ones((3, 2), np.float32)},
        given={"x": ("batch", 2, 5, 3)},
        outputs={"y": ("batch", 2, 5, 2)},
    )
    x = np.random.default_rng(0).integers(-99, 99, (4, 2, 5, 3)).astype(np.float32)
    half = _measure(model, [x]).groups["layer"][0]
    np.testing.assert_array_equal(half.low, x.min(axis=(0, 1, 2)))
    np.testing.assert_array_equal(half.high, x.max(axis=(0, 1, 2)))
    assert {tuple(row) for row in half.rows.tolist()} == {tuple(row) for row in x.reshape(-1, 3).tolist()}


def _patches(x: NDArray[np.float32], kernel: tuple[int, int], stride: int, pad: int, dilation: int) -> set[bytes]:
    """Every patch of some images: im2col, channel after channel."""
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    reach = [dilation * (size - 1) + 1 for size in kernel]
    ends = [size - extent + 1 for size, extent in zip(padded.shape[2:], reach, strict=True)]
    return {
        image[:, row : row + reach[0] : dilation, column : column + reach[1] : dilation].tobytes()
        for image in padded.astype(np.float16)
        for row in range(0, ends[0], stride)
        for column in range(0, ends[1], stride)
    }


@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "dilation"),
    [((2, 2), 2, 0, 1), ((3, 2), 1, 0, 1), ((3, 3), 2, 1, 1), ((2, 2), 1, 0, 2)],
)
@pytest.mark.parametrize("half", [False, True])
def test_a_row_of_a_convolution_is_a_patch(
    kernel: tuple[int, int], stride: int, pad: int, dilation: int, *, half: bool
) -> None:
    attributes = {"strides": [stride] * 2, "pads": [pad] * 4, "dilations": [dilation] * 2}
    sizes = [(8 + 2 * pad - dilation * (size - 1) - 1) // stride + 1 for size in kernel]
    model = graph_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="layer", **attributes)],
        {"w": np.ones((5, 3, *kernel), np.float32)},
        given={"x": ("batch", 3, 8, 8)},
        outputs={"y": ("batch", 5, *sizes)},
    )
    if half:
        cast(model, "fp16")
    x = np.random.default_rng(1).integers(-99, 99, (4, 3, 8, 8)).astype(np.float32)
    first, second = _measure(model, [x[:2], x[2:]]).groups["layer"]
    for part, images in ((first, x[:2]), (second, x[2:])):
        np.testing.assert_array_equal(part.low, images.min(axis=(0, 2, 3)))
        np.testing.assert_array_equal(part.high, images.max(axis=(0, 2, 3)))
        assert part.rows.shape == (ROWS // 2, 3 * kernel[0] * kernel[1])
        assert {row.tobytes() for row in part.rows} == _patches(images, kernel, stride, pad, dilation)


def test_every_linear_layer_of_a_vit_is_measured(vit: ir.Model, pixels: NDArray[np.float32]) -> None:
    statistics = _measure(vit, [pixels[:3], pixels[3:]])
    layers = linear_layers(vit)
    found = groups(layers)
    assert list(statistics.groups) == [group.name for group in found]
    assert len(found) == 6  # of 8 layers: Q, K and V read the same tensor
    assert set(statistics.largest) == {layer.node.outputs[0].name for layer in layers}
    image = _whole(statistics, found[0].name)
    np.testing.assert_array_equal(image.low, pixels.min(axis=(0, 2, 3)))
    np.testing.assert_array_equal(image.high, pixels.max(axis=(0, 2, 3)))
    assert [len(_whole(statistics, group.name).low) for group in found] == [3, 32, 32, 32, 64, 32]
    assert all(0 < amax < 1e4 for amax in statistics.largest.values())
    np.testing.assert_allclose(statistics.logits, evaluate(vit, pixels), atol=1e-5)


def test_a_tensor_of_zeros_has_the_range_zero() -> None:
    statistics = _measure(_model(factor=0.0), _batches(2))
    assert statistics.largest == {"h": 2.0, "y": 0.0, "z": 0.0}
    assert not _whole(statistics, "second").low.any()
    assert not _whole(statistics, "second").high.any()


def test_no_batch_is_an_error() -> None:
    with pytest.raises(EngineError, match="no calibration image") as caught:
        measure(_model(), [], images=0)
    assert "--calibration DIR" in caught.value.hint


def test_an_infinite_tensor_is_named() -> None:
    with pytest.raises(EngineError, match=r"^m: infinite or not a number on calibration images") as caught:
        _measure(_model(factor=3e38), _batches(1, 2))
    assert "classifies in fp32" in caught.value.hint


def test_an_infinite_product_is_named() -> None:
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Sigmoid", ["h"], ["y"])],
        {"w": np.full((4, 2), 3e38, np.float32)},
        given={"x": ("batch", 4)},
        outputs={"y": ("batch", 2)},
    )
    with pytest.raises(EngineError, match=r"^h: infinite or not a number"):
        _measure(model, _batches(2))


def test_not_a_number_is_noticed() -> None:
    with pytest.raises(EngineError, match="infinite or not a number"):
        _measure(_model(), _batches(1, float("nan"), 1))


def test_logits_that_are_not_numbers_are_noticed() -> None:
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Log", ["h"], ["y"])],
        {"w": np.eye(4, dtype=np.float32)},
        given={"x": ("batch", 4)},
        outputs={"y": ("batch", 4)},
    )
    with pytest.raises(EngineError, match=r"^the logits: infinite or not a number"):
        _measure(model, _batches(2))


def test_tensors_of_a_graph_in_fp16_are_measured() -> None:
    model = _model()
    cast(model, "fp16")
    statistics = _measure(model, _batches(1, -7, 3))
    assert list(statistics.largest.values()) == [7.0, 14.0, 14.0]
    half = _whole(statistics, "second")
    assert half.low.dtype == np.float32
    assert (half.low.tolist(), half.high.tolist()) == ([-1, -6, 0, 0.5], [-1, 14, 0, 0.5])
    assert statistics.logits.dtype == np.float32
