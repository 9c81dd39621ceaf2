"""Accuracy beside speed, by precision: the bundled checkpoint's engines evaluated and profiled on this machine.

    python benchmarks/precisions.py --data cifar10/test --calibration cifar10/train --output FILE.json
    python benchmarks/precisions.py --table FILE.json

The first builds an engine in each precision that OpenVINO has on a CPU, evaluates all of them over one pass, and
profiles each twice: the engine alone, and from files to rows. The second prints the README's table of what the first
has written.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_vit.config import BuildSettings
from trt_vit.engine.build import build
from trt_vit.engine.progress import Quiet
from trt_vit.evaluate.evaluate import evaluate_bundles
from trt_vit.profile.machine import environment
from trt_vit.profile.sweep import Sweep, profile_bundle

if TYPE_CHECKING:
    from trt_vit.engine.manifest import Precision

CHECKPOINT = Path(__file__).parents[1] / "examples" / "vit-cifar10"
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
SECONDS = 10.0


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="directory of test images, a folder for each class")
    parser.add_argument("--calibration", type=Path, help="directory of images to calibrate on")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--table", type=Path, metavar="FILE.json", help="print the table of a file that was written")
    arguments = parser.parse_args()
    if arguments.table is not None:
        print(table_of(json.loads(arguments.table.read_text(encoding="utf-8"))))
        return
    results = measure(arguments.data, arguments.calibration)
    print(table_of(results))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def measure(data: Path, calibration: Path) -> dict[str, Any]:
    """Build, evaluate and profile an engine in each precision."""
    with tempfile.TemporaryDirectory() as name:
        places = [Path(name, precision) for precision in PRECISIONS]
        for precision, place in zip(PRECISIONS, places, strict=True):
            images = calibration if precision == "int8" else None
            settings = BuildSettings(
                source=str(CHECKPOINT), output=place, precision=precision, runtime="openvino", calibration=images
            )
            build(settings, Quiet())
        scores = evaluate_bundles(places, data, None, None, lambda _done, _of: None)
        sweep = Sweep([], [], SECONDS)
        rows = []
        for place, score in zip(places, scores.engines, strict=True):
            alone = profile_bundle(place, None, sweep, lambda _done, _of: None).best
            whole = profile_bundle(place, str(data), sweep, lambda _done, _of: None).best
            kept = ("precision", "runs_in", "images", "failed", "top1", "top5", "top1_ci95", "agreement", "mean_cosine")
            row = {key: value for key, value in asdict(score).items() if key in kept}
            rows.append(row | {"engine": rates(alone), "pipeline": rates(whole)})
    return {"environment": environment(), "checkpoint": "examples/vit-cifar10", "rows": rows}


def rates(point: Any) -> dict[str, Any]:
    """Return what of a measured point goes into the table."""
    return {
        "batch_size": point.batch_size,
        "lanes": point.lanes,
        "throughput": asdict(point.throughput),
        "latency": asdict(point.latency),
    }


def table_of(results: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    machine = results["environment"]
    batch = results["rows"][0]["engine"]["batch_size"]
    images = f"{results['checkpoint']} on {results['rows'][0]['images']} test images"
    cores = f"{machine['cores']} cores of {machine['processor']}, OpenVINO {machine['packages']['openvino']}"
    names = ["precision", "top-1", "95 % interval", "top-5", "agreement"]
    names += ["engine, images/s", "p95, ms", "files to rows, images/s"]
    lines = [f"{images}; {cores}, batches of {batch}.", "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in results["rows"]:
        low, high = row["top1_ci95"]
        engine, whole = row["engine"], row["pipeline"]
        name = row["precision"] + (f" (in {row['runs_in']})" if row["runs_in"] != row["precision"] else "")
        cells = [
            name,
            f"{row['top1']:.2%}",
            f"{low:.2%} to {high:.2%}",
            f"{row['top5']:.2%}",
            f"{row['agreement']:.2%}",
            rate(engine["throughput"]),
            f"{engine['latency']['p95']:.1f}",
            rate(whole["throughput"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rate(throughput: dict[str, Any]) -> str:
    """Return images a second with their noise, and a mark where they are not stable."""
    mark = "" if throughput["stable"] else " (not stable)"
    return f"{throughput['mean']:.0f} ± {throughput['mean'] * throughput['noise']:.0f}{mark}"


if __name__ == "__main__":
    main()
