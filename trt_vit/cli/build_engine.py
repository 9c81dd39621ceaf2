from __future__ import annotations

from pathlib import Path  # noqa: TC003 - Typer reads the annotations
from typing import Annotated, Any

import typer


def build_engine(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A recipe (.yaml), Hugging Face id, checkpoint directory or .onnx."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="BUNDLE", help="The bundle to write.", show_default="engines/built/…"),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32 or bf16.", show_default="the recipe's, config.yaml's, or fp32")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="auto, openvino or onnxruntime.", show_default="the recipe's, or auto")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="MIN,OPT,MAX", help="Batch sizes to build for.", show_default="1,8,32")
    ] = None,
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
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document about the bundle.")] = False,
) -> None:
    """Build an engine from a Vision Transformer and leave it as a bundle."""
    from trt_vit.cli.console import note, print_fields, print_json
    from trt_vit.config import BuildSettings, resolve_source
    from trt_vit.engine.build import build
    from trt_vit.engine.describe import describe

    flags: dict[str, Any] = {
        "output": output,
        "precision": precision,
        "runtime": runtime,
        "batch": batch,
        "revision": revision,
        "preprocessor": preprocessor,
        "labels": labels,
    }
    settings = resolve_source(BuildSettings, source, flags, config=config)
    bundle = build(settings, note)
    document = describe(bundle)
    if json:
        print_json(document)
    else:
        print_fields(document)
