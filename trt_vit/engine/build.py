"""The build flow, end to end: checkpoint -> ONNX -> engine -> bundle on disk."""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from trt_vit.caches import cache_directory
from trt_vit.checkpoint.load import to_onnx
from trt_vit.engine import bundle as bundles
from trt_vit.engine import onnxruntime, openvino, tensorrt
from trt_vit.engine.layers import share_of
from trt_vit.engine.manifest import BatchProfile
from trt_vit.engine.order import QUANTIZED, take_order, uncalibrated
from trt_vit.engine.record import manifest, model_record, quantization_record
from trt_vit.engine.verify import Built, generated_images, verify_engine
from trt_vit.errors import ArtifactError, EngineError, UsageError
from trt_vit.runtime.protocol import EngineFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx_ir as ir
    from numpy.typing import NDArray

    from trt_vit.checkpoint.export import Export
    from trt_vit.engine.order import Order, TensorRtOrder
    from trt_vit.engine.progress import BuildProgress
    from trt_vit.quantize.calibration import CalibrationSet
    from trt_vit.quantize.plan import Quantization
    from trt_vit.settings import BuildSettings

    Quantizer = Callable[[ir.Model], Quantization]

DEFAULT_BATCH = BatchProfile(min=1, opt=8, max=32)
_COMPARED_IMAGES = 32


def build(settings: BuildSettings, progress: BuildProgress) -> bundles.Bundle:
    """Build the engine that ``settings`` ask for and leave it as a bundle.

    The bundle appears at its place when everything has succeeded, the comparison with the fp32 reference included.

    Args:
        settings: What to build.
        progress: Who to tell how it goes.

    Raises:
        UsageError: The settings ask for something the runtime does not have.
        CheckpointError: SOURCE cannot be read or is not an image classifier.
        InputError: None of the calibration images can be read.
        ExportError: The ONNX disagrees with the model.
        EngineError: The engine cannot be built, is not what was asked for, or disagrees with the ONNX.
        EnvironmentFault: A package or the GPU is missing.
        OutputError: The bundle cannot be written.
    """
    order = take_order(settings)
    bundles.refuse_foreign(order.path)
    calibration = _calibration(order, progress)
    with tempfile.TemporaryDirectory(prefix="trt-vit-") as scratch:
        progress.phase("reading the model")
        export = to_onnx(
            settings.source,
            Path(scratch, "model.onnx"),
            revision=settings.revision,
            preprocessor=settings.preprocessor,
            labels=settings.labels,
        )
        batch = _batch_profile(settings.batch, export)
        _refuse_other_quantization(order, export, calibration)
        if export.quantized and calibration is not None:
            progress.phase("warning: calibration images mean nothing for a graph that came quantized")
            calibration = None
        with bundles.new_bundle(order.path) as work:
            engine = EngineFiles(
                work, order.precision, model_record(export), batch, lambda name: (work / name).read_bytes()
            )
            images = _compared_images(export, calibration)
            quantizer = None if calibration is None else _quantizer(order, export, calibration, progress)
            with _nothing_is_an_artifact_yet(export):
                if order.tensorrt is None:
                    built, quantization = _build_for_cpu(
                        order, export, engine, images=images, quantizer=quantizer, progress=progress
                    )
                else:
                    built, quantization = _build_tensorrt(
                        order, order.tensorrt, export, engine, images=images, quantizer=quantizer, progress=progress
                    )
            _write_surroundings(work, export)
            recorded = quantization_record(order, calibration, quantization)
            facts = manifest(work, order, export, batch, built=built, quantization=recorded)
            bundles.write_manifest(work, facts)
    return bundles.Bundle.open(order.path)


@contextmanager
def _nothing_is_an_artifact_yet(export: Export) -> Iterator[None]:
    """Raise what a library cannot load as a failed build: a runtime takes whatever it is given for a bundle's."""
    try:
        yield
    except ArtifactError as error:
        message = f"{export.source}: {error.message}"
        raise EngineError(
            message, hint="export the model with standard operators; trt-vit doctor tells more"
        ) from error


def _batch_profile(asked: BatchProfile | None, export: Export) -> BatchProfile:
    """Return the batch sizes the engine will take: those asked for, or the only one that the ONNX has."""
    if export.batch is None:
        return asked or DEFAULT_BATCH
    fixed = BatchProfile(min=export.batch, opt=export.batch, max=export.batch)
    if asked not in (None, fixed):
        message = f"{export.source} has a fixed batch of {export.batch}, which --batch {asked} does not fit"
        raise UsageError(message, hint="leave out --batch, or export the model with a dynamic batch")
    return fixed


def _calibration(order: Order, progress: BuildProgress) -> CalibrationSet | None:
    """Choose the calibration images of an INT8 or FP8 build; None where none are named or nothing is calibrated."""
    settings = order.settings
    if settings.calibration is None:
        return None
    if order.precision not in QUANTIZED:
        progress.phase(f"warning: calibration images mean nothing for {order.precision}")
        return None
    from trt_vit.quantize.calibration import choose_images  # noqa: PLC0415 - the decoders, which few builds need

    progress.phase("choosing calibration images")
    chosen = choose_images(settings.calibration, settings.calibration_images)
    if chosen.unreadable:
        progress.phase(f"warning: {len(chosen.unreadable)} calibration images cannot be read and are passed over")
    if len(chosen.paths) < chosen.asked:
        progress.phase(f"warning: {len(chosen.paths)} calibration images, not {chosen.asked}: {chosen.directory}")
    return chosen


