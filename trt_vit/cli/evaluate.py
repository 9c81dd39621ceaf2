from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_vit.cli.options import Json

if TYPE_CHECKING:
    from trt_vit.evaluate.score import EngineScore


def evaluate(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles; held against the first.")],
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Labelled images: class folders, or see --labels.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="The images' labels: FILE CLASS lines, .csv, the ILSVRC2012 devkit's ground truth, ReaL's .json.",
            show_default="class folders, or such a file with the images",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Images to use, spread over all.", show_default="all")
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE.html", help="A report to look at.")] = None,
    json: Json = False,
) -> None:
    """Score engines on labelled images: top-1 and top-5, with how sure these are.

    Several bundles of one checkpoint are scored in one pass, which decodes each image once.
    """
    from dataclasses import asdict

    from trt_vit.cli.console import note, print_document
    from trt_vit.engine.progress import Steps, report_build
    from trt_vit.evaluate.evaluate import evaluate_bundles
    from trt_vit.evaluate.report import evaluation_report
    from trt_vit.reports import check_report, write_report

    if report is not None:
        check_report(report)
    with report_build() as progress:
        steps = Steps(progress)
        found = evaluate_bundles(bundles, data, labels, limit, lambda done, of: steps("evaluating", done, of))
    for warning in found.warnings:
        note(f"warning: {warning}")
    if found.failures:
        path, reason = found.failures[0]
        note(f"warning: {len(found.failures)} images could not be used, {path} for one: {reason}")
    if report is not None:
        write_report(report, evaluation_report(found))
        note(f"wrote {report}")
    if json:
        engines = [asdict(engine) for engine in found.engines]
        for engine in engines:
            del engine["bins"]
        print_document({"engines": engines}, as_json=True)
    else:
        print_document({"labels": found.source, "engines": [_line(engine) for engine in found.engines]}, as_json=False)


def _line(engine: EngineScore) -> dict[str, object]:
    """Return what one line of the terminal's table says of an engine."""
    low, high = engine.top1_ci95
    return {
        "bundle": engine.bundle,
        "precision": engine.precision,
        "images": engine.images,
        "failed": engine.failed,
        "top1": f"{engine.top1:.2%}",
        "95 %": f"{low:.2%} to {high:.2%}",
        "top5": f"{engine.top5:.2%}",
        "agreement": f"{engine.agreement:.2%}",
        "cosine": engine.mean_cosine,
        "p": engine.p_value,
        "calibration error": engine.calibration_error,
    }
