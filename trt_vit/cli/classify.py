from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trt_vit.cli.options import Bundle, Config, Json


def classify(
    bundle: Bundle,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="Images, directories, text lists (.txt, one path a line) or quoted globs.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Results: .jsonl, .csv or .parquet.", show_default=False),
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Labels an image.", show_default="5")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Images a batch.", show_default="the bundle's usual")
    ] = None,
    lanes: Annotated[
        int | None, typer.Option("--lanes", help="Batches in flight.", show_default="the runtime's choice")
    ] = None,
    decode: Annotated[
        str | None,
        typer.Option(
            "--decode", help="Where JPEGs are decoded for a GPU: exact (CPU), fast (GPU).", show_default="exact"
        ),
    ] = None,
    max_failures: Annotated[
        int | None,
        typer.Option("--max-failures", help="Failed images above which the exit code is 3.", show_default="any number"),
    ] = None,
    pipeline: Annotated[
        Path | None, typer.Option("--pipeline", metavar="FILE", help="A pipeline recipe (.yaml) with any of these.")
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Classify images with an engine.

    Every input gets one result row, in the order of the inputs.
    """
    from trt_vit.cli.console import note, print_document
    from trt_vit.config import ClassifySettings, resolve
    from trt_vit.errors import EXIT_FELL_SHORT
    from trt_vit.pipeline.classify import classify_inputs

    flags: dict[str, Any] = {
        "inputs": inputs or None,
        "output": output,
        "top_k": top_k,
        "batch_size": batch_size,
        "lanes": lanes,
        "decode": decode,
        "max_failures": max_failures,
    }
    settings = resolve(ClassifySettings, flags, recipe=pipeline, config=config)
    summary = classify_inputs(bundle, settings, note)
    if json:
        print_document(
            {
                "images": summary.images,
                "ok": summary.images - summary.failed,
                "failed": summary.failed,
                "seconds": round(summary.seconds, 3),
                "images_per_second": round(summary.images_per_second, 2),
                "output": str(settings.output),
                "stages": {stage: round(seconds, 3) for stage, seconds in summary.stages.items()},
            },
            as_json=True,
        )
    rate = f"{summary.seconds:.1f} s, {summary.images_per_second:.1f} images/s"
    note(f"wrote {settings.output}: {summary.images} images, {summary.failed} failed, {rate}")
    if summary.failed == summary.images:
        note(f"warning: no image could be classified; the reasons are in {settings.output}")
    if settings.max_failures is not None and summary.failed > settings.max_failures:
        note(f"error: {summary.failed} images failed, more than --max-failures {settings.max_failures}")
        raise typer.Exit(EXIT_FELL_SHORT)