def _refuse_other_quantization(order: Order, export: Export, calibration: CalibrationSet | None) -> None:
    """Refuse a graph that came quantized where that is not what is to be built, and one that did not without images."""
    if export.quantized and order.precision not in QUANTIZED:
        message = f"{export.source} holds Q/DQ nodes: it is no {order.precision} graph"
        raise UsageError(message, hint="build it with --precision int8 (or fp8), or pass the model from before")
    if order.precision in QUANTIZED and not export.quantized and calibration is None:
        raise uncalibrated(order.precision)


def _compared_images(export: Export, calibration: CalibrationSet | None) -> NDArray[np.float32]:
    """Return what an engine is compared with fp32 on: calibration images where there are some, else generated ones."""
    if calibration is None:
        return generated_images(export)
    from trt_vit.quantize.calibration import read_batches  # noqa: PLC0415

    paths = calibration.paths[-_COMPARED_IMAGES:]
    batches = list(read_batches(paths, export.preprocessing, export.image_size, batch=export.batch))
    return np.concatenate(batches) if batches else generated_images(export)


def _quantizer(order: Order, export: Export, chosen: CalibrationSet, progress: BuildProgress) -> Quantizer:
    """Return what calibrates a rewritten graph on the chosen images and quantizes it as was ordered."""
    from trt_vit.engine.quantizer import quantizer  # noqa: PLC0415 - onnx and the decoders, which only this build needs
    from trt_vit.quantize.equalize import Methods, Numbers  # noqa: PLC0415
    from trt_vit.quantize.plan import Wish  # noqa: PLC0415

    settings = order.settings
    code: Literal["int8", "fp8"] = "fp8" if order.precision == "fp8" else "int8"
    wish = Wish(
        numbers=Numbers(code, code if order.tensorrt is not None else "int7"),
        least_agreement=settings.min_agreement,
        tensorrt=order.tensorrt is not None,
        attention=settings.quantize_attention,
        methods=Methods(ranges=settings.ranges),
    )
    return quantizer(export, chosen, wish, cache=settings.cache or cache_directory(), progress=progress)


def _build_for_cpu(
    order: Order,
    export: Export,
    engine: EngineFiles,
    *,
    images: NDArray[np.float32],
    quantizer: Quantizer | None,
    progress: BuildProgress,
) -> tuple[Built, Quantization | None]:
    import onnx_ir as ir  # noqa: PLC0415 - onnx, which only a build needs

    from trt_vit.engine.prepare import prepare  # noqa: PLC0415
    from trt_vit.graph.attentions import count_attentions  # noqa: PLC0415

    source, prepared = export.path, None
    if order.precision in QUANTIZED:
        progress.phase(
            "taking the graph as it is" if export.quantized else f"rewriting the graph for {order.precision}"
        )
        output = export.path.with_name("prepared.onnx")
        prepared = prepare(export, order.precision, output, quantize=quantizer, rest="fp32")
        source = prepared.path
    progress.phase(f"building the {order.runtime} engine")
    if order.runtime == "openvino":
        openvino.write_engine(source, engine.path)
    else:
        onnxruntime.write_engine(source, engine.path)
    progress.phase("comparing with the fp32 reference")
    quantized = None if prepared is None else prepared.path
    verdict, loaded = verify_engine(order.runtime, engine, export, images, quantized=quantized)
    if verdict.measured_in != order.precision:
        progress.phase(f"note: this CPU has no {order.precision} arithmetic: compared in {verdict.measured_in}")
    statistics = loaded.statistics()
    built = Built(
        statistics,
        attentions=count_attentions(ir.load(source)),
        int8_coverage=0.0 if prepared is None else share_of(prepared.macs, statistics.int8_nodes),
        verdict=verdict,
    )
    return built, None if prepared is None else prepared.quantization


def _build_tensorrt(
    order: Order,
    which: TensorRtOrder,
    export: Export,
    engine: EngineFiles,
    *,
    images: NDArray[np.float32],
    quantizer: Quantizer | None,
    progress: BuildProgress,
) -> tuple[Built, Quantization | None]:
    from trt_vit.engine.prepare import prepare  # noqa: PLC0415 - onnx, which only a build needs

    progress.phase("taking the graph as it is" if export.quantized else f"rewriting the graph for {order.precision}")
    output = export.path.with_name("prepared.onnx")
    prepared = prepare(export, order.precision, output, quantize=quantizer, probe=images)
    built = tensorrt.write_engine(
        engine,
        prepared,
        export,
        images,
        family=which.family,
        target=which.target,
        cache=order.settings.cache or cache_directory(),
        progress=progress,
    )
    return built, prepared.quantization


def _write_surroundings(directory: Path, export: Export) -> None:
    """Write what a run needs beside the engine: preprocessing and labels."""
    (directory / bundles.PREPROCESSING).write_text(export.preprocessing.model_dump_json(indent=2), encoding="utf-8")
    (directory / bundles.LABELS).write_text(json.dumps(export.labels, ensure_ascii=False, indent=0), encoding="utf-8")
