"""The build flow, end to end: checkpoint -> ONNX -> engine -> bundle on disk."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import trt_vit
from trt_vit.checkpoint.load import to_onnx
from trt_vit.engine import bundle as bundles
from trt_vit.engine import onnxruntime, openvino
from trt_vit.engine.compare import Comparison, compare_logits
from trt_vit.engine.manifest import (
    FORMAT,
    BatchProfile,
    CheckpointRecord,
    EngineRecord,
    ExportRecord,
    Manifest,
    ModelRecord,
    Precision,
    RuntimeName,
)
from trt_vit.errors import EngineError, UsageError
from trt_vit.images.preprocess import Preprocessor
from trt_vit.runtime import registry
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.onnxruntime import open_session
from trt_vit.runtime.protocol import EngineFiles, RuntimeOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from trt_vit.checkpoint.export import Export
    from trt_vit.config import BuildSettings

BUILT = Path("engines", "built")
"""Where bundles go that are given no place."""

DEFAULT_BATCH = BatchProfile(min=1, opt=8, max=32)
_REFERENCE_IMAGES = 8
_LEAST_COSINE: dict[Precision, float] = {"fp32": 0.9999, "bf16": 0.99}
_PACKAGES = ("numpy", "onnx", "onnxruntime", "openvino", "pillow", "torch", "transformers")


def build(settings: BuildSettings, on_phase: Callable[[str], None]) -> bundles.Bundle:
    """Build the engine that ``settings`` ask for and leave it as a bundle.

    The bundle appears at its place when everything has succeeded, the comparison with the fp32 reference included.

    Args:
        settings: What to build.
        on_phase: Called with a few words when a new phase begins.

    Raises:
        UsageError: The settings ask for something the runtime does not have.
        CheckpointError: SOURCE cannot be read or is not an image classifier.
        ExportError: The ONNX disagrees with the model.
        EngineError: The engine disagrees with the ONNX.
        EnvironmentFault: A package is missing.
        OutputError: The bundle cannot be written.
    """
    runtime = registry.choose() if settings.runtime == "auto" else settings.runtime
    _refuse_unsupported(runtime, settings.precision)
    path = settings.output or default_path(settings.source, settings.precision, runtime)
    bundles.refuse_foreign(path)
    with tempfile.TemporaryDirectory(prefix="trt-vit-") as scratch:
        on_phase("exporting to ONNX")
        export = to_onnx(
            settings.source,
            Path(scratch, "model.onnx"),
            revision=settings.revision,
            preprocessor=settings.preprocessor,
            labels=settings.labels,
        )
        batch = _batch_profile(settings.batch, export)
        with bundles.new_bundle(path) as work:
            on_phase(f"building the {runtime} engine")
            _write_engine(runtime, export.path, work)
            on_phase("comparing with the fp32 reference")
            engine = _measure(runtime, settings.precision, export, work)
            if engine.measured_in != settings.precision:
                on_phase(f"note: this CPU has no {settings.precision} arithmetic: compared in {engine.measured_in}")
            _write_surroundings(work, export)
            manifest = _manifest(work, export, engine, runtime=runtime, precision=settings.precision, batch=batch)
            bundles.write_manifest(work, manifest)
    return bundles.Bundle.open(path)


def default_path(source: str, precision: Precision, runtime: RuntimeName) -> Path:
    """Return where the bundle of a source goes by default: named for what it was made from and for."""
    path = os.path.expanduser(source)  # noqa: PTH111 - as the checkpoint's own resolution reads it
    local = os.path.basename(os.path.realpath(path)).removesuffix(".onnx")  # noqa: PTH119
    name = local if os.path.exists(path) else source.replace("/", "--")  # noqa: PTH110
    return BUILT / f"{name}-{precision}-{runtime}"


def _refuse_unsupported(runtime: RuntimeName, precision: Precision) -> None:
    if runtime == "onnxruntime" and precision != "fp32":
        message = f"ONNX Runtime has no {precision} kernels for a whole ViT on a CPU"
        raise UsageError(message, hint="use --runtime openvino, or --precision fp32")


def _batch_profile(asked: BatchProfile | None, export: Export) -> BatchProfile:
    """Return the batch sizes the engine will take: those asked for, or the only one that the ONNX has."""
    if export.batch is None:
        return asked or DEFAULT_BATCH
    fixed = BatchProfile(min=export.batch, opt=export.batch, max=export.batch)
    if asked not in (None, fixed):
        message = f"{export.source} has a fixed batch of {export.batch}, which --batch {asked} does not fit"
        raise UsageError(message, hint="leave out --batch, or export the model with a dynamic batch")
    return fixed


def _write_engine(runtime: RuntimeName, onnx: Path, directory: Path) -> None:
    """Write the engine's files into ``directory``."""
    if runtime == "openvino":
        openvino.write_engine(onnx, directory)
    else:
        onnxruntime.write_engine(onnx, directory)


