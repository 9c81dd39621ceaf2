"""Graphs written as text or exported in several ways, and what they compute."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from trt_vit.checkpoint.load import to_onnx
from trt_vit.runtime.onnxruntime import open_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

EXPORTERS = ("legacy14", "legacy17", "dynamo", "own")
"""torch's TorchScript exporter at two operator sets, its dynamo exporter on an untouched model, and trt_vit's."""
IMAGE_SIZE = 32
BATCHES = (1, 3)


def parse(
    text: str,
    *,
    opset: int = 20,
    inputs: str = "float[batch, 4, 8] x",
    outputs: str = "float[batch, 4, 8] y",
    weights: dict[str, NDArray[Any]] | None = None,
) -> ir.Model:
    """Read nodes in ONNX's textual syntax as a model. Names that no node makes and no input has are weights."""
    given = ", ".join([inputs, *(f"float[1] {name}" for name in weights or {})])
    imports = f'["": {opset}, "com.microsoft": 1]'
    proto = onnx.parser.parse_model(f"<ir_version: 9, opset_import: {imports}> g ({given}) => ({outputs}) {{ {text} }}")
    for name, array in (weights or {}).items():
        proto.graph.input.remove(next(value for value in proto.graph.input if value.name == name))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.serde.deserialize_model(proto)


def export(architecture: str, checkpoint: Path, exporter: str, output: Path) -> Path:
    """Export a checkpoint of 32 x 32 pixels by one of EXPORTERS, with a dynamic batch."""
    if exporter == "own":
        to_onnx(str(checkpoint), output)
        return output
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint)
    attention = "sdpa" if exporter == "dynamo" else "eager"
    model_class = getattr(transformers, config.architectures[0])
    classifier = model_class.from_pretrained(checkpoint, attn_implementation=attention).eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = classifier

        def forward(self, pixel_values: torch.Tensor) -> Any:
            return self.classifier(pixel_values=pixel_values).logits

    names: dict[str, Any] = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    example = (torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE),)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            batch = ({0: torch.export.Dim("batch")},)
            opset = 18  # the exporter's own: from 20 on it writes Gelu as one node
            program = torch.onnx.export(
                Logits().eval(), example, dynamo=True, opset_version=opset, dynamic_shapes=batch, verbose=False, **names
            )
            assert program is not None
            program.save(output)
        else:
            axes = {"pixel_values": {0: "batch"}, "logits": {0: "batch"}}
            opset = int(exporter.removeprefix("legacy"))
            torch.onnx.export(
                Logits().eval(), example, str(output), dynamo=False, opset_version=opset, dynamic_axes=axes, **names
            )
    return output


def run(model: ir.Model, *feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """All outputs that ONNX Runtime computes of each of these inputs; the file is checked first.

    Inputs that are not given are random, with 3 for what is dynamic.
    """
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    session = open_session(proto.SerializeToString(), threads=1)
    generator = np.random.default_rng(0)
    given: dict[str, NDArray[Any]] = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else 3 for size in value.shape]
        kind = np.float16 if value.type == "tensor(float16)" else np.float32
        given[value.name] = generator.standard_normal(shape).astype(kind)
    return [output for feed in feeds or ({},) for output in session.run(None, given | feed)]


def logits(model: ir.Model) -> list[NDArray[Any]]:
    """The logits of a batch of 1 and of a batch of 3 random images."""
    shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    images = [np.random.default_rng(batch).standard_normal((batch, *shape)).astype(np.float32) for batch in BATCHES]
    return run(model, *({"pixel_values": image} for image in images))


def difference(before: list[NDArray[Any]], after: list[NDArray[Any]]) -> float:
    """The largest absolute difference of an element, of arrays that must have the same shapes."""
    assert [array.shape for array in before] == [array.shape for array in after]
    pairs = zip(before, after, strict=True)
    return max(float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max()) for one, other in pairs)


def kinds(model: ir.Model) -> dict[str, int]:
    """How many nodes of each operator there are."""
    return dict(Counter(node.op_type for node in model.graph))


def copied(model: ir.Model) -> ir.Model:
    """A copy that shares nothing."""
    return ir.serde.deserialize_model(copy.deepcopy(ir.to_proto(model)))


def changed(one_pass: Callable[[ir.Model], int], text: str, **arguments: Any) -> tuple[int, dict[str, int]]:
    """Run a pass on a graph written as text, and check that it computes what it did.

    Returns:
        How often the pass changed something, and how many nodes of each operator are left.
    """
    before = parse(text, **arguments)
    after = copied(before)
    count = one_pass(after)
    RemoveUnusedNodesPass()(after)
    assert difference(run(before), run(after)) < 1e-5
    for ends in ("inputs", "outputs"):
        assert [v.name for v in getattr(after.graph, ends)] == [v.name for v in getattr(before.graph, ends)]
    return count, kinds(after)
