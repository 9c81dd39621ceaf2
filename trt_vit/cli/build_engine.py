from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trt_vit.cli.options import Config, Json, Labels, Preprocessor, Revision, Source


def build_engine(
    source: Source,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="BUNDLE", help="The bundle to write.", show_default="engines/built/…"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16, bf16, int8 or fp8.", show_default="the recipe's, config.yaml's, or fp32"),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="auto, tensorrt, tensorrt-rtx, openvino or onnxruntime.", show_default="the recipe's, or auto"
        ),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="MIN,OPT,MAX", help="Batch sizes to build for.", show_default="1,8,32")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images to measure the ranges of int8 and fp8 on.")
    ] = None,
    calibration_images: Annotated[
        int | None, typer.Option(metavar="N", help="How many of them.", show_default="512")
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="How often int8 and fp8 must agree with fp32 on held-back images; 0 asks for nothing.",
            show_default="0.98",
        ),
    ] = None,
    ranges: Annotated[
        str | None,
        typer.Option(help="Where ranges end: error, max, percentile, entropy or mse.", show_default="error"),
    ] = None,
    quantize_attention: Annotated[
        bool | None,
        typer.Option(
            "--quantize-attention/--no-quantize-attention", help="int8: attention too (TensorRT).", show_default="no"
        ),
    ] = None,
    compute_capability: Annotated[
        str | None,
        typer.Option(metavar="M.N", help="GPU generation to build for (tensorrt-rtx).", show_default="8.0 and later"),
    ] = None,
    revision: Revision = None,
    preprocessor: Preprocessor = None,
    labels: Labels = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Build an engine and leave it as a bundle.

    Before it is left, the engine is compared with the fp32 model, or the graph it was built from where there is no GPU.
    """
    from trt_vit.cli.console import note, print_document
    from trt_vit.config import resolve_source
    from trt_vit.engine.build import build
    from trt_vit.engine.describe import describe
    from trt_vit.engine.progress import report_build
    from trt_vit.errors import EXIT_FELL_SHORT
    from trt_vit.settings import BuildSettings

    flags: dict[str, Any] = {
        "output": output,
        "precision": precision,
        "runtime": runtime,
        "batch": batch,
        "calibration": calibration,
        "calibration_images": calibration_images,
        "min_agreement": min_agreement,
        "ranges": ranges,
        "quantize_attention": quantize_attention,
        "compute_capability": compute_capability,
        "revision": revision,
        "preprocessor": preprocessor,
        "labels": labels,
    }
    settings = resolve_source(BuildSettings, source, flags, config=config)
    with report_build() as progress:
        bundle = build(settings, progress)
    print_document(describe(bundle), as_json=json)
    quantization = bundle.manifest.quantization
    if quantization is not None and not quantization.reached:
        note(f"error: the engine falls short of --min-agreement {quantization.min_agreement:g}")
        raise typer.Exit(EXIT_FELL_SHORT)
