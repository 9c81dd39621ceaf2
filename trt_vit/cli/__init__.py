"""The command line: one module per command, each of which parses, calls and prints."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from trt_vit import __version__, interrupts
from trt_vit.cli.build_engine import build_engine
from trt_vit.cli.classify import classify
from trt_vit.cli.compare import compare
from trt_vit.cli.doctor import doctor
from trt_vit.cli.evaluate import evaluate
from trt_vit.cli.export import export
from trt_vit.cli.export_triton import export_triton
from trt_vit.cli.inspect import inspect
from trt_vit.cli.profile import profile
from trt_vit.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_TERMINATED, EXIT_USAGE, TrtVitError
from trt_vit.interrupts import Terminated
from trt_vit.reading import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(
    help="Turn a Vision Transformer into an inference engine, and classify directories of images with it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich would take half of the time that --help takes
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(doctor)
app.command()(export)
app.command("build-engine")(build_engine)
app.command()(classify)
app.command()(evaluate)
app.command()(compare)
app.command()(profile)
app.command()(inspect)
app.command("export-triton")(export_triton)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trt-vit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors meant for a person become one line on standard error."""
    if not arguments:
        app(["--help"], prog_name="trt-vit", standalone_mode=False)
        return EXIT_USAGE
    try:
        code = app(list(arguments), prog_name="trt-vit", standalone_mode=False)
        sys.stdout.flush()
    except TrtVitError as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)
        return error.exit_code
    except typer.TyperException as error:
        print(f"error: {plain(' '.join(error.format_message().split()))} (see trt-vit --help)", file=sys.stderr)
        return error.exit_code
    except (OSError, MemoryError) as error:
        reason = plain(str(error)) or type(error).__name__
        print(f"error: {reason} (see to the file or device it names)", file=sys.stderr)
        return EXIT_FAILED
    if code == EXIT_INTERRUPTED:
        print("error: interrupted (run the command again to go on)", file=sys.stderr)
    return code or EXIT_OK


def main() -> NoReturn:
    """Run the command that the process was started with."""
    interrupts.install()
    _open_what_is_closed()
    try:
        code = interrupts.exit_code(run(sys.argv[1:]))
    except Terminated:
        print("error: terminated (run the command again to go on)", file=sys.stderr)
        code = EXIT_TERMINATED
    sys.exit(code)


def _open_what_is_closed() -> None:
    """Let what is printed go nowhere where that was closed; ``print`` takes standard output for the other."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - it stays open
