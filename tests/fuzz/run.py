"""Search for bytes that a reader of strangers' files does not stand: ``python -m tests.fuzz.run --seconds 120``.

Each target is run by atheris, guided by what it reaches, in a process of its own: what ends that process, or takes it
more memory or time than a file may, is a finding too. What a target was found to fail on is left in build/fuzz/.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import subprocess
import sys
import traceback
from pathlib import Path

FOUND = Path("build", "fuzz")
_LIMITS = (
    "-timeout=20",
    "-report_slow_units=20",
    "-rss_limit_mb=4096",
    "-max_len=4096",
    "-print_final_stats=1",
    "-verbosity=0",
    "-close_fd_mask=1",
)
_CHILD = "--in-this-process"
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_TRACE_LINES = 40


def main() -> int:
    """Run the targets that are named, or all, and return 1 where one has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    arguments = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        _say("skipped: atheris is not installed (pip install atheris)")
        return 0
    from tests.fuzz.targets import TARGETS

    unknown = [name for name in arguments.targets if name not in TARGETS]
    if unknown:
        parser.error(f"no target is called {unknown[0]}; known are {', '.join(TARGETS)}")
    failed = [name for name in arguments.targets or TARGETS if not search(name, arguments.seconds)]
    return 1 if failed else 0


def search(name: str, seconds: int) -> bool:
    """Run one target for a time, say what came of it, and return whether it stood everything."""
    from tests.fuzz.seeds import SEEDS

    corpus = FOUND / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    before = set(FOUND.glob(f"{name}-*"))
    command = [sys.executable, "-m", "tests.fuzz.run", _CHILD, name, str(corpus), *_LIMITS]
    command += [f"-max_total_time={seconds}", f"-artifact_prefix={FOUND}/{name}-"]
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    executed = _EXECUTED.search(done.stdout)
    findings = sorted(set(FOUND.glob(f"{name}-*")) - before)
    count = executed[1] if executed else "an unknown number of"
    _say(f"{name}: {count} executions in {seconds} s, {len(findings)} findings")
    if done.returncode == 0 and not findings:
        return True
    for finding in findings:
        _say(f"  {finding}")
    for line in done.stdout.splitlines()[-_TRACE_LINES:]:
        _say(f"  {line}")
    return False


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def fuzz(name: str, arguments: list[str]) -> None:
    """Run one target in this process, until its time is over or it fails; does not return."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["trt_vit", "csv", "json", "tests.fuzz"]):
        target = importlib.import_module("tests.fuzz.targets").TARGETS[name]

    def told(data: bytes) -> None:
        try:
            target(data)
        except BaseException:
            traceback.print_exc()  # atheris prints its own to standard output, which is closed
            raise

    atheris.Setup([sys.argv[0], *arguments], told)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == [_CHILD]:
        fuzz(sys.argv[2], sys.argv[3:])
    sys.exit(main())
