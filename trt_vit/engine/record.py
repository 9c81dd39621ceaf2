"""What a build puts on record: the manifest, put together from what each step of the build flow knows."""

from __future__ import annotations

import importlib.metadata
import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import ValidationError

import trt_vit
from trt_vit.engine import bundle as bundles
from trt_vit.engine.manifest import (
    FORMAT,
    BatchProfile,
    CheckpointRecord,
    ComparisonRecord,
    EngineRecord,
    ExportRecord,
    LayerRecord,
    Manifest,
    ModelRecord,
    QuantizationRecord,
)
from trt_vit.engine.order import QUANTIZED
from trt_vit.errors import EngineError
from trt_vit.reading import plain

if TYPE_CHECKING:
    from pathlib import Path

    from trt_vit.checkpoint.export import Export
    from trt_vit.engine.manifest import Precision
    from trt_vit.engine.order import Order
    from trt_vit.engine.verify import Built
    from trt_vit.quantize.calibration import CalibrationSet
    from trt_vit.quantize.plan import Placement, Quantization

_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnx-ir", "onnxscript", "openvino", "pillow", "torch", "transformers")


def model_record(export: Export) -> ModelRecord:
    """Return the interface of an exported graph."""
    height, width = export.image_size
    return ModelRecord(
        input_name=export.input_name,
        output_name=export.output_name,
        height=height,
        width=width,
        classes=export.classes,
    )


def quantization_record(
    order: Order, calibration: CalibrationSet | None, quantization: Quantization | None
) -> QuantizationRecord | None:
    """Return how an INT8 or FP8 engine came by its ranges; None for the other precisions."""
    if order.precision not in QUANTIZED:
        return None
    score = None if quantization is None else quantization.score
    placements = () if quantization is None else quantization.placements
    return QuantizationRecord(
        calibration=None if calibration is None else plain(str(calibration.directory)),
        images=0 if calibration is None else len(calibration.paths),
        images_sha256=None if calibration is None else calibration.sha256,
        ranges=order.settings.ranges,
        min_agreement=order.settings.min_agreement,
        reached=quantization is None or quantization.reached,
        held_back=None if score is None else score.images,
        agreement=None if score is None else score.agreement,
        expected_agreement=None if score is None else score.expected,
        plan=tuple(_layer_record(placement, order) for placement in placements),
    )


def _layer_record(placement: Placement, order: Order) -> LayerRecord:
    rest: Precision = "fp32" if order.tensorrt is None else "fp16"
    return LayerRecord(
        layer=placement.layer,
        precision=order.precision if placement.left_out is None else rest,
        macs=placement.macs,
        amax=placement.amax,
        equalized=placement.equalized,
        attention=placement.attention,
        cost=placement.cost,
        reason=placement.left_out,
    )


def manifest(
    directory: Path,
    order: Order,
    export: Export,
    batch: BatchProfile,
    *,
    built: Built,
    quantization: QuantizationRecord | None,
) -> Manifest:
    """Return the manifest of the bundle whose files lie in ``directory``.

    Raises:
        EngineError: What was built is nothing that a manifest can tell of, such as an engine without layers.
    """
    try:
        return _manifest(directory, order, export, batch, built=built, quantization=quantization)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in detail["loc"])
        message = f"what was built of {plain(export.source)} cannot be put on record: {plain(where)}: {detail['msg']}"
        raise EngineError(
            message, hint="export the model again: it computes no logits, or is larger than any"
        ) from error


def _manifest(
    directory: Path,
    order: Order,
    export: Export,
    batch: BatchProfile,
    *,
    built: Built,
    quantization: QuantizationRecord | None,
) -> Manifest:
    return Manifest(
        format=FORMAT,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        runtime=order.runtime,
        precision=order.precision,
        batch=batch,
        checkpoint=CheckpointRecord(
            source=plain(export.source),
            kind=export.kind,
            revision=export.revision,
            architecture=export.architecture,
            weights_sha256=export.weights_sha256,
            parameters=export.parameters,
        ),
        model=model_record(export),
        export=ExportRecord(opset=export.opset, max_abs_difference=export.max_abs_difference),
        target=None if order.tensorrt is None else order.tensorrt.target,
        quantization=quantization,
        engine=_engine_record(built),
        files={file.name: bundles.record(file) for file in sorted(directory.iterdir())},
        versions=_versions(order),
    )


def _engine_record(built: Built) -> EngineRecord:
    statistics, verdict = built.statistics, built.verdict
    return EngineRecord(
        layers=statistics.layers,
        kinds=dict(statistics.kinds),
        precisions=dict(statistics.precisions),
        fused_attention=statistics.fused_attention,
        attentions=built.attentions,
        reformats=statistics.reformats,
        weights_bytes=statistics.weights_bytes,
        int8_coverage=built.int8_coverage,
        against_fp32=None
        if verdict is None
        else ComparisonRecord(
            measured_on=verdict.measured_on,
            measured_in=verdict.measured_in,
            images=verdict.comparison.images,
            agreement=verdict.comparison.agreement,
            cosine=verdict.comparison.cosine,
            max_abs_difference=verdict.comparison.max_abs_difference,
        ),
    )


def _versions(order: Order) -> dict[str, str]:
    versions = {"python": platform.python_version(), "trt-vit": trt_vit.__version__}
    if order.tensorrt is not None:
        versions[order.tensorrt.family.name] = order.tensorrt.family.version
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
