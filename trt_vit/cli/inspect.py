from __future__ import annotations

from pathlib import Path  # noqa: TC003 - Typer reads the annotations
from typing import Annotated

import typer


def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that build-engine made.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Verify a bundle's files against its manifest, and tell what it holds and where it came from."""
    from trt_vit.cli.console import print_fields, print_json
    from trt_vit.engine.bundle import Bundle
    from trt_vit.engine.describe import describe

    opened = Bundle.open(bundle)
    opened.verify()
    document = describe(opened)
    if json:
        print_json(document)
    else:
        print_fields(document)
