from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_vit.cli.options import Bundle, Config, Json

if TYPE_CHECKING:
    from trt_vit.outputs import Output
    from trt_vit.pipeline.classify import Outcome
    from trt_vit.settings import ClassifySettings


def classify(
    bundle: Bundle,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="Images, directories, .tar or .parquet files of images, quoted globs, URLs of any of these, or lists "
            "(.txt; - for standard input) with the path or URL of a file on each line.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Results: .jsonl, .csv or .parquet; a path or URL.",
            show_default=False,
        ),
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
    decode_workers: Annotated[
        int | None,
        typer.Option(
            "--decode-workers", help="Processes that decode, so that no image can do harm.", show_default="none"
        ),
    ] = None,
    decode_seconds: Annotated[
        float | None,
        typer.Option(
            "--decode-seconds", metavar="S", help="How long one may decode an image.", show_default="any time"
        ),
    ] = None,
    max_failures: Annotated[
        int | None,
        typer.Option("--max-failures", help="Failed images above which the exit code is 3.", show_default="any number"),
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option("--resume/--no-resume", help="Go on with what an earlier run has done.", show_default="resume"),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Do one part of N; the last to end writes the output."),
    ] = None,
    distributed: Annotated[
        str | None, typer.Option("--distributed", metavar="ray", help="Spread the run over a Ray cluster.")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="ADDRESS",
            help="Address of the cluster.",
            show_default="RAY_ADDRESS, or a cluster of this machine",
        ),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", metavar="FILE", help="Tell monitoring how it goes, as OpenMetrics text.")
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
    from trt_vit.config import resolve
    from trt_vit.errors import EXIT_FELL_SHORT
    from trt_vit.pipeline.classify import classify_inputs
    from trt_vit.settings import ClassifySettings

    flags: dict[str, Any] = {
        "inputs": inputs or None,
        "output": output,
        "top_k": top_k,
        "batch_size": batch_size,
        "lanes": lanes,
        "decode": decode,
        "decode_workers": decode_workers,
        "decode_seconds": decode_seconds,
        "max_failures": max_failures,
        "resume": resume,
        "shard": shard,
        "distributed": distributed,
        "ray_address": ray_address,
        "metrics": metrics,
    }
    settings = resolve(ClassifySettings, flags, recipe=pipeline, config=config)
    outcome = classify_inputs(bundle, settings, note)
    if json:
        print_document(_document(outcome, settings.output), as_json=True)
    _tell(outcome, settings)
    if settings.max_failures is not None and outcome.failed > settings.max_failures:
        note(f"error: {outcome.failed} images failed, more than --max-failures {settings.max_failures}")
        raise typer.Exit(EXIT_FELL_SHORT)


def _document(outcome: Outcome, output: Output) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    summary = outcome.summary
    return {
        "images": outcome.images,
        "ok": outcome.images - outcome.failed,
        "failed": outcome.failed,
        "seconds": round(summary.seconds, 3),
        "images_per_second": round(summary.images_per_second, 2),
        "output": str(output),
        "stages": {stage: round(seconds, 3) for stage, seconds in summary.stages.items()},
        "resumed": outcome.resumed,
        "complete": outcome.left == 0,
    }


def _tell(outcome: Outcome, settings: ClassifySettings) -> None:
    """Say what was done."""
    from trt_vit.cli.console import note

    counts = f"{outcome.images} images, {outcome.failed} failed"
    if outcome.left:
        note(f"part {settings.shard} is done: {counts}; the other parts have {outcome.left} shards left")
    elif outcome.earlier:
        note(f"{settings.output} was written before: {counts}")
    else:
        summary = outcome.summary
        rate = f", {summary.seconds:.1f} s, {summary.images_per_second:.1f} images/s" if summary.images else ""
        note(f"wrote {settings.output}: {counts}{rate}")
    if outcome.images and outcome.failed == outcome.images:
        note(f"warning: no image could be classified; the reasons are in {settings.output}")
