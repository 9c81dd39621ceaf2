from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.graphs import copied, difference, kinds, parse, run
from trt_vit.errors import ExportError
from trt_vit.graph.opset import upgrade

HALVES = "a, b = Split<axis = 2>(x) y = Concat<axis = 2>(b, a)"
MEAN = "m = ReduceMean<axes = [-1], keepdims = 1>(x) y = Sub(x, m)"


@pytest.mark.parametrize("text", [MEAN, HALVES, "y, mask = Dropout(x)", "y = HardSigmoid(x)"])
@pytest.mark.parametrize("opset", [13, 14, 17])
def test_what_the_graph_computes_stays(text: str, opset: int) -> None:
    model = parse(text, opset=opset)
    before = run(copied(model))
    assert upgrade(model, 20) is model
    assert model.graph.opset_imports[""] == 20
    assert difference(before, run(model)) == 0.0


def test_weights_of_any_size_are_neither_copied_nor_lost() -> None:
    large = np.arange(2000, dtype=np.float32).reshape(8, 250)
    model = parse(
        "m = ReduceMean<axes = [-1], keepdims = 1>(x) d = Sub(x, m) y = MatMul(d, w)",
        opset=14,
        outputs="float[batch, 4, 250] y",
        weights={"w": large},
    )
    before, tensor = run(copied(model)), model.graph.initializers["w"].const_value
    upgrade(model, 20)
    assert model.graph.initializers["w"].const_value is tensor
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert difference(before, run(model)) == 0.0


def test_weights_beyond_what_a_protobuf_holds() -> None:
    model = parse(f"{MEAN} unused = MatMul(x, w)", opset=14, weights={"w": np.zeros((8, 250), np.float32)})
    shape = ir.Shape((8, 2**29))
    weight = ir.ExternalTensor("nowhere", 0, math.prod(shape.numpy()) * 4, ir.DataType.FLOAT, shape=shape, name="w")
    model.graph.initializers["w"].const_value = weight
    upgrade(model, 20)
    assert model.graph.initializers["w"].const_value is weight


def test_names_metadata_and_other_domains_stay() -> None:
    model = parse("g = com.microsoft.Gelu(x) y = Identity(g)", opset=14)
    model.metadata_props["trt_vit.labels"] = "[]"
    upgrade(model, 20)
    assert model.metadata_props == {"trt_vit.labels": "[]"}
    assert model.opset_imports == {"": 20, "com.microsoft": 1}
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]
    assert kinds(model) == {"Gelu": 1, "Identity": 1}


@pytest.mark.parametrize("opset", [20, 21])
def test_a_newer_model_stays(opset: int) -> None:
    model = parse("y = Gelu(x)", opset=opset)
    upgrade(model, 20)
    assert model.graph.opset_imports[""] == opset


@pytest.mark.parametrize("opset", [14, 20])
def test_the_default_domain_under_its_full_name(opset: int) -> None:
    proto = ir.to_proto(parse(MEAN if opset == 14 else "y = Gelu(x)", opset=opset))
    before = run(ir.serde.deserialize_model(proto))
    proto.opset_import[0].domain = "ai.onnx"
    model = upgrade(ir.serde.deserialize_model(proto), 20)
    assert model.opset_imports == {"": 20, "com.microsoft": 1}
    assert difference(before, run(model)) == 0.0


def test_functions_become_inlined() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[batch, 4] x) => (float[batch, 4] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["": 17]> twice (a) => (b) { b = Add(a, a) }
    """)
    model = ir.serde.deserialize_model(proto)
    upgrade(model, 20)
    assert kinds(model) == {"Add": 1}
    assert len(model.functions) == 0


def test_an_initializer_that_is_an_input_too_is_a_weight() -> None:
    model = parse("y = Add(x, w)", opset=13, weights={"w": np.ones(8, np.float32)})
    model.graph.inputs.append(model.graph.initializers["w"])
    upgrade(model, 20)
    assert [value.name for value in model.graph.inputs] == ["x"]
    np.testing.assert_array_equal(run(model, {"x": np.zeros((1, 4, 8), np.float32)})[0], np.ones((1, 4, 8)))


def test_an_operator_that_cannot_be_converted_is_named_and_the_model_left_whole() -> None:
    weight = np.zeros((8, 250), np.float32)
    model = parse("n = NoSuchOperator(x) y = MatMul(n, w)", opset=14, weights={"w": weight})
    with pytest.raises(ExportError, match=r"g: opset 14 cannot be converted to 20: .*NoSuchOperator") as caught:
        upgrade(model, 20)
    assert "\n" not in caught.value.message
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.graph.initializers["w"].const_value is not None
