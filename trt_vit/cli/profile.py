from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_vit.cli.options import Bundle, Json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trt_vit.profile.compare import Change
    from trt_vit.profile.layers import LayerGroup
    from trt_vit.profile.sweep import Point, Profile

_GROUPS = 8
"""Kinds of layers that the terminal's table has."""


def profile(
    bundle: Bundle,
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="Images to classify, for the whole pipeline.",
            show_default="the engine alone, on random pixels",
        ),
    ] = None,
    batch_sizes: Annotated[
        str, typer.Option("--batch-sizes", metavar="N,N,...", help="Images a batch.", show_default="the bundle's usual")
    ] = "",
    lanes: Annotated[
        str, typer.Option("--lanes", metavar="N,N,...", help="Batches in flight.", show_default="the runtime's choice")
    ] = "",
    duration: Annotated[
        float,
        typer.Option(
            "--duration", metavar="S", min=0.1, help="Seconds for each; up to three times as many until stable."
        ),
    ] = 10.0,
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE.html", help="A report to look at.")] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE.json", help="A timeline for Perfetto or chrome://tracing.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="OLD.json", help="What --json has printed before.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure latency and throughput, and tell what limits them."""
    from trt_vit.cli.console import note, print_document
    from trt_vit.engine.progress import Steps, report_build
    from trt_vit.errors import EXIT_INTERRUPTED
    from trt_vit.profile.compare import compare_points, read_points
    from trt_vit.profile.machine import environment
    from trt_vit.profile.report import profile_report
    from trt_vit.profile.sweep import Sweep, profile_bundle
    from trt_vit.profile.trace import write_trace
    from trt_vit.reports import check_report, write_report

    if report is not None:
        check_report(report)
    sweep = Sweep(_numbers(batch_sizes, "--batch-sizes"), _numbers(lanes, "--lanes"), duration)
    old = None if compare is None else read_points(compare)
    with report_build() as progress:
        steps = Steps(progress)
        found = profile_bundle(bundle, images, sweep, lambda done, of: steps("measuring", done, of))
    changes = [] if old is None else compare_points(old, found.points)
    machine = environment()
    _warn(found)
    if trace is not None:
        write_trace(trace, found.intervals)
        note(f"wrote {trace}")
    if report is not None:
        write_report(report, profile_report(found, machine, changes))
        note(f"wrote {report}")
    document = _document(found, changes) | {"environment": machine} if json else _tables(found, changes)
    print_document(document, as_json=json)
    if found.stopped:
        raise typer.Exit(EXIT_INTERRUPTED)


def _warn(found: Profile) -> None:
    """Say what must be known before a figure is believed."""
    from trt_vit.cli.console import note

    for text in found.notes:
        note(f"note: {text}")
    for point in found.points:
        where = f"warning: batch {point.batch_size}, {point.lanes} lanes"
        if point.throughput.doubt is not None:
            note(f"{where}: not stable: {point.throughput.doubt}")
        if point.failed:
            note(f"{where}: {point.failed} images could not be used")


def _facts(found: Profile) -> dict[str, object]:
    kept = ("bundle", "runtime", "precision", "runs_in", "end_to_end")
    return {key: getattr(found, key) for key in kept}


def _document(found: Profile, changes: Sequence[Change]) -> dict[str, object]:
    """Return what ``--json`` prints."""
    from dataclasses import asdict

    lists: dict[str, Sequence[Any]] = {"points": found.points, "changes": changes, "layers": found.layers}
    rows = {name: [asdict(item) for item in items] for name, items in lists.items()}
    return _facts(found) | rows | {"notes": found.notes, "stopped": found.stopped}


def _tables(found: Profile, changes: Sequence[Change]) -> dict[str, object]:
    """Return what the terminal shows."""
    from dataclasses import asdict

    from trt_vit.profile.layers import group_layers

    tables: dict[str, object] = {"points": [_line(point) for point in found.points]}
    if changes:
        tables["changes"] = [asdict(change) for change in changes]
    if found.layers:
        tables["layers"] = [_layers(group) for group in group_layers(found.layers)[:_GROUPS]]
    limit = found.best.diagnosis
    return _facts(found) | tables | {"limit": limit.words, "advice": limit.advice}


def _numbers(text: str, flag: str) -> list[int]:
    from trt_vit.errors import UsageError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{flag} {text}: not a list of numbers", hint=f"write it as {flag} 1,8,32")
    return [int(part) for part in parts]


def _line(point: Point) -> dict[str, object]:
    """Return what one line of the terminal's table says of a point."""
    latency = point.latency
    return {
        "batch": point.batch_size,
        "lanes": point.lanes,
        "images/s": f"{point.throughput.mean:.2f}",
        "+-": f"{point.throughput.noise:.1%}",
        **{f"{name} ms": f"{getattr(latency, name):.2f}" for name in ("p50", "p90", "p95", "p99", "max")},
        "limit": point.diagnosis.limit,
        "stable": "yes" if point.throughput.stable else "no",
    }


def _layers(group: LayerGroup) -> dict[str, object]:
    """Return what one line of the terminal's table says of some layers."""
    return {
        "kind": group.kind,
        "precision": group.precision,
        "layers": group.layers,
        "ms a batch": f"{1000 * group.seconds:.3f}",
        "share": f"{group.share:.1%}",
    }
