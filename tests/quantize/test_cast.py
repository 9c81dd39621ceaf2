from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tests.quantize.graphs import array, check, cosine, dtypes, evaluate, graph_of, kinds, node
from tests.support.checkpoints import ARCHITECTURES
from trt_vit.errors import EngineError
from trt_vit.quantize.cast import cast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Export = Callable[[str], ir.Model]

_ARCHITECTURES = [name if name == "vit" else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
_COMPUTE = dict.fromkeys(["Add", "Concat", "Conv", "Gelu", "Gemm", "LayerNormalization", "MatMul"], "f16")
_COMPUTE |= {"ReduceMean": "f32", "Softmax": "f32"}
_GIVEN = {"x": ("batch", 4)}


def _chain(*nodes: Any, opset: int = 21, classes: int = 4, **weights: NDArray[Any]) -> ir.Model:
    """A graph from x [batch, 4] to y [batch, classes]."""
    return graph_of(nodes, weights, given=_GIVEN, outputs={"y": ("batch", classes)}, opset=opset)


def _pairs_of_casts(model: ir.Model) -> list[str | None]:
    casts = [node for node in model.graph if node.op_type == "Cast"]
    return [node.name for node in casts if node.inputs[0] is not None and node.inputs[0].producer() in casts]


def _x(*rows: Sequence[float]) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


@pytest.mark.parametrize("architecture", _ARCHITECTURES)
def test_every_architecture_in_fp16(architecture: str, export: Export, pixels: NDArray[np.float32]) -> None:
    model = export(architecture)
    reference = evaluate(model, pixels)
    cast(model, "fp16")
    check(model)
    assert cosine(evaluate(model, pixels), reference) > 0.9999
    assert dtypes(model.graph.inputs) == dtypes(model.graph.outputs) == ["f32"]
    assert set(dtypes(list(model.graph.initializers.values()))) == {"f16"}
    for one in model.graph:
        if one.op_type in _COMPUTE:
            assert set(dtypes([*one.inputs, *one.outputs])) <= {_COMPUTE[one.op_type]}, one.name
    assert _pairs_of_casts(model) == []
    assert [one.attributes.get_int("stash_type", 1) for one in model.graph if one.op_type == "LayerNormalization"]


@pytest.mark.parametrize("architecture", _ARCHITECTURES)
def test_every_architecture_in_bf16(architecture: str, export: Export, pixels: NDArray[np.float32]) -> None:
    openvino = pytest.importorskip("openvino", reason="ONNX Runtime has no bf16 on a CPU")
    model = export(architecture)
    reference = evaluate(model, pixels)
    cast(model, "bf16")
    check(model)
    assert set(dtypes(list(model.graph.initializers.values()))) == {"bf16"}
    assert _pairs_of_casts(model) == []
    core = openvino.Core()
    serialised = ir.to_proto(model).SerializeToString()
    compiled = core.compile_model(core.read_model(serialised), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert 0.995 < cosine(compiled([pixels])[0], reference) < 0.9999999


def test_convolution_before_opset_22_has_no_bf16() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    weights = {"w": np.ones((5, 3, 2, 2), np.float32)}
    for opset, type_of_weight in ((21, "f32"), (22, "bf16")):
        model = graph_of(nodes, weights, given={"x": (1, 3, 4, 4)}, outputs={"y": (1, 5, 2, 2)}, opset=opset)
        cast(model, "bf16")
        check(model)
        assert dtypes(node(model, "Conv").inputs) == [type_of_weight] * 2
        assert dtypes(node(model, "Relu").inputs) == ["bf16"]


def test_the_output_keeps_its_name_and_may_be_read_inside_the_graph() -> None:
    model = graph_of(
        [helper.make_node("Mul", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])],
        {"w": np.full(4, 3, np.float32)},
        given=_GIVEN,
        outputs={"y": ("batch", 4), "z": ("batch", 4)},
    )
    cast(model, "fp16")
    check(model)
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    assert dtypes(node(model, "Relu").inputs) == ["f16"]
    np.testing.assert_array_equal(evaluate(model, _x([1, 2, 3, 4])), [[3, 6, 9, 12]])


def test_a_weight_beyond_the_range_keeps_its_product_in_float32() -> None:
    large = np.full((4, 4), 1e5, np.float32)
    model = _chain(
        helper.make_node("MatMul", ["x", "large"], ["m"]),
        helper.make_node("Mul", ["m", "small"], ["n"]),
        helper.make_node("MatMul", ["n", "w"], ["y"]),
        large=large,
        small=np.array(1e-2, np.float32),
        w=np.eye(4, dtype=np.float32),
    )
    cast(model, "fp16")
    check(model)
    assert dtypes(node(model, "MatMul").inputs) == ["f32", "f32"]
    assert dtypes(node(model, "Mul").inputs) == ["f16", "f16"]
    assert dtypes(node(model, "MatMul", 1).inputs) == ["f16", "f16"]
    x = _x([1e-2, 2e-2, 0, 1e-2])  # products of 4000: in range, where the weights are not
    np.testing.assert_allclose(evaluate(model, x), x @ large * 1e-2, rtol=2e-3)
    assert kinds(model).count("Cast") == 2  # into fp16 after the product, and the output's: x is float32 already


def test_bf16_has_the_range_of_float32() -> None:
    model = _chain(helper.make_node("MatMul", ["x", "w"], ["y"]), w=np.full((4, 4), 1e5, np.float32))
    cast(model, "bf16")
    check(model)
    assert dtypes(node(model, "MatMul").inputs) == ["bf16", "bf16"]


def test_a_mask_beyond_the_range_stays_float32_until_it_is_added() -> None:
    mask = np.array([[0, -1e9, 0, 0]], np.float32)
    model = _chain(
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Expand", ["mask", "shape"], ["all"]),
        helper.make_node("Add", ["x", "all"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"]),
        helper.make_node("Relu", ["p"], ["y"]),
        mask=mask,
    )
    cast(model, "fp16")
    check(model)
    assert dtypes([*node(model, "Expand").outputs, *node(model, "Add").inputs]) == ["f32"] * 3
    assert dtypes(node(model, "Relu").inputs) == ["f16"]
    np.testing.assert_allclose(evaluate(model, _x([1, 1, 1, 1])), [[1 / 3, 0, 1 / 3, 1 / 3]], rtol=1e-3)


def test_a_weight_read_in_both_types_is_held_in_both() -> None:
    model = _chain(
        helper.make_node("MatMul", ["x", "large"], ["m"]),
        helper.make_node("Gemm", ["m", "large", "bias"], ["n"]),
        helper.make_node("Add", ["n", "bias"], ["y"]),
        large=np.full((4, 4), 1e5, np.float32),
        bias=np.ones(4, np.float32),
    )
    cast(model, "fp16")
    check(model)
    assert dtypes(node(model, "Gemm").inputs) == ["f32", "f32", "f32"]
    assert dtypes(node(model, "Add").inputs) == ["f16", "f16"]
    assert sorted(dtypes(list(model.graph.initializers.values()))) == ["f16", "f32", "f32"]


def test_a_normalization_spelled_out_is_computed_in_float32() -> None:
    model = _chain(
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Pow", ["centred", "two"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "axes"], ["variance"]),
        helper.make_node("Add", ["variance", "eps"], ["positive"]),
        helper.make_node("Sqrt", ["positive"], ["deviation"]),
        helper.make_node("Div", ["centred", "deviation"], ["normal"]),
        helper.make_node("Mul", ["normal", "gamma"], ["y"]),
        axes=np.array([-1]),
        two=np.array(2, np.float32),
        eps=np.array(1e-12, np.float32),
        gamma=np.array([1, 2, 3, 4], np.float32),
    )
    cast(model, "fp16")
    check(model)
    for kind in ("ReduceMean", "Sub", "Pow", "Add", "Sqrt", "Div"):
        assert set(dtypes([*node(model, kind).inputs, *node(model, kind).outputs])) == {"f32"}, kind
    assert dtypes(node(model, "Mul").inputs) == ["f16", "f16"]
    assert array(node(model, "Add").inputs[1]) == np.float32(1e-12)
    assert kinds(model).count("Cast") == 2
    x = _x([3000, -3000, 1000, -1000])  # squares of nine millions
    np.testing.assert_allclose(evaluate(model, x), x / np.sqrt(5e6) * [1, 2, 3, 4], rtol=2e-3)


def test_a_square_by_a_product_is_a_statistic_too() -> None:
    model = _chain(
        helper.make_node("Mul", ["x", "x"], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "axes"], ["norm"]),
        helper.make_node("Div", ["x", "norm"], ["y"]),
        axes=np.array([-1]),
    )
    cast(model, "fp16")
    assert dtypes(node(model, "Mul").inputs) == dtypes(node(model, "Div").inputs) == ["f32", "f32"]


def test_casts_that_were_in_the_graph_do_not_pair_up() -> None:
    model = _chain(
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Relu", ["half"], ["r"]),
        helper.make_node("Cast", ["r"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "w"], ["m"]),
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Cast", ["whole"], ["back"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["m", "back"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("Cast", ["p"], ["y"], to=TensorProto.FLOAT),
        w=np.full(4, 2, np.float32),
    )
    reference = evaluate(model, _x([1.5, -2, 3, 0.25]))
    for precision, name in (("fp16", "f16"), ("bf16", "bf16")):
        one = model.clone()
        cast(one, precision)  # type: ignore[arg-type]
        check(one)
        assert dtypes([*node(one, "Mul").inputs, *node(one, "Add").inputs]) == [name] * 4
        assert dtypes(one.graph.outputs) == ["f32"]
    cast(model, "fp16")
    assert kinds(model).count("Cast") == 5  # x to fp16, x to int32, back to fp16, into and out of the softmax
    np.testing.assert_allclose(evaluate(model, _x([1.5, -2, 3, 0.25])), reference, rtol=1e-3)


def test_an_operand_that_is_float32_by_definition_stays() -> None:
    model = graph_of(
        [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
        given={"x": (1, 3, 2, 2)},
        outputs={"y": (1, 3, 4, 4)},
    )
    cast(model, "fp16")
    check(model)
    assert dtypes(node(model, "Resize").inputs) == ["f16", "f32"]


def _quantized(scale: float, weight_scales: Sequence[float]) -> ir.Model:
    return _chain(
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], axis=1),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
        scale=np.array(scale, np.float32),
        zero=np.array(0, np.int8),
        codes=np.arange(16, dtype=np.int8).reshape(4, 4),
        scales=np.array(weight_scales, np.float32),
    )


def test_scales_take_the_type_and_codes_stay() -> None:
    model = _quantized(0.03, [0.01, 0.02, 0.03, 0.04])
    cast(model, "fp16")
    check(model)
    for one in model.graph:
        if one.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            assert set(dtypes([*one.inputs, *one.outputs])) == {"f16"}
    assert array(node(model, "QuantizeLinear").inputs[1]) == np.float16(0.03)
    assert array(node(model, "DequantizeLinear", 1).inputs[0]).tolist() == np.arange(16).reshape(4, 4).tolist()
    assert array(node(model, "QuantizeLinear").inputs[2]).dtype == np.int8


def test_a_scale_that_fp16_would_lose_keeps_its_node_in_float32() -> None:
    model = _quantized(0.03, [0.01, 0.02, 1e-9, 0.04])
    cast(model, "fp16")
    check(model)
    weight = node(model, "DequantizeLinear", 1)
    assert dtypes([weight.inputs[1], weight.outputs[0]]) == ["f32", "f32"]
    np.testing.assert_array_equal(array(weight.inputs[1]), np.array([0.01, 0.02, 1e-9, 0.04], np.float32))
    assert dtypes(node(model, "MatMul").inputs) == ["f16", "f16"]


def test_the_output_type_of_newer_dequantization_follows_its_scale() -> None:
    model = graph_of(
        [helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], output_dtype=TensorProto.FLOAT),
         helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"codes": np.ones((4, 4), np.int8), "scale": np.array(0.5, np.float32)},
        given=_GIVEN, outputs={"y": ("batch", 4)}, opset=23,
    )  # fmt: skip
    cast(model, "fp16")
    check(model)
    assert dtypes(node(model, "DequantizeLinear").outputs) == ["f16"]


