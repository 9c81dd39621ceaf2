from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.graphs import copied, difference, kinds, parse, run
from trt_vit.errors import ExportError
from trt_vit.graph.branches import take_branches
from trt_vit.graph.rewrite import rewrite

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = {"one": np.array(1), "four": np.array(4), "zero": np.array(0.0, np.float32), "w": np.eye(8, dtype=np.float32)}
BRANCHES = """
    then_branch = g1 () => (float[a, b, c] t) <float[1] k = {2.0}> { u = Mul(x, k) t = MatMul(u, w) },
    else_branch = g2 () => (float[a, b, c] t) <float[1] k = {3.0}> { u = Add(x, k) t = Relu(u) }
"""
SIZE = "s = Shape(x) d = Gather<axis = 0>(s, one)"


def export_squeeze(path: Path, opset: int) -> ir.Model:
    import torch

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = torch.nn.Parameter(torch.ones(1, 1, 8))
            self.linear = torch.nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
            logits: torch.Tensor = self.linear(torch.relu(tokens)[:, :1].squeeze(1))
            return logits

    example = (torch.zeros(2, 4, 8),)
    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Classifier().eval(),
            example,
            str(path),
            dynamo=False,
            opset_version=opset,
            dynamic_axes=axes,
            input_names=["x"],
            output_names=["y"],
        )
    return ir.load(path)


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_a_squeeze_of_torchs_exporter(tmp_path: Path, opset: int) -> None:
    model = export_squeeze(tmp_path / "squeeze.onnx", opset)
    assert kinds(model)["If"] == 1
    before = run(model)
    after, _ = rewrite(model)
    assert "If" not in kinds(after)
    assert difference(before, run(after)) < 1e-6


@pytest.mark.parametrize(("compared", "left"), [("four", {"Mul": 1, "MatMul": 1}), ("one", {"Add": 1, "Relu": 1})])
@pytest.mark.parametrize("name", ["y", "z"])
def test_the_branch_that_a_shape_decides(compared: str, left: dict[str, int], name: str) -> None:
    text = f"{SIZE} c = Equal(d, {compared}) {name} = If(c) <{BRANCHES}>"
    text += " y = Neg(z)" if name == "z" else ""
    model = parse(text, weights=WEIGHTS)
    before = run(copied(model))
    after, _ = rewrite(model)
    assert kinds(after) == left | ({"Neg": 1} if name == "z" else {})
    assert [value.name for value in after.graph.outputs] == ["y"]
    assert difference(before, run(after)) == 0.0


def test_two_with_the_same_names_and_one_within_another() -> None:
    text = f"""
        {SIZE} c = Equal(d, four) n = Not(c) a = If(c) <{BRANCHES}> b = If(c) <
            then_branch = g3 () => (float[a, b, c] m) {{ m = If(n) <{BRANCHES}> }},
            else_branch = g4 () => (float[a, b, c] m) {{ m = Identity(x) }}
        > y = Sub(a, b)
    """
    model = parse(text, weights=WEIGHTS)
    before = run(copied(model))
    assert take_branches(copied(model)) == 3
    after, _ = rewrite(model)
    assert kinds(after) == {"Mul": 1, "MatMul": 1, "Add": 1, "Relu": 1, "Sub": 1}
    assert difference(before, run(after)) == 0.0


def test_an_outer_tensor_that_a_branch_gives_out() -> None:
    text = f"""
        {SIZE} c = Equal(d, four) r = Relu(x) y = If(c) <
            then_branch = g1 () => (float[a, b, c] t) {{ t = Identity(r) }},
            else_branch = g2 () => (float[a, b, c] t) {{ t = Neg(r) }}
        >
    """
    model = parse(text, weights=WEIGHTS)
    before = run(copied(model))
    after, _ = rewrite(model)
    assert kinds(after) == {"Relu": 1}
    assert difference(before, run(after)) == 0.0


def test_a_branch_that_the_input_decides_is_refused() -> None:
    text = f"m = ReduceMean<keepdims = 0>(x) c = Greater(m, zero) y = If(c) <{BRANCHES}>"
    model = parse(text, weights=WEIGHTS)
    model.graph[-1].name = "switch"
    with pytest.raises(ExportError, match="g: If node switch, which makes y: control flow") as caught:
        rewrite(model)
    assert "dynamo=True" in caught.value.hint


def test_a_loop_is_refused() -> None:
    text = """
        y = Loop(four, , x) <
            body = g1 (int64 i, bool go, float[a, b, c] v) => (bool on, float[a, b, c] t)
            { on = Identity(go) t = Relu(v) }
        >
    """
    with pytest.raises(ExportError, match=r"Loop node .*, which makes y"):
        rewrite(parse(text, weights=WEIGHTS))


def test_a_weight_that_a_branch_gives_out() -> None:
    text = f"""
        {SIZE} c = Equal(d, four) b = If(c) <
            then_branch = g1 () => (float[1] k) <float[1] k = {{2.0}}> {{ }},
            else_branch = g2 () => (float[1] t) {{ t = Neg(zero) }}
        > y = Mul(x, b)
    """
    model = parse(text, weights=WEIGHTS)
    before = run(copied(model))
    after, _ = rewrite(model)
    assert kinds(after) == {"Mul": 1}
    assert difference(before, run(after)) == 0.0
