"""Options that several commands share, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="A recipe (.yaml), Hugging Face id, checkpoint directory or .onnx."),
]
Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that build-engine made.")]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch of a Hugging Face id.")]
Preprocessor = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A preprocessor_config.json to use in place of SOURCE's.")
]
Labels = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A text file, one label a line, to use in place of SOURCE's.")
]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="Defaults to use.", show_default="./config.yaml")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
