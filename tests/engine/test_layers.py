from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.conftest import BATCH
from trt_vit.engine.layers import (
    EngineLayer,
    coverage,
    first_profile,
    layers_from_inspector,
    layers_from_log,
    summarize,
    weights_bytes_from_log,
)
from trt_vit.engine.manifest import TargetRecord
from trt_vit.engine.plan import build_plan
from trt_vit.engine.progress import Quiet
from trt_vit.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path

    from trt_vit.runtime.tensorrt_family import Family

HALF = "Name: {}, Dimensions: [{}], Strides: [1], StrideOrder: [0], Datatype: {}, Format: (Linear) Row major linear"


def tensors(*described: str) -> str:
    """Tensors of a line of the log, each given as ``name sizes type``."""
    return ", ".join("{ " + HALF.format(*text.split(" ")) + " }" for text in described)


GEMM = (
    f"Name: fc1_myl0_3, LayerType: gemm, Inputs: [ {tensors('x -1,17,64 Int8')}], "
    f"Constants: [ {tensors('w 64,128 Int8', 's 1 Float', 'b 128 Half')}], Outputs: [ {tensors('y -1,17,128 Half')}], "
    "TacticName: sm80_xmma_gemm, StreamId: 0, Metadata: [ONNX Layer: node_fc1][ONNX Layer: node_gelu]"
)
ATTENTION = (
    f"Name: _gemm_mha_v2_myl0_7, LayerType: kgen, Inputs: [ {tensors('q -1,17,64 Half')}], "
    f"Outputs: [ {tensors('o -1,17,64 Float')}], TacticName: , StreamId: 0, Metadata: [ONNX Layer: node_softmax]"
)
SHAPE = "Name: __mye1_myl0_0, LayerType: shape_call, Inputs: [], Outputs: [], TacticName: , StreamId: 0, Metadata: "
REFORMAT = (
    "Name: Reformatting CopyNode for Input Tensor 0 to fc1, LayerType: Reformat, "
    "Inputs: [ { Name: x, Dimensions: [4,3,32,32], Format/Datatype: Row major linear FP32 }], "
    "Outputs: [ { Name: y, Dimensions: [4,3,32,32], Format/Datatype: Row major Int8 format }], StreamId: 0, Metadata: "
)
LOG = f"Layers:\n{SHAPE}\n{GEMM}\n{ATTENTION}\n{REFORMAT}\n\nI/O Tensors:\n Name: logits, IOMode: Output"


def layer(kind: str = "gemm", nodes: tuple[str, ...] = (), reads: tuple[str, ...] = ("fp16",)) -> EngineLayer:
    return EngineLayer("", kind, nodes, reads)


def test_lines_of_the_log_are_read() -> None:
    shape, gemm, attention, reformat = layers_from_log(["Parsing", LOG])
    assert gemm == EngineLayer("fc1_myl0_3", "gemm", ("node_fc1", "node_gelu"), ("int8", "int8", "fp16"))
    assert attention == EngineLayer("_gemm_mha_v2_myl0_7", "kgen", ("node_softmax",), ("fp16",))
    assert (reformat.kind, reformat.reads, reformat.nodes) == ("Reformat", ("fp32",), ())
    assert shape == EngineLayer("__mye1_myl0_0", "shape_call", (), ())
    assert [entry.precision for entry in (shape, gemm, attention, reformat)] == ["none", "int8", "fp16", "fp32"]
    assert [entry.is_attention for entry in (shape, gemm, attention, reformat)] == [False, False, True, False]
    assert [entry.is_reformat for entry in (shape, gemm, attention, reformat)] == [False, False, False, True]


def test_the_last_list_of_the_log_counts() -> None:
    assert [entry.kind for entry in layers_from_log([LOG, f"Layers:\n{GEMM}\n"])] == ["gemm"]


@pytest.mark.parametrize("messages", [[], ["nothing of the kind"]])
def test_a_log_without_a_list_is_an_error(messages: list[str]) -> None:
    with pytest.raises(EngineError, match="lists no layers"):
        layers_from_log(messages)


def test_a_line_that_is_not_understood_is_an_error() -> None:
    with pytest.raises(EngineError, match="1 of 5 layers in the builder's log are not understood"):
        layers_from_log([LOG + "\nName: odd, LayerType: gemm"])


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("Half", "fp16"),
        ("BFloat16", "bf16"),
        ("Float", "fp32"),
        ("Int8", "int8"),
        ("FP8", "fp8"),
        ("E4M3", "fp8"),
        ("Row major linear FP32", "fp32"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major linear BF16 format", "bf16"),
        ("Int64", "int64"),
        ("Bool", "bool"),
    ],
)
def test_number_formats_as_tensorrt_spells_them(spelled: str, name: str) -> None:
    entry: dict[str, Any] = {"LayerType": "kgen", "Inputs": [{"Dimensions": [-1, 64], "Format/Datatype": spelled}]}
    assert layers_from_inspector(json.dumps({"Layers": [entry]}))[0].reads == (name,)


@pytest.mark.parametrize(
    ("reads", "precision"),
    [
        (("fp32", "fp16", "bf16", "int8", "fp8"), "fp8"),
        (("fp32", "fp16", "int8"), "int8"),
        (("fp32", "bf16"), "bf16"),
        (("int64", "fp32"), "fp32"),
        (("int64",), "none"),
    ],
)
def test_a_layer_computes_in_the_narrowest_number_it_reads(reads: tuple[str, ...], precision: str) -> None:
    assert layer(reads=reads).precision == precision


