"""The kernels' sources: that a GPU's compiler takes them, and that both sides of a call agree."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.cpu_kernels import DIRECTORY, SOURCES
from trt_vit.cuda import compile as compiler
from trt_vit.cuda import preprocess, pycuda_device, resample, topk
from trt_vit.images.preprocess import Preprocessor
from trt_vit.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

GENERATIONS = ("80", "89", "90", "100", "120")
TEXTS = {path.name: path.read_text() for path in (*DIRECTORY.glob("*.cu"), *DIRECTORY.glob("*.cuh"))}
KERNELS = {"preprocess.cu": {"preprocess_to_32_bits", "preprocess_to_16_bits"}, "topk.cu": set(topk.KERNELS.values())}


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("source", SOURCES)
def test_nvcc_compiles_them_without_spills(source: str, generation: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    flags = ["-std=c++17", "-cubin", f"-arch=sm_{generation}", "-Xptxas", "-v", "-Werror", "all-warnings"]
    done = subprocess.run(
        [nvcc, *flags, DIRECTORY / source, "-o", tmp_path / "kernels.cubin"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    frames = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    used = re.findall(rf"entry function '(\w+)' for 'sm_{generation}'(?:\n.*)*?\n *{frames}", done.stderr)
    assert sorted(used) == [(name, "0", "0", "0") for name in sorted(KERNELS[source])]
    assert done.stderr.count("bytes stack frame") == len(used)


@pytest.mark.parametrize("file", sorted(TEXTS))
def test_nothing_is_included_that_nvrtc_does_not_have(file: str) -> None:
    included = re.findall(r"#\s*(?:include|import|include_next)\b\s*(.*?)\s*$", TEXTS[file], re.MULTILINE)
    assert included == ([] if file == compiler.HEADER else [f'"{compiler.HEADER}"'])


def test_what_is_shipped_is_what_is_compiled() -> None:
    assert SOURCES == compiler.SOURCES
    assert set(TEXTS) == {*SOURCES, compiler.HEADER}


@pytest.mark.parametrize("source", SOURCES)
def test_the_kernels_have_the_names_that_they_are_called_by(source: str) -> None:
    assert set(re.findall(r"^KERNEL\((\w+),", TEXTS[source], re.MULTILINE)) == KERNELS[source]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("fp32", "preprocess_to_32_bits"), ("fp16", "preprocess_to_16_bits"), ("bf16", "preprocess_to_16_bits")],
)
def test_the_kernel_of_each_output(dtype: str, name: str) -> None:
    preprocessor = Preprocessor(Preprocessing(resize=None, crop=(3, 4)), (3, 4))
    kernel = preprocess.preprocess_kernel(preprocessor, dtype)
    assert kernel.name == name
    assert kernel.values.itemsize * 8 == int(name.split("_")[2])


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("block.cuh", "THREADS", pycuda_device.THREADS),
        ("preprocess.cu", "TILE", preprocess.TILE),
        ("preprocess.cu", "FRACTION_BITS", resample.FRACTION_BITS),
        ("topk.cu", "LARGEST_K", topk.LARGEST_K),
        ("topk.cu", "BINS", pycuda_device.THREADS),  # a thread for each bin
    ],
)
def test_figures_that_stand_on_both_sides(file: str, name: str, value: int) -> None:
    assert re.findall(rf"#define {name} (\d+)", TEXTS[file]) == [str(value)]


def test_a_tile_is_shared_out_evenly_among_the_threads() -> None:
    """Each thread makes the pixels of one column."""
    assert preprocess.TILE**2 % pycuda_device.THREADS == 0
    assert pycuda_device.THREADS % preprocess.TILE == 0


LAYOUT = """
#include "{source}"
#include <cstddef>
#include <cstdio>
int main() {{ {prints} printf("%zu\\n", sizeof({struct})); }}
"""


@pytest.mark.parametrize(
    ("source", "struct", "dtype"),
    [
        ("preprocess.cu", "Source", preprocess.SOURCE),
        ("preprocess.cu", "Axis", preprocess.SOURCE["x"]),
        ("preprocess.cu", "Axis", preprocess.SOURCE["y"]),
        ("preprocess.cu", "Preprocess", preprocess.ARGUMENTS),
        ("topk.cu", "TopK", topk.ARGUMENTS),
    ],
)
def test_structs_lie_in_memory_as_numpy_lays_them_out(
    source: str, struct: str, dtype: np.dtype[np.void], tmp_path: Path
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    fields = dtype.fields
    assert fields is not None
    prints = " ".join(f'printf("%zu ", offsetof({struct}, {name}));' for name in fields)
    program = tmp_path / "layout.cpp"
    program.write_text(LAYOUT.format(source=DIRECTORY / source, prints=prints, struct=struct))
    subprocess.run(["g++", "-std=c++17", "-w", program, "-o", tmp_path / "layout"], check=True)
    printed = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout.split()
    assert [int(number) for number in printed] == [*(field[1] for field in fields.values()), dtype.itemsize]
