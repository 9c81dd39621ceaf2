"""Runs as processes that are killed, stopped, starved and fed with no images: every input has one row in the end.

The engine is a stand-in that is as slow as a test wants it to be and fails on demand: see tests/soak/stand_in.py.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.soak.stand_in import VARIABLE, Faults

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trt_vit.engine.bundle import Bundle

IMAGES = 150
SHARD = 7
NEVER = 60.0
"""Seconds after which a process hangs: none is to take nearly as long."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, some of them broken, enough for a run to be stopped in the middle."""
    root = tmp_path_factory.mktemp("many")
    generator = np.random.default_rng(1)
    for number in range(IMAGES):
        pixels = generator.integers(0, 256, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number:03}.png")
    for number in (3, 76, 77, IMAGES - 1):
        (root / f"{number:03}.png").write_bytes(b"")
    return root


def start(
    bundle: Bundle, inputs: Path, output: Path, *flags: str, faults: Faults | None = None, shard: int = SHARD
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.soak.stand_in", "classify", str(bundle.path), str(inputs)]
    environment = {**os.environ, "TRT_VIT_SHARD_SIZE": str(shard), "TRT_VIT_BATCH_SIZE": "4"}
    environment[VARIABLE] = json.dumps(asdict(faults or Faults()))
    return subprocess.Popen(
        [*command, "-o", str(output), "--json", *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    """Wait for a process, and return its exit code, its document and what it said."""
    try:
        out, errors = process.communicate(timeout=NEVER)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail("the process hangs")
    assert "Traceback" not in errors, errors
    return process.returncode, json.loads(out or "{}"), errors


def run(bundle: Bundle, inputs: Path, output: Path, *flags: str, **others: Any) -> tuple[int, dict[str, Any], str]:
    return end(start(bundle, inputs, output, *flags, **others))


def committed(output: Path) -> int:
    """Return how many shards are committed."""
    return sum(
        file.read_bytes().count(b"\n") for file in output.with_name(f".{output.name}.journal").glob("commits-*.jsonl")
    )


def wait_for_commits(process: subprocess.Popen[str], output: Path, count: int) -> None:
    deadline = time.monotonic() + NEVER
    while committed(output) < count:
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the run did not get there: {process.communicate()}")
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted(openvino_bundle: Bundle, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of runs that nothing happened to, in each format."""
    root = tmp_path_factory.mktemp("uninterrupted")
    for suffix in ("jsonl", "csv", "parquet"):
        code, document, _ = run(openvino_bundle, many, root / f"o.{suffix}")
        assert (code, document["images"], document["failed"]) == (0, IMAGES, 4)
    return root


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(0, 0.6), min_size=1, max_size=3), st.sampled_from(["jsonl", "csv", "parquet"]))
def test_however_often_it_is_killed_every_input_has_its_row(
    openvino_bundle: Bundle, many: Path, uninterrupted: Path, moments: list[float], suffix: str
) -> None:
    """Kills a run at some moments after it has begun to work, then lets it end."""
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / f"o.{suffix}"
        plan = output.with_name(f".{output.name}.journal") / "plan.json"
        for moment in moments:
            process = start(openvino_bundle, many, output, faults=Faults(seconds=0.02))
            while not plan.exists() and process.poll() is None:
                time.sleep(0.005)
            time.sleep(moment)
            process.kill()
            process.communicate()
        code, document, _ = run(openvino_bundle, many, output)
        assert (code, document["images"], document["failed"], document["complete"]) == (0, IMAGES, 4, True)
        assert output.read_bytes() == (uninterrupted / output.name).read_bytes()
        assert sorted(file.name for file in Path(name).iterdir()) == [f".{output.name}.journal", output.name]
        assert list(plan.parent.glob("*.partial")) == []


def test_an_interrupt_drains_the_run_and_it_goes_on_from_there(
    openvino_bundle: Bundle, many: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "o.jsonl"
    process = start(openvino_bundle, many, output, faults=Faults(seconds=0.05))
    wait_for_commits(process, output, 2)
    process.send_signal(signal.SIGINT)
    code, _, errors = end(process)
    assert code == 130
    assert errors.splitlines()[-1] == "error: interrupted (run the command again to go on)"
    done = committed(output)
    assert done >= 2
    code, document, errors = run(openvino_bundle, many, output)
    assert (code, document["resumed"], document["images"]) == (0, min(done * SHARD, IMAGES), IMAGES)
    assert f"resuming: {done * SHARD} images are done already" in errors
    assert output.read_bytes() == (uninterrupted / "o.jsonl").read_bytes()


@pytest.mark.parametrize("hang", ["engine", "decode", "load"])
def test_a_second_interrupt_ends_what_hangs(openvino_bundle: Bundle, many: Path, tmp_path: Path, hang: str) -> None:
    process = start_hanging(openvino_bundle, many, tmp_path / "o.jsonl", hang)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)  # the first waits for what is under way
    process.send_signal(signal.SIGINT)
    assert end(process)[0] == 130


def test_an_interrupted_run_ends_though_a_thread_does_not(openvino_bundle: Bundle, many: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    process = start(openvino_bundle, many, output, faults=Faults(seconds=0.05, hang="exit", leave_within=0.5))
    wait_for_commits(process, output, 1)
    process.send_signal(signal.SIGINT)
    code, _, errors = end(process)
    assert code == 130
    assert errors.splitlines()[-1] == "error: interrupted (run the command again to go on)"


@pytest.mark.parametrize("hang", ["engine", "decode", "load"])
def test_sigterm_ends_what_hangs(openvino_bundle: Bundle, many: Path, tmp_path: Path, hang: str) -> None:
    process = start_hanging(openvino_bundle, many, tmp_path / "o.jsonl", hang)
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 143


def start_hanging(bundle: Bundle, inputs: Path, output: Path, hang: str) -> subprocess.Popen[str]:
    """Start a run of which something hangs, and wait until it does, or nearly."""
    process = start(bundle, inputs, output, faults=Faults(hang=hang, leave_within=0.5))
    plan = output.with_name(f".{output.name}.journal") / "plan.json"
    while not plan.exists() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(0.5)
    return process


def test_sigterm_leaves_a_run_that_goes_on(
    openvino_bundle: Bundle, many: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "o.csv"
    process = start(openvino_bundle, many, output, faults=Faults(seconds=0.05))
    wait_for_commits(process, output, 1)
    process.send_signal(signal.SIGTERM)
    code, _, errors = end(process)
    assert code == 143
    assert errors.splitlines()[-1] == "error: terminated (run the command again to go on)"
    code, document, _ = run(openvino_bundle, many, output)
    assert (code, document["resumed"] > 0) == (0, True)
    assert output.read_bytes() == (uninterrupted / "o.csv").read_bytes()


@pytest.mark.parametrize(("room", "shards_fit"), [(2500, False), (20_000, True)])
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(
    openvino_bundle: Bundle, many: Path, uninterrupted: Path, tmp_path: Path, room: int, *, shards_fit: bool
) -> None:
    """With room for the files of shards or not even that: a limit on the size of a file stands in for the disk's."""
    output = tmp_path / "o.jsonl"
    assert (uninterrupted / "o.jsonl").stat().st_size > 20_000
    code, _, errors = run(openvino_bundle, many, output, faults=Faults(file_bytes=room), shard=SHARD)
    assert code == 1
    named = "o.jsonl" if shards_fit else ".jsonl"
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert named in line
    assert "File too large (choose a place with room that you can write to with -o)" in line
    assert not output.exists()
    assert list(tmp_path.rglob("*.partial")) == []
    code, document, _ = run(openvino_bundle, many, output)
    assert (code, document["images"]) == (0, IMAGES)
    assert (document["resumed"] == IMAGES) == shards_fit
    assert output.read_bytes() == (uninterrupted / "o.jsonl").read_bytes()


def test_a_place_that_cannot_be_written_is_named_before_anything_is_done(
    openvino_bundle: Bundle, many: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    code, _, errors = run(openvino_bundle, many, tmp_path / "file" / "o.jsonl", faults=Faults(hang="load"))
    assert code == 1
    assert errors.startswith("error: cannot write ")
    assert "Not a directory" in errors


def test_an_engine_that_fails_ends_the_run_and_it_goes_on_later(
    openvino_bundle: Bundle, many: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "o.parquet"
    code, _, errors = run(openvino_bundle, many, output, faults=Faults(seconds=0.01, fail_at=15))
    assert (code, errors.splitlines()[-1]) == (4, "error: the device is gone (restart it)")
    assert list(tmp_path.rglob("*.partial")) == []
    code, document, _ = run(openvino_bundle, many, output)
    assert (code, document["images"]) == (0, IMAGES)
    assert 0 < document["resumed"] <= 15 * 4
    assert output.read_bytes() == (uninterrupted / "o.parquet").read_bytes()


def test_parts_as_processes_make_one_output(
    openvino_bundle: Bundle, many: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "o.jsonl"
    processes = [
        start(openvino_bundle, many, output, "--shard", f"{number}/3", faults=Faults(seconds=0.01))
        for number in (1, 2, 3)
    ]
    wait_for_commits(processes[1], output, 1)
    code, _, errors = run(openvino_bundle, many, output)
    if code:  # unless they were done by then
        assert code == 1
        assert "another run is at work on it (wait for it, or choose another file with -o)" in errors
    documents = [end(process) for process in processes]
    assert [code for code, *_ in documents] == [0, 0, 0]
    assert any(document["complete"] for _, document, _ in documents)
    assert output.read_bytes() == (uninterrupted / "o.jsonl").read_bytes()


def test_inputs_that_vanish_or_change_after_planning_are_rows(
    openvino_bundle: Bundle, many: Path, tmp_path: Path
) -> None:
    inputs, output = shutil.copytree(many, tmp_path / "inputs"), tmp_path / "o.jsonl"
    process = start(openvino_bundle, inputs, output, faults=Faults(seconds=0.05))
    wait_for_commits(process, output, 1)
    (inputs / "140.png").unlink()
    (inputs / "141.png").write_bytes(b"no image any more")
    (inputs / "142.png").unlink()
    os.mkfifo(inputs / "142.png")
    (inputs / "143.png").unlink()
    (inputs / "143.png").mkdir()
    code, document, _ = end(process)
    assert (code, document["images"], document["failed"]) == (0, IMAGES, 8)
    errors = {Path(row["path"]).name: row["error"] for row in rows_of(output)}
    assert errors["139.png"] is None
    assert errors["140.png"] == "cannot read the file: No such file or directory"
    assert errors["141.png"].startswith("not an image")
    assert (errors["142.png"], errors["143.png"]) == ("not a regular file", "not a regular file")


def test_what_is_no_file_is_a_row(openvino_bundle: Bundle, many: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    (inputs / "deep").mkdir(parents=True)
    shutil.copy(many / "000.png", inputs / "deep" / "good.png")
    os.mkfifo(inputs / "fifo.png")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.path.relpath(inputs / "socket.png"))  # short: a socket's path has a limit
    (inputs / "zero.png").symlink_to("/dev/zero")
    (inputs / "tty.png").symlink_to("/dev/tty")
    (inputs / "self.png").symlink_to("self.png")
    (inputs / "nowhere.png").symlink_to("gone.png")
    (inputs / "deep" / "up").symlink_to(inputs)
    (inputs / "deep" / "here").symlink_to(".")
    (inputs / "huge.png").touch()
    os.truncate(inputs / "huge.png", 2**40)
    output = tmp_path / "o.jsonl"
    code, document, _ = run(openvino_bundle, inputs, output)
    listening.close()
    errors = {str(Path(row["path"]).relative_to(inputs)): row["error"] for row in rows_of(output)}
    assert (code, document["images"], document["failed"]) == (0, 8, 7)
    assert errors.pop("tty.png")  # what it says depends on whether there is a terminal
    assert errors == {
        "deep/good.png": None,
        "fifo.png": "not a regular file",
        "huge.png": f"file has {2**40} bytes, more than the limit of {2**30}",
        "nowhere.png": "cannot read the file: No such file or directory",
        "self.png": "cannot read the file: Too many levels of symbolic links",
        "socket.png": "cannot read the file: No such device or address",
        "zero.png": "not a regular file",
    }


ODD = ["a\nb.png", "q\"uo'te.png", "-o.png", "--help.png", "=1+1.png", "@x,y;z.png", "\t.png", "é\u2028\x85.png"]
ODD_BYTES = [b"\xff\xfe.png", b"\\xff.png", b"caf\xe9.png", b"\r.png"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_odd_names_survive(openvino_bundle: Bundle, many: Path, tmp_path: Path, suffix: str) -> None:
    inputs = os.fsencode(tmp_path / "inputs")
    os.mkdir(inputs)  # noqa: PTH102 - names that are no text
    for name in [*map(os.fsencode, ODD), *ODD_BYTES]:
        shutil.copy(os.fsencode(many / "000.png"), os.path.join(inputs, name))  # noqa: PTH118
    output = tmp_path / f"o.{suffix}"
    code, document, _ = run(openvino_bundle, tmp_path / "inputs", output, shard=3)
    assert (code, document["images"], document["failed"]) == (0, len(ODD) + len(ODD_BYTES), 0)
    found = [row["path"].removeprefix(f"{tmp_path}/inputs/") for row in rows_of(output)]
    readable = [name.decode("utf-8", "backslashreplace") for name in ODD_BYTES]
    assert sorted(found) == sorted([*ODD, *readable])


def rows_of(output: Path) -> Sequence[dict[str, Any]]:
    if output.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(output).to_pylist()
        return rows
    if output.suffix == ".csv":
        with output.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    lines = output.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]