def inspected(key: str) -> str:
    """What the inspector says of two layers, with the data type under ``key``."""

    def tensor(sizes: list[int], datatype: str) -> dict[str, Any]:
        return {"Name": "t", "Dimensions": sizes, key: datatype}

    gemm = {
        "Name": "fc1",
        "LayerType": "gemm",
        "Inputs": [tensor([4, 17, 64], "Int8")],
        "Constants": [tensor([64, 128], "Int8"), tensor([1, 1], "FP8"), tensor([], "FP8"), tensor([128], "Half")],
        "Outputs": [tensor([4, 17, 128], "FP8")],
        "Metadata": "[ONNX Layer: node_fc1]\x1e[ONNX Layer: node_gelu]",
    }
    shuffle = {"Name": "copy", "LayerType": "Reformat", "Inputs": [tensor([4, 3, 32, 32], "Float")]}
    return json.dumps({"Layers": [gemm, shuffle], "Bindings": ["pixels", "logits"]})


@pytest.mark.parametrize("key", ["Datatype", "Format/Datatype"])
def test_the_inspector_says_the_same_in_each_version(key: str) -> None:
    gemm, reformat = layers_from_inspector(inspected(key))
    assert gemm == EngineLayer("fc1", "gemm", ("node_fc1", "node_gelu"), ("int8", "int8", "fp16"))
    assert reformat == EngineLayer("copy", "Reformat", (), ("fp32",))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        "3",
        "{}",
        '{"Layers": null}',
        '{"Layers": 3}',
        '{"Layers": [null]}',
        '{"Layers": [{"Name": "fc1"}]}',
        '{"Layers": [{"LayerType": "gemm", "Inputs": null}]}',
        '{"Layers": [{"LayerType": "gemm", "Inputs": ["x"]}]}',
        '{"Layers": [{"LayerType": "gemm", "Inputs": [{"Dimensions": 3}]}]}',
    ],
)
def test_what_no_inspector_says_is_an_error(text: str) -> None:
    with pytest.raises(EngineError, match="gives no list of layers"):
        layers_from_inspector(text)


def test_an_engine_without_layers_is_an_error() -> None:
    with pytest.raises(EngineError, match="lists no layer"):
        layers_from_inspector('{"Layers": []}')


def test_names_alone_are_too_little() -> None:
    with pytest.raises(EngineError, match="only its layers' names"):
        layers_from_inspector('{"Layers": ["fc1", "fc2"]}')


def test_the_layers_of_one_profile() -> None:
    one = [layer("gemm"), layer("kgen"), layer("gemm")]
    assert first_profile(one, 1) == one
    assert first_profile([*one, *one], 2) == one
    assert first_profile([*one, *one, *one], 3) == one


def test_profiles_that_differ() -> None:
    kinds = [layer(kind) for kind in ("gemm", "kgen", "kgen", "gemm")]
    assert first_profile(kinds, 2) == kinds[:2]  # chosen by timing: as many, of other kinds
    assert first_profile(kinds[:3], 2) == kinds[:3]  # no telling which are whose


def test_the_bytes_of_the_weights() -> None:
    assert weights_bytes_from_log(["Total Weights Memory: 12 bytes", "Total Weights Memory: 324736 bytes\n"]) == 324736
    with pytest.raises(EngineError, match="tells no size of the weights"):
        weights_bytes_from_log(["Total Activation Memory: 12 bytes"])


def test_layers_are_counted() -> None:
    statistics = summarize(layers_from_log([LOG]), 99)
    assert (statistics.layers, statistics.fused_attention, statistics.reformats, statistics.weights_bytes) == (
        4,
        1,
        1,
        99,
    )
    assert statistics.kinds == {"shape_call": 1, "gemm": 1, "kgen": 1, "Reformat": 1}
    assert statistics.precisions == {"none": 1, "int8": 1, "fp16": 1, "fp32": 1}


def test_coverage_is_by_arithmetic() -> None:
    macs = {"fc1": 300, "fc2": 100, "head": 100}
    layers = [
        layer(nodes=("fc1", "gelu"), reads=("int8", "fp32")),
        layer(nodes=("fc1",), reads=("int8",)),
        layer(nodes=("fc2",)),
    ]
    assert coverage(layers, macs, "int8") == 0.6  # fc1 counts once, though two layers name it
    assert coverage(layers, macs, "fp16") == 0.2
    assert coverage(layers, macs, "fp8") == 0.0
    assert coverage(layers, {}, "int8") == 0.0


def test_the_log_of_a_real_build_is_read(rtx: Family, vit_onnx: Path) -> None:
    target = TargetRecord(compute_capability="8.9")
    plan = build_plan(rtx, vit_onnx, batch=BATCH, target=target, progress=Quiet(), timing_cache=None)
    statistics = summarize(plan.layers, plan.weights_bytes)
    assert 20 <= statistics.layers <= 45
    assert set(statistics.precisions) == {"fp32", "none"}
    assert all(entry.precision == "none" for entry in plan.layers if entry.kind == "shape_call")
    named = {node for entry in plan.layers for node in entry.nodes}
    assert {"node_conv2d", "node_softmax", "node_softmax_1"} <= named
    assert statistics.weights_bytes >= 4 * 81_035  # the numbers of the model
