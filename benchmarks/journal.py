"""What the journal costs: while a run is at work, before a million images, and when there is nothing left to do.

    python benchmarks/journal.py [--rounds 5] [--images 1000000] [--output FILE.json]

With the bundled checkpoint, whose engine is fast, so that whatever is done around it shows. Two ways to write rows,
from the first look at the images to the output on disk:

    journal      planned, committed shard by shard, and assembled, as trt-vit classify does it
    plain        the same images to one open file

Every round runs each of them once, with a loaded engine, in turns as to which comes first; what is reported is the
median of the ratio within a round. What the journal costs is less than two such runs differ by on most machines. So
each is also run without the engine, on the rows that it gave: what the journal takes longer for them, against the time
of a plain run with the engine, is what it costs, of CPU time and of clock time if none of it overlaps the engine.

Then, each in a process of its own, over empty files in memory: planning a run of that many images, and the command over
that many when its output is there already.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import CHECKPOINT, bundle_of

from trt_vit.images.source import list_images
from trt_vit.parts import Part
from trt_vit.pipeline.assemble import assemble
from trt_vit.pipeline.classify import load_classifier
from trt_vit.pipeline.feed import Feed, open_shard_sink
from trt_vit.pipeline.journal import open_journal
from trt_vit.pipeline.plan import Plan
from trt_vit.pipeline.run import batched, classify
from trt_vit.pipeline.sinks import open_sink
from trt_vit.profile.machine import environment
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.sources.item import file_items
from trt_vit.sources.open import open_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from trt_vit.engine.bundle import Bundle
    from trt_vit.pipeline.rows import Row
    from trt_vit.pipeline.sinks import Sink
    from trt_vit.sources.item import Item

    Write = Callable[[Iterable[Item], Sink], None]
    Contender = Callable[[Write], None]

REPEATED = 50
FOLDER = 1000
K = 5
SHARD_SIZE = 1024
REPLAYS = 15
"""Rounds without the engine, each of which takes a fraction of a second."""
TARGET = 0.02
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


@dataclass(frozen=True)
class Taken:
    """What a run took.

    Attributes:
        clock: Seconds.
        cpu: CPU seconds, of all threads.
    """

    clock: float
    cpu: float


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
        inputs = repeat(list_images([str(CHECKPOINT / "samples")]), work / "samples")
        found = measure_runs(Runs(bundle, inputs, work), arguments.rounds)
        found |= measure_million(bundle, arguments.images)
    if arguments.output is not None:
        results = {"environment": environment(), **found}
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


class Runs:
    """The two ways to write rows, with the engine or without it.

    Args:
        bundle: The engine.
        inputs: A directory of images.
        work: Where outputs go.
    """

    def __init__(self, bundle: Bundle, inputs: Path, work: Path) -> None:
        self.images = len(list_images([str(inputs)]))
        self._bundle = bundle
        self._inputs = str(inputs)
        self._work = work
        options = RuntimeOptions(batch_size=bundle.manifest.batch.opt)
        self._classifier = load_classifier(bundle, options, k=K)
        self._rows: list[Row] = []

    def journal(self, write: Write) -> None:
        """Write the rows with a journal."""
        shards = open_shards([self._inputs], SHARD_SIZE)
        plan = Plan.of(shards, self._bundle, {"top_k": K})
        with open_journal(self._work / "journal" / "rows.jsonl", plan, Part(), print, resume=False) as journal:
            feed = Feed(shards, journal.pending)
            with open_shard_sink(journal, feed, K) as sink:
                write(feed.items(), sink)
            if journal.finish(assemble) is None:
                raise AssertionError("it is not complete")

    def plain(self, write: Write) -> None:
        """Write them to one open file."""
        with open_sink(self._work / "rows.jsonl", K) as sink:
            write(file_items(list_images([self._inputs])), sink)

    def infer(self, items: Iterable[Item], sink: Sink) -> None:
        """Make rows with the engine, and keep them for ``replay``."""
        self._rows.clear()
        classify(items, self._classifier, sink, self._rows.extend)

    def replay(self, items: Iterable[Item], sink: Sink) -> None:
        """Write the rows that the engine made, a batch at a time."""
        rows = iter(self._rows)
        for batch in batched(items, self._classifier.batch_size):
            sink.write([next(rows) for _ in batch])


def measure_runs(runs: Runs, rounds: int) -> dict[str, Any]:
    """Print and return what the journal costs while a run is at work."""
    contenders = {"journal": runs.journal, "plain": runs.plain}
    with_engine = in_turns(contenders, runs.infer, rounds)
    without = in_turns(contenders, runs.replay, REPLAYS)
    ratios = {
        what: [getattr(a, what) / getattr(b, what) for a, b in zip(*with_engine.values(), strict=True)]
        for what in ("clock", "cpu")
    }
    costs = {
        what: statistics.median(getattr(a, what) - getattr(b, what) for a, b in zip(*without.values(), strict=True))
        / statistics.median(getattr(run, what) for run in with_engine["plain"])
        for what in ("clock", "cpu")
    }
    rate = runs.images / statistics.median(run.clock for run in with_engine["plain"])
    print(f"{runs.images} images, plain {rate:.0f} images/s; target: the journal costs less than {TARGET:.0%}")
    for what in ("clock", "cpu"):
        spread = f"{min(ratios[what]):.3f} to {max(ratios[what]):.3f}"
        print(f"{what}: journal / plain {statistics.median(ratios[what]):.3f} ({spread}); cost {costs[what]:.2%}")
    seconds = {name: [asdict(run) for run in found] for name, found in with_engine.items()}
    alone = {name: [asdict(run) for run in found] for name, found in without.items()}
    return {"images": runs.images, "seconds": seconds, "seconds_without_engine": alone, "ratios": ratios, "cost": costs}


def in_turns(contenders: Mapping[str, Contender], write: Write, rounds: int) -> dict[str, list[Taken]]:
    """Run each contender once a round, every second time in the other order; once more before that is not counted."""
    found: dict[str, list[Taken]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        order = list(contenders)[:: 1 if number % 2 else -1]
        for name in order:
            clock, cpu = time.perf_counter(), time.process_time()
            contenders[name](write)
            taken = Taken(time.perf_counter() - clock, time.process_time() - cpu)
            if number:
                found[name].append(taken)
    return found


def repeat(files: Sequence[str], directory: Path) -> Path:
    """Lay images out over and over."""
    directory.mkdir()
    for turn in range(REPEATED):
        for number, file in enumerate(files):
            (directory / f"{turn:03}-{number:03}{Path(file).suffix}").symlink_to(Path(file).resolve())
    return directory


def measure_million(bundle: Bundle, images: int) -> dict[str, Any]:
    """Print and return what planning many images takes, and what the command takes when they are all done."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        inputs, output = Path(name) / "images", Path(name) / "rows.jsonl"
        make_files(inputs, images)
        planning = measure(PLAN, bundle, inputs, Path(name) / "planned.jsonl")
        measure(COMMAND, bundle, inputs, output)  # an empty file is a row that says so
        finished = measure(COMMAND, bundle, inputs, output)
    found = {"planning": planning, "finished": finished}
    for what, figures in found.items():
        print(f"{what} of {images} images: {figures['seconds']:.1f} s, {figures['peak_bytes'] / 1e6:.0f} MB")
    return {"planned_images": images, **found}


def make_files(directory: Path, count: int) -> None:
    """Make empty files, a thousand a folder."""
    for first in range(0, count, FOLDER):
        folder = directory / f"{first // FOLDER:05}"
        folder.mkdir(parents=True)
        for number in range(first, min(first + FOLDER, count)):
            os.close(os.open(folder / f"image-{number:08}.jpg", os.O_CREAT | os.O_WRONLY))


def measure(code: str, bundle: Bundle, inputs: Path, output: Path) -> dict[str, float]:
    """Run code in a process of its own, and return the seconds it took and its peak memory."""
    command = [sys.executable, "-c", code + REPORT, str(bundle.path), str(inputs), str(output)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, kilobytes = done.stdout.split()
    return {"seconds": float(seconds), "peak_bytes": 1024 * float(kilobytes)}


if __name__ == "__main__":
    main()
