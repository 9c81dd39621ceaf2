from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph.fused_qkv import TOKENS, WIDTH, Taking, export_layer
from tests.support.checkpoints import ARCHITECTURES, random_checkpoint
from tests.support.graphs import EXPORTERS, copied, difference, kinds, logits, run
from trt_vit.checkpoint.load import to_onnx
from trt_vit.engine.manifest import BatchProfile, TargetRecord
from trt_vit.engine.plan import build_plan
from trt_vit.engine.progress import Quiet
from trt_vit.graph.rewrite import OPSET, rewrite
from trt_vit.quantize.cast import cast
from trt_vit.runtime.tensorrt_family import load_family

if TYPE_CHECKING:
    from pathlib import Path

    from tests.graph.conftest import Graphs
    from trt_vit.engine.plan import Plan

VIT = {
    "Conv": 1, "Shape": 1, "Expand": 1, "Concat": 2,
    "LayerNormalization": 5, "MatMul": 12, "Add": 13, "Reshape": 5, "Transpose": 7, "Split": 2, "Softmax": 2, "Gelu": 2,
    "Gather": 3, "Gemm": 1,
}  # fmt: skip
"""Two layers of six products and six sums each, their heads cut apart once, and three choices of the first token."""
LAYER = {
    "LayerNormalization": 2, "MatMul": 6, "Add": 6, "Reshape": 2, "Transpose": 3, "Split": 1, "Softmax": 1, "Gelu": 1,
    "Gather": 3, "Gemm": 1,
}  # fmt: skip
QUICK = ("legacy14", "own")
WITHOUT_LEGACY = ("dinov2-registers",)  # TorchScript's exporter has no antialiased resizing
CASES = [
    pytest.param(architecture, exporter, marks=() if exporter in QUICK or architecture == "vit" else pytest.mark.slow)
    for architecture in ARCHITECTURES
    for exporter in EXPORTERS
    if not (architecture in WITHOUT_LEGACY and exporter.startswith("legacy"))
]


@pytest.mark.parametrize(("architecture", "exporter"), CASES)
def test_logits_stay_and_a_second_time_changes_nothing(graphs: Graphs, architecture: str, exporter: str) -> None:
    model, counts = rewrite(ir.load(graphs.path(architecture, exporter)))
    assert counts["merge_projections"] == (3 if architecture == "swin" else 2)
    assert difference(graphs.logits(architecture, exporter), logits(model)) < 1e-4
    once = kinds(model)
    again, counts = rewrite(copied(model))
    assert set(counts.values()) == {0}
    assert kinds(again) == once


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_vit_has_one_form_whoever_exported_it(graphs: Graphs, exporter: str) -> None:
    model, _ = rewrite(ir.load(graphs.path("vit", exporter)))
    assert kinds(model) == VIT
    assert model.opset_imports[""] == OPSET


def test_a_newer_operator_set_gives_the_same_form(graphs: Graphs) -> None:
    model, _ = rewrite(ir.load(graphs.path("vit", "legacy14")), opset=22)
    assert model.opset_imports[""] == 22
    assert kinds(model) == VIT
    assert difference(graphs.logits("vit", "legacy14"), logits(model)) < 1e-4


@pytest.mark.parametrize("taking", get_args(Taking))
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_one_product_and_three_end_in_the_same_form(
    tmp_path: Path,
    taking: Taking,
    exporter: Any,
    fused: bool,  # noqa: FBT001
) -> None:
    original = export_layer(taking, exporter, tmp_path / "layer.onnx", fused=fused)
    feeds = [{"x": np.random.default_rng(n).standard_normal((n, TOKENS, WIDTH)).astype(np.float32)} for n in (1, 3)]
    before = run(original, *feeds)
    model, _ = rewrite(original)
    assert kinds(model) == LAYER
    assert difference(before, run(model, *feeds)) < 1e-4


def plan(folder: Path, layers: int) -> Plan:
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128, "num_hidden_layers": layers}
    exported, path = folder / f"{layers}.onnx", folder / f"{layers}.fp16.onnx"
    to_onnx(str(random_checkpoint("vit", folder / str(layers), **sizes)), exported)
    model, _ = rewrite(ir.load(exported))
    cast(model, "fp16")
    ir.save(model, path)
    return build_plan(
        load_family("tensorrt-rtx"),
        path,
        batch=BatchProfile(min=1, opt=8, max=16),
        target=TargetRecord(compute_capability="8.9"),
        progress=Quiet(),
        timing_cache=None,
    )


def test_a_layer_costs_tensorrt_for_rtx_eight_kernels(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT for RTX")
    two, three = plan(tmp_path, 2), plan(tmp_path, 3)
    assert [sum(layer.is_attention for layer in built.layers) for built in (two, three)] == [2, 3]
    assert 0 < len(three.layers) - len(two.layers) <= 8