def _write_surroundings(directory: Path, export: Export) -> None:
    """Write what a run needs beside the engine: preprocessing and labels."""
    (directory / bundles.PREPROCESSING).write_text(export.preprocessing.model_dump_json(indent=2), encoding="utf-8")
    (directory / bundles.LABELS).write_text(json.dumps(export.labels, ensure_ascii=False, indent=0), encoding="utf-8")


def _measure(runtime: RuntimeName, precision: Precision, export: Export, directory: Path) -> EngineRecord:
    """Load the engine as a run would, and hold its logits against ONNX Runtime's in fp32.

    Raises:
        EngineError: They differ by more than the precision explains.
    """
    model = _model_record(export)
    files = EngineFiles(directory, precision, model, lambda name: (directory / name).read_bytes())
    count = export.batch or _REFERENCE_IMAGES
    loaded = registry.open_runtime(runtime, files, RuntimeOptions(batch_size=count, lanes=1))
    images = _reference_images(export, count)
    session = open_session(export.path, threads=usable_cores())
    (reference,) = session.run(None, {model.input_name: images})
    comparison = compare_logits(loaded.lanes[0].infer(images), reference)
    _refuse_disagreement(comparison, precision)
    statistics = loaded.statistics()
    return EngineRecord(
        layers=statistics.layers,
        fused_attention=statistics.fused_attention,
        weights_bytes=statistics.weights_bytes,
        int8_coverage=0.0,
        measured_in=loaded.inference_precision,
        agreement=comparison.agreement,
        cosine=comparison.cosine,
        max_abs_difference=comparison.max_abs_difference,
    )


def _reference_images(export: Export, count: int) -> NDArray[np.float32]:
    """Return images of large random squares, preprocessed: float32 [count, 3, height, width]."""
    height, width = export.image_size
    preprocessor = Preprocessor(export.preprocessing, export.image_size)
    generator = np.random.default_rng(0)
    images = np.empty((count, 3, height, width), dtype=np.float32)
    for image in images:
        coarse = generator.integers(0, 256, size=(7, 7, 3), dtype=np.uint8)
        rows = np.linspace(0, len(coarse) - 1, height).round().astype(int)
        columns = np.linspace(0, len(coarse) - 1, width).round().astype(int)
        preprocessor(np.ascontiguousarray(coarse[rows][:, columns]), image)
    return images


def _refuse_disagreement(comparison: Comparison, precision: Precision) -> None:
    least = _LEAST_COSINE[precision]
    if not comparison.cosine >= least:
        message = f"the {precision} engine disagrees with ONNX Runtime: cosine {comparison.cosine:.5f}, not {least}"
        raise EngineError(message, hint="build for --runtime onnxruntime and report the checkpoint")


def _model_record(export: Export) -> ModelRecord:
    height, width = export.image_size
    return ModelRecord(
        input_name=export.input_name,
        output_name=export.output_name,
        height=height,
        width=width,
        classes=export.classes,
    )


def _manifest(
    directory: Path,
    export: Export,
    engine: EngineRecord,
    *,
    runtime: RuntimeName,
    precision: Precision,
    batch: BatchProfile,
) -> Manifest:
    return Manifest(
        format=FORMAT,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        runtime=runtime,
        precision=precision,
        batch=batch,
        checkpoint=CheckpointRecord(
            source=export.source,
            kind=export.kind,
            revision=export.revision,
            architecture=export.architecture,
            weights_sha256=export.weights_sha256,
            parameters=export.parameters,
        ),
        model=_model_record(export),
        export=ExportRecord(opset=export.opset, max_abs_difference=export.max_abs_difference),
        engine=engine,
        files={file.name: bundles.record(file) for file in sorted(directory.iterdir())},
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "trt-vit": trt_vit.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
