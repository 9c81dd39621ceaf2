from __future__ import annotations

from pathlib import Path  # noqa: TC003 - Typer reads the annotations
from typing import Annotated

import typer


def export(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A recipe (.yaml), Hugging Face id, checkpoint directory or .onnx."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The .onnx file to write.")],
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a Hugging Face id.")] = None,
    preprocessor: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A preprocessor_config.json to use in place of SOURCE's.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text file, one label a line, to use in place of SOURCE's.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Defaults to use.", show_default="./config.yaml")
    ] = None,
) -> None:
    """Export a checkpoint to ONNX, checked against torch, with its preprocessing and labels inside."""
    from trt_vit.checkpoint.load import to_onnx
    from trt_vit.cli.console import note
    from trt_vit.config import BuildSettings, resolve_source

    flags = {"revision": revision, "preprocessor": preprocessor, "labels": labels}
    settings = resolve_source(BuildSettings, source, flags, config=config)
    exported = to_onnx(
        settings.source,
        output,
        revision=settings.revision,
        preprocessor=settings.preprocessor,
        labels=settings.labels,
    )
    difference = exported.max_abs_difference
    checked = "" if difference is None else f", at most {difference:.1e} from torch"
    note(f"wrote {output}: {exported.classes} classes, opset {exported.opset}{checked}")
