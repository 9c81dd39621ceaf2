"""PyCUDA and cuda-bindings themselves, on an emulated driver: `make rehearsal` installs them where there is nvcc."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import cpu_kernels

ROOT = Path(__file__).parents[2]
DRIVER = ROOT / "tests" / "support" / "emulated_driver.cpp"


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an emulated libcuda.so.1, and the kernels as libraries."""
    package = find_spec("pycuda")
    if package is None or package.origin is None or find_spec("cuda") is None:
        pytest.skip("needs pycuda and cuda-bindings: make rehearsal")
    directory = tmp_path_factory.mktemp("driver")
    (extension,) = Path(package.origin).parent.glob("_driver*.so")
    needed = _symbols(extension, "--undefined-only")
    build = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unused-parameter", "-shared", "-fPIC"]
    subprocess.run([*build, DRIVER, "-o", directory / "probe.so", "-ldl"], check=True)
    missing = needed - _symbols(directory / "probe.so", "--defined-only")
    # What PyCUDA links to and the project does not use: 801 is "not supported".
    rest = "".join(f'extern "C" int {name}() {{ return 801; }}\n' for name in sorted(missing))
    (directory / "rest.cpp").write_text(rest)
    library = directory / "libcuda.so.1"
    subprocess.run(
        [*build, DRIVER, directory / "rest.cpp", "-o", library, "-Wl,-soname,libcuda.so.1", "-ldl"], check=True
    )
    for source in cpu_kernels.SOURCES:
        cpu_kernels.compile_for_cpu(source, directory / f"{source}.so")
    return directory


def _symbols(library: Path, which: str) -> set[str]:
    done = subprocess.run(["nm", "-D", which, library], check=True, capture_output=True, text=True)
    return set(re.findall(r"\b(cu[A-Z]\w*)", done.stdout))


@pytest.fixture(scope="module")
def facts(emulated: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pictures = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(45):
        height, width = (int(side) for side in generator.integers(1, 150, size=2))
        coarse = Image.fromarray(generator.integers(0, 256, size=(5, 6, 3), dtype=np.uint8))
        coarse.resize((width, height)).save(pictures / f"{number:02}.jpg")
    (pictures / "07.jpg").write_bytes(b"not an image")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.emulated_run", emulated, pictures],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"LD_LIBRARY_PATH": str(emulated)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # PyCUDA complains there of what it cannot give back
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_device(facts: dict[str, Any]) -> None:
    assert facts["name"] == "Emulated GPU"
    assert facts["compute_capability"] == "8.9"
    assert facts["zeros"]
    assert facts["aligned"]
    assert facts["captured_runs_later"]
    assert facts["copied"]
    assert 0.05 <= facts["seconds"] < 5
    assert facts["used"] == 4000
    assert facts["refused"].startswith("cannot allocate 1048576 MiB on Emulated GPU: 4095 of 4096 MiB are free")


def test_the_pipeline(facts: dict[str, Any]) -> None:
    assert facts["rows"] == {"1": [45, 1, True], "3": [45, 1, True]}


def test_all_memory_is_given_back(facts: dict[str, Any]) -> None:
    assert facts["lost"] == 0
