"""What measuring costs, and whether it measures the right thing: evaluate and profile against what they stand for.

    python benchmarks/measuring.py [--images DIR] [--rounds 5] [--output FILE.json]

With the bundled checkpoint, whose engine is fast, so that whatever is done around it shows:

    timeline     classify with every stage of every image noted, against classify
    evaluate     evaluate, against classify on the same images
    three        evaluate of three engines in one pass, against one: more than a third, by what is done once for all

With ViT-B/16 and random weights:

    profile      throughput as trt-vit profile has it, against OpenVINO's own benchmark_app on the same engine

Every round runs each of them once, one after the other; what is reported is the median of the ratio within a round.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from photos import photos
from vit_base import write_checkpoint

from trt_vit.engine.build import build
from trt_vit.engine.progress import Quiet
from trt_vit.evaluate.evaluate import evaluate_bundles
from trt_vit.pipeline.classify import load_classifier
from trt_vit.pipeline.run import classify
from trt_vit.pipeline.sinks import open_sink
from trt_vit.pipeline.timeline import Timeline
from trt_vit.profile.machine import environment
from trt_vit.profile.sweep import Sweep, profile_bundle
from trt_vit.runtime.openvino import ENGINE_GRAPH, HINTS
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.settings import BuildSettings
from trt_vit.sources.item import file_items

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trt_vit.engine.bundle import Bundle

CHECKPOINT = Path(__file__).parents[1] / "examples" / "vit-cifar10"
LABEL = "cat"
REPEATED = 8
BATCH = 8
SECONDS = 20.0


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, help="directory of photos")
    parser.add_argument("--rounds", type=int, default=5, help="times each contender runs")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        files = photos(arguments.images, work, 250)
        data = labelled(files, work / "data")
        small = bundle_of(CHECKPOINT, work / "small")
        base = bundle_of(write_checkpoint(work / "vit-base"), work / "base")
        paths = sorted(str(path) for path in data.rglob("*.*"))
        contenders = {
            "classify": classify_contender(small, paths, work, noted=False),
            "classify with a timeline": classify_contender(small, paths, work, noted=True),
            "evaluate": evaluate_contender([small], data),
            "evaluate of three": evaluate_contender([small] * 3, data),
            "profile": profile_contender(base),
            "benchmark_app": benchmark_app_contender(base),
        }
        rates = run_rounds(contenders, arguments.rounds)
    results = {"environment": environment(), "images": len(paths), "per_second": rates, "ratios": print_ratios(rates)}
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def labelled(files: Sequence[str], data: Path) -> Path:
    """Lay photos out as images of one class, over and over: speed does not depend on what they show."""
    (data / LABEL).mkdir(parents=True)
    for turn in range(REPEATED):
        for number, file in enumerate(files):
            (data / LABEL / f"{turn}-{number:03}{Path(file).suffix}").symlink_to(Path(file).resolve())
    return data


def bundle_of(checkpoint: Path, output: Path) -> Bundle:
    """Build an fp32 engine for OpenVINO."""
    return build(BuildSettings(source=str(checkpoint), output=output, runtime="openvino"), Quiet())


def classify_contender(bundle: Bundle, paths: Sequence[str], work: Path, *, noted: bool) -> Callable[[], float]:
    """Return a function that classifies the images and gives images a second, as a command does it from its start."""

    def run() -> float:
        started = time.perf_counter()
        options = RuntimeOptions(batch_size=bundle.manifest.batch.opt)
        classifier = load_classifier(bundle, options, k=5)
        with open_sink(work / "rows.jsonl", 5) as sink:
            classify(file_items(paths), classifier, sink, lambda _rows: None, Timeline() if noted else None)
        return len(paths) / (time.perf_counter() - started)

    return run


def evaluate_contender(bundles: Sequence[Bundle], data: Path) -> Callable[[], float]:
    """Return a function that evaluates engines and gives images a second, whatever the number of engines."""

    def run() -> float:
        started = time.perf_counter()
        found = evaluate_bundles([bundle.path for bundle in bundles], data, None, None, lambda _done, _of: None)
        return found.engines[0].images / (time.perf_counter() - started)

    return run


def profile_contender(bundle: Bundle) -> Callable[[], float]:
    """Return a function that gives the throughput of ``trt-vit profile``."""

    def run() -> float:
        found = profile_bundle(bundle.path, None, Sweep([BATCH], [], SECONDS), lambda _done, _of: None)
        return found.best.throughput.mean

    return run


def benchmark_app_contender(bundle: Bundle) -> Callable[[], float]:
    """Return a function that gives the throughput of the engine as OpenVINO's benchmark_app has it."""
    command = [str(Path(sys.executable).with_name("benchmark_app")), "-m", str(bundle.path / ENGINE_GRAPH)]
    command += ["-d", "CPU", "-hint", "throughput", "-infer_precision", HINTS["fp32"], "-t", str(int(SECONDS))]
    command += ["-data_shape", f"[{BATCH},3,224,224]", "-shape", f"[{BATCH},3,224,224]"]

    def run() -> float:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = re.search(r"Throughput: *([0-9.]+) FPS", said)
        assert found is not None, said
        return float(found[1])

    return run


def run_rounds(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every contender once a round."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, run in contenders.items():
            rates[name].append(run())
        print(f"round {number + 1}: " + ", ".join(f"{name} {rate[-1]:.1f}" for name, rate in rates.items()), flush=True)
    return rates


def print_ratios(rates: dict[str, list[float]]) -> dict[str, list[float]]:
    """Print and return the ratios within a round."""
    pairs = [
        ("classify with a timeline", "classify"),
        ("evaluate", "classify"),
        ("evaluate of three", "evaluate"),
        ("profile", "benchmark_app"),
    ]
    print(f"\n{'':<42}{'ratio':>7}{'lowest':>9}{'highest':>9}")
    ratios = {}
    for ours, peer in pairs:
        values = [a / b for a, b in zip(rates[ours], rates[peer], strict=True)]
        ratios[f"{ours} / {peer}"] = values
        print(f"{ours + ' / ' + peer:<42}{statistics.median(values):>7.3f}{min(values):>9.3f}{max(values):>9.3f}")
    return ratios


if __name__ == "__main__":
    main()
