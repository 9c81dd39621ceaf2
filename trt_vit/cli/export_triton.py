from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trt_vit.cli.options import Bundle, Json


def export_triton(
    bundle: Bundle,
    repository: Annotated[
        Path, typer.Argument(metavar="REPOSITORY", help="Triton's model repository; made where there is none.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the model.", show_default="that of the bundle's directory")
    ] = None,
    json: Json = False,
) -> None:
    """Add a bundle to a model repository of NVIDIA Triton Inference Server.

    NAME is the engine, NAME_preprocess makes its input from image files, NAME_ensemble is both. A model that is there
    already gets another version.
    """
    from trt_vit.cli.console import note, print_document
    from trt_vit.engine import bundle as bundles
    from trt_vit.serving import export

    exported = export.export_triton(bundles.Bundle.open(bundle), repository, name)
    if json:
        document = {"repository": str(repository), "model": exported.model, "version": exported.version}
        print_document(document | {"files": list(exported.files)}, as_json=True)
    models = ", ".join((exported.model, f"{exported.model}_preprocess", f"{exported.model}_ensemble"))
    note(f"wrote {repository}: version {exported.version} of {models}")