def test_constant_nodes_are_weights() -> None:
    model = _chain(
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Mul", ["x", "two"], ["y"]),
    )
    cast(model, "fp16")
    check(model)
    assert dtypes(node(model, "Mul").inputs) == ["f16", "f16"]


def test_an_operator_of_another_domain_computes_in_float32() -> None:
    model = _chain(helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Relu", ["r"], ["y"]))
    model.opset_imports["com.example"] = 1
    next(iter(model.graph)).domain = "com.example"
    cast(model, "fp16")
    assert dtypes([*node(model, "Relu").inputs, *node(model, "Relu").outputs]) == ["f32", "f32"]
    assert dtypes(node(model, "Relu", 1).inputs) == ["f16"]


def test_arithmetic_that_ends_in_integers_stays_in_float32() -> None:
    model = _chain(
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Cast", ["whole"], ["counts"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["counts", "half"], ["m"]),
        helper.make_node("Mul", ["x", "half"], ["n"]),
        helper.make_node("Sub", ["m", "n"], ["d"]),
        helper.make_node("Add", ["d", "n"], ["s"]),
        helper.make_node("Floor", ["s"], ["floor"]),
        helper.make_node("Cast", ["floor"], ["i"], to=TensorProto.INT64),
        helper.make_node("Mod", ["i", "seven"], ["rest"]),
        helper.make_node("Cast", ["rest"], ["r"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["r", "half"], ["y"]),
        half=np.array(0.5, np.float32),
        seven=np.array(7),
    )
    x = _x([4098, 8198, 5002, 6002])  # halves beyond 2048, of which fp16 holds every other one
    reference = evaluate(model, x)
    cast(model, "fp16")
    check(model)
    assert dtypes(node(model, "Floor").inputs) == dtypes(node(model, "Mul").inputs[:1]) == ["f32"]
    assert dtypes(node(model, "Mul", 2).inputs) == ["f16", "f16"]
    np.testing.assert_array_equal(evaluate(model, x), reference)


def test_control_flow_is_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["b"])], "branch", [], [helper.make_tensor_value_info("b", 1, ("batch", 4))]
    )
    model = _chain(
        helper.make_node("If", ["condition"], ["y"], name="choice", then_branch=branch, else_branch=branch),
        condition=np.array(True),
    )
    with pytest.raises(EngineError, match=r"hand-made: a graph with control flow \(node choice\)"):
        cast(model, "fp16")
