"""What the journal costs: while a run is at work, before a million images, and when there is nothing left to do.

    python benchmarks/journal.py [--rounds 5] [--images 1000000] [--output FILE.json]

With the bundled checkpoint, whose engine is fast, so that whatever is done around it shows. Throughput is from the
first look at the images to the output on disk, of a loaded engine:

    journal      planned, committed shard by shard, and assembled, as trt-vit classify does it
    plain        the same images to one open file

Every round runs each of them once, one after the other; what is reported is the median of the ratio within a round, of
images a second and of the CPU time that an image takes, which other work on the machine changes less. Then, each in a
process of its own, over empty files in memory: planning a run of that many images, and the command over that many when
its output is there already.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import CHECKPOINT, bundle_of, run_rounds

from trt_vit.images.source import list_images
from trt_vit.parts import Part
from trt_vit.pipeline.assemble import assemble
from trt_vit.pipeline.classify import load_classifier
from trt_vit.pipeline.feed import Feed, open_shard_sink
from trt_vit.pipeline.journal import open_journal
from trt_vit.pipeline.plan import Plan
from trt_vit.pipeline.run import classify
from trt_vit.pipeline.sinks import open_sink
from trt_vit.profile.machine import environment
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.sources.item import file_items
from trt_vit.sources.open import open_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trt_vit.engine.bundle import Bundle
    from trt_vit.pipeline.classifier import Classifier

REPEATED = 50
FOLDER = 1000
K = 5
SHARD_SIZE = 1024
MEMORY = Path("/dev/shm")  # noqa: S108 - files in memory, below a directory of our own

PLAN = """
import sys, time
from pathlib import Path
from trt_vit.engine.bundle import Bundle
from trt_vit.parts import Part
from trt_vit.pipeline.journal import open_journal
from trt_vit.pipeline.plan import Plan
from trt_vit.sources.open import open_shards
started = time.perf_counter()
plan = Plan.of(open_shards(sys.argv[2:3], 1024), Bundle.open(Path(sys.argv[1])), {"top_k": 5})
with open_journal(Path(sys.argv[3]), plan, Part(), print, resume=True) as journal:
    assert len(journal.pending) == len(plan.shards)
"""
COMMAND = """
import sys, time
from trt_vit.cli import run
started = time.perf_counter()
assert run(["classify", sys.argv[1], sys.argv[2], "-o", sys.argv[3]]) == 0
"""
REPORT = """
seconds = time.perf_counter() - started
print(seconds, *(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="times each contender runs")
    parser.add_argument("--images", type=int, default=1_000_000, help="images that are planned")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        bundle = bundle_of(CHECKPOINT, work / "bundle")
        samples = repeat(list_images([str(CHECKPOINT / "samples")]), work / "samples")
        classifier = load_classifier(bundle, RuntimeOptions(batch_size=bundle.manifest.batch.opt), k=K)
        cpu: dict[str, list[float]] = {"journal": [], "plain": []}
        contenders = {
            "journal": timed(journal_contender(bundle, classifier, samples, work), cpu["journal"]),
            "plain": timed(plain_contender(classifier, samples, work), cpu["plain"]),
        }
        rates = run_rounds(contenders, arguments.rounds)
        ratios = {"images a second": print_ratio("images a second", rates), "CPU time": print_ratio("CPU time", cpu)}
        million = measure_million(bundle, arguments.images)
    results = {"environment": environment(), "per_second": rates, "cpu_seconds": cpu, "ratios": ratios, **million}
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def timed(run: Callable[[], int], cpu: list[float]) -> Callable[[], float]:
    """Return a function that gives the images a second of what gives images, and notes the CPU seconds of an image."""

    def run_timed() -> float:
        started, used = time.perf_counter(), time.process_time()
        images = run()
        cpu.append((time.process_time() - used) / images)
        return images / (time.perf_counter() - started)

    return run_timed


def print_ratio(what: str, figures: dict[str, list[float]]) -> list[float]:
    """Print and return the ratios within a round."""
    ratios = [a / b for a, b in zip(figures["journal"], figures["plain"], strict=True)]
    print(f"{what}, journal / plain: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    return ratios


def repeat(files: Sequence[str], directory: Path) -> Path:
    """Lay images out over and over."""
    directory.mkdir()
    for turn in range(REPEATED):
        for number, file in enumerate(files):
            (directory / f"{turn:03}-{number:03}{Path(file).suffix}").symlink_to(Path(file).resolve())
    return directory


def journal_contender(bundle: Bundle, classifier: Classifier, inputs: Path, work: Path) -> Callable[[], int]:
    """Return a function that classifies with a journal and gives the number of images."""
    output = work / "journal" / "rows.jsonl"

    def run() -> int:
        shards = open_shards([str(inputs)], SHARD_SIZE)
        plan = Plan.of(shards, bundle, {"top_k": K})
        with open_journal(output, plan, Part(), print, resume=False) as journal:
            feed = Feed(shards, journal.pending)
            with open_shard_sink(journal, feed, K) as sink:
                images = classify(feed.items(), classifier, sink, lambda _rows: None).images
            assert journal.finish(assemble) is not None
        return images

    return run


def plain_contender(classifier: Classifier, inputs: Path, work: Path) -> Callable[[], int]:
    """Return a function that classifies to one open file and gives the number of images."""

    def run() -> int:
        with open_sink(work / "rows.jsonl", K) as sink:
            return classify(file_items(list_images([str(inputs)])), classifier, sink, lambda _rows: None).images

    return run


def measure_million(bundle: Bundle, images: int) -> dict[str, Any]:
    """Print and return what planning many images takes, and what the command takes when they are all done."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        inputs, output = Path(name) / "images", Path(name) / "rows.jsonl"
        make_files(inputs, images)
        found = {"planning": measure(PLAN, bundle, inputs, Path(name) / "planned.jsonl")}
        pretend(bundle, inputs, output)
        found["finished"] = measure(COMMAND, bundle, inputs, output)
    for what, figures in found.items():
        print(f"{what} of {images} images: {figures['seconds']:.1f} s, {figures['peak_bytes'] / 1e6:.0f} MB")
    return {"images": images, **found}


def make_files(directory: Path, count: int) -> None:
    """Make empty files, a thousand a folder."""
    for first in range(0, count, FOLDER):
        folder = directory / f"{first // FOLDER:05}"
        folder.mkdir(parents=True)
        for number in range(first, min(first + FOLDER, count)):
            os.close(os.open(folder / f"image-{number:08}.jpg", os.O_CREAT | os.O_WRONLY))


def pretend(bundle: Bundle, inputs: Path, output: Path) -> None:
    """Write down that everything is done, with no rows."""
    shards = open_shards([str(inputs)], SHARD_SIZE)
    settings = {"top_k": K, "decode": "exact", "format": ".jsonl", "shard_size": SHARD_SIZE}
    with open_journal(output, Plan.of(shards, bundle, settings), Part(), print, resume=True) as journal:
        for number in journal.pending:
            journal.file_of(number).touch()
            journal.commit(number, shards[number].images or 0, 0)
        assert journal.finish(assemble) is not None


def measure(code: str, bundle: Bundle, inputs: Path, output: Path) -> dict[str, float]:
    """Run code in a process of its own, and return the seconds it took and its peak memory."""
    command = [sys.executable, "-c", code + REPORT, str(bundle.path), str(inputs), str(output)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, kilobytes = done.stdout.split()
    return {"seconds": float(seconds), "peak_bytes": 1024 * float(kilobytes)}


if __name__ == "__main__":
    main()
