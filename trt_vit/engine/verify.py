"""The comparison that every engine passes before it is left: its logits against the fp32 graph's, in ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from trt_vit.engine.compare import Comparison, compare_logits
from trt_vit.errors import EngineError
from trt_vit.images.preprocess import Preprocessor
from trt_vit.runtime import registry
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.onnxruntime import failures_as, open_session
from trt_vit.runtime.openvino import import_openvino
from trt_vit.runtime.protocol import RuntimeOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from trt_vit.checkpoint.export import Export
    from trt_vit.engine.manifest import Precision, RuntimeName
    from trt_vit.runtime.protocol import EngineFiles, EngineStatistics, Runtime

    Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]

_IMAGES = 8
_EXPORT_AGAIN = "export the model again, so that it computes what it declares"
_LEAST_COSINE: dict[Precision, float] = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.99, "int8": 0.9, "fp8": 0.9}
"""Below these, something is broken: they are no measure of accuracy, which only labelled images give."""
_LEAST_COSINE_OF_CODES = 0.98
"""Of an engine's logits with those of its own graph, every Q/DQ node as it stands: some codes are one apart."""


@dataclass(frozen=True)
class Verdict:
    """How close an engine, or the graph it was built from, came to fp32.

    Attributes:
        measured_on: Which of the two was run.
        measured_in: Precision that the machine computed in.
        comparison: Its logits against those of the fp32 graph.
    """

    measured_on: Literal["engine", "graph"]
    measured_in: Precision
    comparison: Comparison


@dataclass(frozen=True)
class Built:
    """What a build has made, beside its files.

    Attributes:
        statistics: What the runtime made of the graph.
        attentions: Attentions in the graph.
        int8_coverage: Share of the linear layers' multiply-accumulates that run in INT8, 0 to 1.
        verdict: How close it comes to fp32; None where there is nothing to hold against it.
    """

    statistics: EngineStatistics
    attentions: int
    int8_coverage: float
    verdict: Verdict | None


def verify_engine(
    runtime: RuntimeName,
    engine: EngineFiles,
    export: Export,
    images: NDArray[np.float32],
    *,
    quantized: Path | None = None,
) -> tuple[Verdict, Runtime]:
    """Load an engine as a run would and hold its logits against ONNX Runtime's in fp32.

    Args:
        runtime: Who runs it.
        engine: The engine.
        export: The graph it came from, the fp32 one or the one that came quantized.
        images: Preprocessed, float32 [n, 3, height, width].
        quantized: The quantized graph that the engine was built from, to hold against it too: that its accuracy was
            searched for is worth nothing if a runtime computes something else.

    Returns:
        The verdict, and the loaded engine.

    Raises:
        EngineError: They differ by more than the precision explains.
    """
    options = RuntimeOptions(batch_size=min(len(images), engine.batch.max), lanes=1)
    loaded = registry.open_runtime(runtime, engine, options)
    verdict = _judge(
        loaded.lanes[0].infer,
        export,
        images,
        batch=loaded.batch_size,
        expected=engine.precision,
        measured=("engine", loaded.inference_precision),
    )
    if quantized is not None:
        _refuse_other_logits(loaded, _onnxruntime(quantized, export), export, images)
    return verdict, loaded


def _refuse_other_logits(loaded: Runtime, graph: Infer, export: Export, images: NDArray[np.float32]) -> None:
    size = export.batch or loaded.batch_size
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    own, expected = (np.concatenate([infer(part) for part in parts]) for infer in (loaded.lanes[0].infer, graph))
    cosine = compare_logits(own, expected).cosine
    if not cosine >= _LEAST_COSINE_OF_CODES:
        message = f"the engine does not compute what its quantized graph says: cosine {cosine:.5f}"
        hint = "build for another --runtime, and report the checkpoint and the versions"
        raise EngineError(message, hint=hint)


def verify_graph(graph: Path, precision: Precision, export: Export, images: NDArray[np.float32]) -> Verdict:
    """Hold the graph that an engine was built from against the fp32 one, both on the CPU.

    It tells whether rewriting, casting and quantization went right where there is no GPU to run the engine itself.
    Weights and codes are those of the engine. Activations are not: a CPU computes in fp32 what the graph has in half
    precision, so that neither their rounding nor an overflow shows.

    Raises:
        EngineError: They differ by more than the precision explains.
    """
    infer = _openvino(graph) if precision == "bf16" else _onnxruntime(graph, export)
    return _judge(infer, export, images, batch=_IMAGES, expected=precision, measured=("graph", "fp32"))


def _onnxruntime(graph: Path, export: Export) -> Infer:
    """Run a graph in ONNX Runtime, Q/DQ nodes as they stand: its fused INT8 products saturate on CPUs without VNNI."""
    session = open_session(graph, threads=usable_cores(), fuse_qdq=False)
    return lambda batch: np.asarray(session.run(None, {export.input_name: batch})[0], dtype=np.float32)


def _openvino(graph: Path) -> Infer:
    """Run a graph in OpenVINO: ONNX Runtime has no products in bf16 for the CPU."""
    core = import_openvino().Core()
    model = core.compile_model(core.read_model(str(graph)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda batch: np.array(model(batch)[0], dtype=np.float32)


def generated_images(export: Export) -> NDArray[np.float32]:
    """Return images of large random squares, preprocessed: float32 [n, 3, height, width], the same ones every time."""
    height, width = export.image_size
    preprocessor = Preprocessor(export.preprocessing, export.image_size)
    generator = np.random.default_rng(0)
    images = np.empty((export.batch or _IMAGES, 3, height, width), dtype=np.float32)
    for image in images:
        coarse = generator.integers(0, 256, size=(7, 7, 3), dtype=np.uint8)
        rows = np.linspace(0, len(coarse) - 1, height).round().astype(int)
        columns = np.linspace(0, len(coarse) - 1, width).round().astype(int)
        preprocessor(np.ascontiguousarray(coarse[rows][:, columns]), image)
    return images


def _judge(
    infer: Infer,
    export: Export,
    images: NDArray[np.float32],
    *,
    batch: int,
    expected: Precision,
    measured: tuple[Literal["engine", "graph"], Precision],
) -> Verdict:
    session = open_session(export.path, threads=usable_cores(), fuse_qdq=False)
    starts = range(0, len(images), export.batch or batch)
    parts = [images[start : start + (export.batch or batch)] for start in starts]
    with failures_as(EngineError, f"{export.source}: ONNX Runtime cannot run the model", _EXPORT_AGAIN):
        reference = np.concatenate([session.run(None, {export.input_name: part})[0] for part in parts])
    logits = np.concatenate([infer(part) for part in parts])
    if not logits.shape == reference.shape == (len(images), export.classes):
        message = f"{export.source}: the model answers {reference.shape}, not {export.classes} logits for each image"
        raise EngineError(message, hint=_EXPORT_AGAIN)
    comparison = compare_logits(logits, reference)
    least = _LEAST_COSINE[expected]
    what, number = measured
    if not comparison.cosine >= least:
        message = f"the {expected} {what} disagrees with fp32: cosine {comparison.cosine:.5f}, not {least}"
        fix = "build in fp32" if expected != "fp32" else "check the weights for values that are not finite"
        raise EngineError(message, hint=f"{fix}, and report the checkpoint, the GPU and the versions")
    return Verdict(what, number, comparison)
