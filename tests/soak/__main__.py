"""Runs that are killed at random, over and over, for as long as is asked for: no row may be lost, doubled or another.

    python -m tests.soak --minutes 10 [--seed S]

Case after case, until the time is over: random inputs, a third of them broken; one run of them that nothing happens to;
and one that is ended again and again by SIGKILL, SIGINT or SIGTERM, divided into another number of parts each time,
with other batch sizes, lanes and threads, until it is let end. Both outputs are to have the same rows. Half of the
cases run a small engine on OpenVINO, the others the stand-in of tests/soak/stand_in.py, which can be slow.
"""

# ruff: noqa: S311, T201 - chance is for variety here, and a table is what it is for

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from tests.soak.inputs import write_inputs
from tests.soak.stand_in import VARIABLE, Faults
from tests.support.checkpoints import random_checkpoint
from trt_vit.engine.build import build
from trt_vit.engine.manifest import BatchProfile
from trt_vit.engine.progress import Quiet
from trt_vit.settings import BuildSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    Rows = Sequence[dict[str, Any]]

MOST_KILLS = 5
"""Times that a run is ended at most, before it is let end."""

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
ENDED = {0, 130, 143, -signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM}
"""Exit codes of a process that was, or was not, ended by one of these; Python's own before and after the command."""

ENVIRONMENT = 4
"""Exit code where a library has made an error of an interrupt, as OpenVINO does while it is imported."""

IGNORED = b"Exception ignored in"
"""What Python says of a signal that came where it cannot raise: in a finalizer, or after the command's end."""

HANGS = 120.0
"""Seconds after which a process hangs."""

WRONG = ("runs that failed", "rows lost", "rows doubled", "rows that differ", "files left over")


@dataclass(frozen=True)
class Case:
    """Inputs, and how they are run.

    Attributes:
        bundle: The engine.
        inputs: Directory of the images.
        suffix: The output's.
        shard_size: Images a shard.
        slow: Seconds that the stand-in takes for a batch, or None for the engine itself.
    """

    bundle: Path
    inputs: Path
    suffix: str
    shard_size: int
    slow: float | None

    def start(self, output: Path, part: str | None, chance: random.Random) -> subprocess.Popen[bytes]:
        """Start a process that does a part of the run, or all of it."""
        module = "trt_vit" if self.slow is None else "tests.soak.stand_in"
        command = [sys.executable, "-m", module, "classify", str(self.bundle), str(self.inputs), "-o", str(output)]
        command += ["--batch-size", str(chance.randint(1, 8)), "--lanes", str(chance.randint(1, 3))]
        if part is not None:
            command += ["--shard", part]
        environment = {**os.environ, "TRT_VIT_SHARD_SIZE": str(self.shard_size)}
        environment["TRT_VIT_DECODE_THREADS"] = str(chance.randint(1, 3))
        if self.slow is not None:
            environment[VARIABLE] = json.dumps(asdict(Faults(seconds=self.slow)))
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def main() -> int:
    """Run cases until the time is over, print the table, and return whether anything was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None, help="a random one where it is not given")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by a job in the background, and its children
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    counts = Counter(dict.fromkeys(WRONG, 0))
    with tempfile.TemporaryDirectory() as name:
        bundle = build_bundle(Path(name))
        until = time.monotonic() + 60 * arguments.minutes
        while time.monotonic() < until:
            number = counts["cases"]
            run_case(Path(name) / f"case{number}", bundle, random.Random(f"{seed} {number}"), counts)
            counts["cases"] += 1
    print_table(counts)
    return int(any(counts[name] for name in WRONG))


def build_bundle(work: Path) -> Path:
    """Build an engine for OpenVINO that is quick to load and to run."""
    source = random_checkpoint("vit", work / "checkpoint")
    settings = BuildSettings(
        source=str(source), output=work / "bundle", runtime="openvino", batch=BatchProfile(min=1, opt=4, max=8)
    )
    return build(settings, Quiet()).path


def run_case(work: Path, bundle: Path, chance: random.Random, counts: Counter[str]) -> None:
    """Run one case, and count what came of it; its directory stays only where something was wrong."""
    inputs = work / "inputs"
    write_inputs(inputs, chance.randint(1, 400), chance)
    slow = None if chance.random() < 0.5 else chance.choice([0.0, 0.01, 0.03])
    case = Case(bundle, inputs, chance.choice(["jsonl", "csv", "parquet"]), chance.choice([1, 3, 16, 50, 1000]), slow)
    outputs = [work / name / f"o.{case.suffix}" for name in ("uninterrupted", "killed")]
    for output in outputs:
        output.parent.mkdir()
    wrong = sum(counts[name] for name in WRONG)
    wait([case.start(outputs[0], None, chance)], counts)
    for _ in range(chance.randint(1, MOST_KILLS)):
        kill(case, outputs[1], chance, counts)
    wait(start_parts(case, outputs[1], chance, counts), counts)
    compare(outputs[0], outputs[1], counts)
    if sum(counts[name] for name in WRONG) > wrong:
        print(f"something is wrong with case {counts['cases']}: {case}", flush=True)


def start_parts(case: Case, output: Path, chance: random.Random, counts: Counter[str]) -> list[subprocess.Popen[bytes]]:
    """Start a run in one to three parts."""
    count = chance.randint(1, 3)
    parts = [None] if count == 1 else [f"{number}/{count}" for number in range(1, count + 1)]
    counts["runs in parts"] += count if count > 1 else 0
    return [case.start(output, part, chance) for part in parts]


def kill(case: Case, output: Path, chance: random.Random, counts: Counter[str]) -> None:
    """Start a run, and end each of its processes some time later, most of them after they have begun to work."""
    processes = start_parts(case, output, chance, counts)
    plan = output.with_name(f".{output.name}.journal") / "plan.json"
    begun = time.monotonic()
    while chance.random() < 0.95 and not plan.exists() and time.monotonic() < begun + 10:
        time.sleep(0.01)
    for process in processes:
        time.sleep(chance.expovariate(2))
        number = chance.choice(SIGNALS)
        if process.poll() is None if number == signal.SIGKILL else handles_signals(process):
            process.send_signal(number)
            counts[f"kills by {number.name}"] += 1
    wait(processes, counts, killed=True)


def handles_signals(process: subprocess.Popen[bytes]) -> bool:
    """Wait until a process is past Python's own start, on which a signal may have any effect, or has ended."""
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("SigCgt:") and int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
                return True
        time.sleep(0.01)
    return False


