from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trt_vit.cli.options import Config, Labels, Preprocessor, Revision, Source


def export(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The .onnx file to write.")],
    revision: Revision = None,
    preprocessor: Preprocessor = None,
    labels: Labels = None,
    config: Config = None,
) -> None:
    """Export a checkpoint to ONNX.

    The file is checked against torch, and has the preprocessing and the labels inside.
    """
    from trt_vit.checkpoint.load import to_onnx
    from trt_vit.cli.console import note
    from trt_vit.config import resolve_source
    from trt_vit.settings import BuildSettings

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
