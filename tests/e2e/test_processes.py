"""The command as a process of its own: interrupted, terminated, and over many images."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    from trt_vit.engine.bundle import Bundle


def start(bundle: Bundle, inputs: Path, output: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trt_vit", "classify", str(bundle.path), str(inputs), "-o", str(output)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list that names one image so often, by different names, that no test sees the end of it."""
    directory = tmp_path_factory.mktemp("endless")
    pixels = np.random.default_rng(0).integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(directory / "image.png")
    target = directory / "image.png"
    links = directory / "links"
    links.mkdir()
    for number in range(30_000):
        (links / f"{number}.png").symlink_to(target)
    return links


def test_a_terminal_gets_a_progress_bar(openvino_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "trt_vit", "classify", str(openvino_bundle.path), str(images)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([*command, "-o", str(tmp_path / "o.csv")], stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # a pseudo-terminal ends with an error when its last user has gone
        while piece := os.read(leader, 4096):
            shown += piece
    os.close(leader)
    assert process.wait(60) == 0
    text = shown.decode()
    assert "11/11" in text
    assert "images/s" in text
    assert "0 failed" in text


def test_without_standard_error_a_run_is_silent(openvino_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    """Also where it is closed: what a person would be told does not end among the results."""
    command = [sys.executable, "-m", "trt_vit", "classify", str(openvino_bundle.path), str(images), "--json"]
    command += ["--decode-workers", "1", "-o", str(tmp_path / "o.csv")]
    for resumed in (0, 11):
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" 2>&-', "sh", *command], stdout=subprocess.PIPE, text=True, check=True, timeout=120
        )
        document = json.loads(done.stdout)
        assert (document["images"], document["failed"], document["resumed"]) == (11, 0, resumed)


def wait_for_the_run(output: Path) -> None:
    """Wait until the run has classified some images."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        journal = output.with_name(f".{output.name}.journal")
        partial = [path for path in journal.glob("*.jsonl*") if path.stat().st_size > 0]
        if partial:
            return
        time.sleep(0.02)
    pytest.fail("the run did not start")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_run_cleanly(
    openvino_bundle: Bundle, endless: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    output = tmp_path / "o.jsonl"
    process = start(openvino_bundle, endless, output)
    wait_for_the_run(output)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: ")
    # No output, and of the journal only what is whole.
    assert [path.name for path in tmp_path.iterdir()] == [".o.jsonl.journal"]
    assert [path for path in (tmp_path / ".o.jsonl.journal").iterdir() if path.suffix == ".partial"] == []


def test_memory_does_not_grow_with_the_number_of_images(openvino_bundle: Bundle, endless: Path, tmp_path: Path) -> None:
    """A short form of what benchmarks/cpu_pipeline.py measures."""
    code = (
        "import sys; from trt_vit.cli import run; assert run(sys.argv[1:]) == 0; "
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    peaks = []
    for count in (500, 5000):
        paths = sorted(map(str, endless.iterdir()))[:count]
        (tmp_path / f"{count}.txt").write_text("\n".join(paths), encoding="utf-8")
        command = [sys.executable, "-c", code, "classify", str(openvino_bundle.path), str(tmp_path / f"{count}.txt")]
        command += ["-o", str(tmp_path / f"{count}.csv")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.1 * peaks[0]