def wait(processes: Sequence[subprocess.Popen[bytes]], counts: Counter[str], *, killed: bool = False) -> None:
    """Wait for processes, and count those that ended otherwise than they may."""
    for process in processes:
        counts["runs"] += 1
        try:
            _, errors = process.communicate(timeout=HANGS)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
            errors += b"it hangs"
        if killed and process.returncode == ENVIRONMENT:
            counts["kills made errors"] += 1
        elif (
            process.returncode not in (ENDED if killed else {0})
            or b"it hangs" in errors
            or (process.returncode >= 0 and b"Traceback" in errors and IGNORED not in errors)
        ):
            counts["runs that failed"] += 1
            print(f"exit code {process.returncode}: {errors.decode(errors='replace')[-2000:]}", flush=True)


def compare(uninterrupted: Path, killed: Path, counts: Counter[str]) -> None:
    """Count the rows of one output that the other does not have."""
    if not uninterrupted.exists() or not killed.exists():
        counts["rows lost"] += 1
        return
    expected, found = rows_of(uninterrupted), rows_of(killed)
    counts["images"] += len(expected)
    counts["bad files"] += sum(row["status"] == "error" for row in expected)
    names, others = (Counter(row["path"] for row in rows) for rows in (expected, found))
    counts["rows lost"] += (names - others).total()
    counts["rows doubled"] += (others - names).total()
    if uninterrupted.read_bytes() != killed.read_bytes():
        differ = sum(one != other for one, other in zip(expected, found, strict=False))
        counts["rows that differ"] += max(differ, 1)
    left = {file.name for file in killed.parent.iterdir()} - {killed.name, f".{killed.name}.journal"}
    left |= {file.name for file in killed.with_name(f".{killed.name}.journal").iterdir() if file.suffix != ".lock"}
    counts["files left over"] += len(left - {"plan.json", "_SUCCESS"})


def rows_of(output: Path) -> Rows:
    """Read an output."""
    if output.suffix == ".parquet":
        rows: Rows = pq.read_table(output).to_pylist()
        return rows
    if output.suffix == ".csv":
        with output.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    return [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]]


def print_table(counts: Counter[str]) -> None:
    """Print what was done and what was wrong."""
    done = sorted(set(counts) - set(WRONG))
    for name in (*done, *WRONG):
        print(f"{name:<20}{counts[name]:>10}")


if __name__ == "__main__":
    sys.exit(main())
