"""Readers of strangers' files on what has been found before, and on what hypothesis makes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS, only_own_errors
from trt_vit.errors import InputError

ROOT = Path(__file__).parents[2]


def test_every_target_has_seeds() -> None:
    assert list(SEEDS) == list(TARGETS)


@pytest.mark.parametrize(("name", "number"), [(name, n) for name, seeds in SEEDS.items() for n in range(len(seeds))])
def test_seeds(name: str, number: int) -> None:
    TARGETS[name](SEEDS[name][number])


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with a piece cut out, others put in, or both."""
    data = draw(st.sampled_from([seed for seed in seeds if len(seed) < 10_000]))
    for _ in range(draw(st.integers(1, 3))):
        at, cut = draw(st.integers(0, len(data))), draw(st.sampled_from([0, 0, 1, 2, 10]))
        new = draw(st.binary(max_size=12) | st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")))
        data = data[:at] + new + data[at + cut :]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str) -> None:
    @settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(mutated(SEEDS[name]))
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()


@pytest.mark.parametrize("message", ["a\nb", "a\x1b[31m", "x" * 4000])
def test_an_error_that_a_person_cannot_be_shown_is_a_finding(message: str) -> None:
    @only_own_errors
    def target(_: bytes) -> None:
        raise InputError(message, hint="none")

    with pytest.raises(AssertionError, match="an error"):
        target(b"")


def test_any_other_error_is_a_finding() -> None:
    @only_own_errors
    def target(_: bytes) -> None:
        raise RecursionError

    with pytest.raises(RecursionError):
        target(b"")


def test_the_search_says_what_it_needs() -> None:
    code = "import sys, importlib.util; importlib.util.find_spec = lambda _: None; sys.argv = ['run']; "
    code += "from tests.fuzz.run import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "skipped: atheris is not installed (pip install atheris)\n")
