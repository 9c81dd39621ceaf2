from __future__ import annotations

import importlib
import shutil
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trt_vit.cuda import compile as compiler
from trt_vit.errors import EnvironmentFault

ELF = b"\x7fELF"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        pytest.skip("needs nvcc")
    return found


class Counting:
    """subprocess.run, and what was run with it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[list[str]] = []
        self._run = subprocess.run
        monkeypatch.setattr(
            compiler, "subprocess", SimpleNamespace(run=self.run, CalledProcessError=subprocess.CalledProcessError)
        )

    def run(self, command: list[str], **options: Any) -> Any:
        self.commands.append(command)
        return self._run(command, **options)

    @property
    def compilations(self) -> list[str]:
        return [Path(command[-3]).name for command in self.commands if "-cubin" in command]


@pytest.mark.usefixtures("nvcc")
def test_nvcc_compiles_once_for_each_source_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    first = compiler.compiled("topk.cu", "8.9")
    assert first.startswith(ELF)
    assert compiler.compiled("topk.cu", "8.9") == first
    assert counting.compilations == ["topk.cu"]
    assert compiler.compiled("topk.cu", "9.0") != first
    assert compiler.compiled("preprocess.cu", "8.9") != first
    assert counting.compilations == ["topk.cu", "topk.cu", "preprocess.cu"]


@pytest.mark.usefixtures("nvcc")
def test_a_changed_source_is_compiled_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counting = Counting(monkeypatch)
    sources = shutil.copytree(compiler._DIRECTORY, tmp_path / "sources")
    monkeypatch.setattr(compiler, "_DIRECTORY", sources)
    compiler.compiled("topk.cu", "8.9")
    for file in ("topk.cu", compiler.HEADER):
        (sources / file).write_text((sources / file).read_text() + "\n// changed\n")
        compiler.compiled("topk.cu", "8.9")
    assert len(counting.compilations) == 3


@pytest.mark.usefixtures("nvcc")
def test_what_does_not_compile_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sources = shutil.copytree(compiler._DIRECTORY, tmp_path / "sources")
    (sources / "topk.cu").write_text("this is no CUDA\n")
    monkeypatch.setattr(compiler, "_DIRECTORY", sources)
    with pytest.raises(
        EnvironmentFault, match=r"nvcc cannot compile topk.cu for sm_89: .*topk.cu\(1\): error"
    ) as caught:
        compiler.compiled("topk.cu", "8.9")
    assert "nvidia-cuda-nvrtc" in caught.value.hint


def test_an_nvcc_that_does_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _name: str(broken))
    with pytest.raises(EnvironmentFault, match="nvcc does not run: broken"):
        compiler.compiled("topk.cu", "8.9")


class FakeNvrtc(ModuleType):
    """cuda.bindings.nvrtc: its compiler takes everything but ``refuses``."""

    def __init__(self) -> None:
        super().__init__("nvrtc")
        self.given: list[Any] = []
        self.refuses = False

    def nvrtcCreateProgram(self, *arguments: Any) -> tuple[int, str]:  # noqa: N802
        self.given.append(arguments)
        return 0, "program"

    def nvrtcCompileProgram(self, _program: str, count: int, options: list[bytes]) -> tuple[int]:  # noqa: N802
        assert count == len(options)
        self.given.append(options)
        return (6 if self.refuses else 0,)

    def nvrtcGetProgramLogSize(self, _program: str) -> tuple[int, int]:  # noqa: N802
        return 0, 30

    def nvrtcGetProgramLog(self, _program: str, log: bytearray) -> tuple[int]:  # noqa: N802
        log[:] = b"topk.cu(3): error: what?\nmore\0"
        return (0,)

    def nvrtcGetCUBINSize(self, _program: str) -> tuple[int, int]:  # noqa: N802
        return 0, 8

    def nvrtcGetCUBIN(self, _program: str, cubin: bytearray) -> tuple[int]:  # noqa: N802
        cubin[:] = b"compiled"
        return (0,)


class TestNvrtc:
    @pytest.fixture(autouse=True)
    def without_nvcc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda _name: None)

    @pytest.fixture
    def fake(self, monkeypatch: pytest.MonkeyPatch) -> FakeNvrtc:
        module = FakeNvrtc()
        monkeypatch.setattr(compiler, "import_module", lambda _name: module)
        return module

    def test_it_compiles_where_there_is_no_nvcc(self, fake: FakeNvrtc) -> None:
        assert compiler.compiled("topk.cu", "12.0") == b"compiled"
        (text, name, count, headers, names), options = fake.given
        assert b"top_k_of_float32" in text
        assert (name, count, names) == (b"topk.cu", 1, [b"block.cuh"])
        assert b"EACH_THREAD" in headers[0]
        assert options == [b"-std=c++17", b"-arch=sm_120"]
        assert compiler.compiled("topk.cu", "12.0") == b"compiled"
        assert len(fake.given) == 2

    def test_its_log_says_what_is_wrong(self, fake: FakeNvrtc) -> None:
        fake.refuses = True
        with pytest.raises(
            EnvironmentFault, match=r"NVRTC cannot compile topk.cu for sm_89: topk.cu\(3\): error: what\? "
        ):
            compiler.compiled("topk.cu", "8.9")

    def test_neither_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> ModuleType:
            raise ModuleNotFoundError(name)

        monkeypatch.setattr(compiler, "import_module", missing)
        with pytest.raises(EnvironmentFault, match="cannot be compiled: there is no nvcc") as caught:
            compiler.compiled("topk.cu", "8.9")
        assert "nvcc" in caught.value.hint

    @pytest.mark.parametrize("source", compiler.SOURCES)
    def test_the_library_itself(self, source: str) -> None:
        pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings")
        if importlib.util.find_spec("nvidia") is None:
            pytest.skip("needs nvidia-cuda-nvrtc")
        assert compiler.compiled(source, "9.0").startswith(ELF)
