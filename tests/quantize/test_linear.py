from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.quantize.graphs import graph_of, node
from trt_vit.errors import EngineError
from trt_vit.quantize.cast import cast
from trt_vit.quantize.linear import int8_coverage, linear_layers

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import onnx_ir as ir
    from numpy.typing import NDArray

_F8 = TensorProto.FLOAT8E4M3FN
_GIVEN = {"x": ("batch", 5, 4)}


def _w(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.ones(shape, np.float32)


def test_layers_of_a_vit_and_their_cost(vit: ir.Model) -> None:
    tokens, width, hidden = 17, 32, 64
    layers = linear_layers(vit)
    assert [layer.kind for layer in layers] == ["Conv", *["MatMul"] * 6, "Gemm"]
    assert [layer.macs for layer in layers] == [
        16 * width * 3 * 8 * 8,
        *[tokens * width * width] * 4,
        *[tokens * width * hidden] * 2,
        width * 7,
    ]
    assert {layer.number for layer in layers} == {"fp32"}
    assert len({layer.name for layer in layers}) == 8


@pytest.mark.slow
def test_cost_of_swin_counts_its_windows(export: Callable[[str], ir.Model]) -> None:
    layers = linear_layers(export("swin"))
    first, second = 64 * 16 * 16, 16 * 32 * 32  # 8 x 8 patches of width 16 in 4 windows, then 4 x 4 of width 32 in one
    stages = [*[first] * 4, *[4 * first] * 2, 16 * 64 * 32, *[second] * 4, *[4 * second] * 2]
    assert [layer.macs for layer in layers] == [64 * 16 * 3 * 4 * 4, *stages, 32 * 7]


def test_a_fixed_batch_is_divided_out() -> None:
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": _w(4, 3)},
        given={"x": (6, 5, 4)},
        outputs={"y": (6, 5, 3)},
    )
    assert [layer.macs for layer in linear_layers(model)] == [5 * 4 * 3]


def test_gemm_in_both_layouts_and_grouped_convolution() -> None:
    model = graph_of(
        [
            helper.make_node("Conv", ["x", "kernel"], ["c"], group=2, kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Flatten", ["c"], ["f"]),
            helper.make_node("Gemm", ["f", "a"], ["g"]),
            helper.make_node("Gemm", ["g", "b"], ["y"], transB=1),
        ],
        {"kernel": _w(6, 2, 2, 2), "a": _w(24, 10), "b": _w(3, 10)},
        given={"x": ("batch", 4, 4, 4)},
        outputs={"y": ("batch", 3)},
    )
    layers = linear_layers(model)
    assert [layer.macs for layer in layers] == [6 * 4 * 2 * 4, 24 * 10, 10 * 3]
    assert [layer.output_axis for layer in layers] == [0, 1, 0]


def test_products_of_two_activations_and_of_constants_are_no_layers() -> None:
    model = graph_of(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["x", "t"], ["scores"]),
            helper.make_node("MatMul", ["a", "b"], ["w"]),
            helper.make_node("MatMul", ["scores", "w"], ["y"], name="layer"),
        ],
        {"a": _w(5, 2), "b": _w(2, 3)},
        given=_GIVEN,
        outputs={"y": ("batch", 5, 3)},
    )
    assert linear_layers(model) == []  # the weight of the last is computed: not a constant that can be quantized
    with pytest.raises(EngineError, match="hand-made: the graph has no MatMul"):
        int8_coverage(model)


def _two_layers(codes: int, *, weight_as_codes: bool) -> ir.Model:
    """MatMul 4 -> 3, quantized, its weight transposed behind the pair, and MatMul 3 -> 2, not quantized."""
    kind = helper.tensor_dtype_to_np_dtype(codes)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["codes" if weight_as_codes else "wq", "s", "z"], ["wd"]),
        helper.make_node("Transpose", ["wd"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["d", "wt"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
    ]
    weights: dict[str, NDArray[Any]] = {"s": np.full((), 0.5, np.float32), "z": np.zeros((), kind), "v": _w(3, 2)}
    if weight_as_codes:
        weights["codes"] = np.ones((3, 4), kind)
    else:
        weights["w"] = _w(3, 4)
        nodes.insert(2, helper.make_node("QuantizeLinear", ["w", "s", "z"], ["wq"]))
    return graph_of(nodes, weights, given=_GIVEN, outputs={"y": ("batch", 5, 2)})


@pytest.mark.parametrize("weight_as_codes", [True, False])
@pytest.mark.parametrize(
    ("codes", "number", "coverage"),
    [(TensorProto.INT8, "int8", 12 / 18), (TensorProto.UINT8, "int8", 12 / 18), (_F8, "fp8", 0)],
)
def test_numbers_of_a_quantized_graph(codes: int, number: str, coverage: float, weight_as_codes: bool) -> None:  # noqa: FBT001
    model = _two_layers(codes, weight_as_codes=weight_as_codes)
    assert [layer.number for layer in linear_layers(model)] == [number, "fp32"]
    assert int8_coverage(model) == pytest.approx(coverage)
    cast(model, "fp16")
    assert [layer.number for layer in linear_layers(model)] == [number, "fp16"]
    assert int8_coverage(model) == pytest.approx(coverage)


def test_one_operand_in_codes_is_not_int8() -> None:
    model = _two_layers(TensorProto.INT8, weight_as_codes=True)
    node(model, "MatMul").replace_input_with(0, model.graph.inputs[0])
    assert [layer.number for layer in linear_layers(model)] == ["fp32", "fp32"]
    assert int8_coverage(model) == 0
    cast(model, "bf16")
    assert [layer.number for layer in linear_layers(model)] == ["bf16", "bf16"]


def test_a_layer_of_unknown_size_is_named() -> None:
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        {"w": _w(4, 3)},
        given={"x": ("batch", "tokens", 4)},
        outputs={"y": ("batch", "tokens", 3)},
    )
    with pytest.raises(EngineError, match="layer: the shape of y is not known"):
        linear_layers(model)
