from __future__ import annotations

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
    """subprocess.run, and what was run with it.

    Attributes:
        version: What nvcc says of itself, if not what it really says.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[list[str]] = []
        self.version: bytes | None = None
        self._run = subprocess.run
        monkeypatch.setattr(
            compiler, "subprocess", SimpleNamespace(run=self.run, CalledProcessError=subprocess.CalledProcessError)
        )

    def run(self, command: list[str], **options: Any) -> Any:
        self.commands.append(command)
        if self.version is not None and "--version" in command:
            return SimpleNamespace(stdout=self.version)
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
def test_another_nvcc_compiles_again(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    for version in (b"release 12.9", b"release 13.0", b"release 12.9"):
        counting.version = version
        assert compiler.compiled("topk.cu", "8.9").startswith(ELF)
    assert len(counting.compilations) == 2


@pytest.mark.usefixtures("nvcc")
def test_it_is_asked_for_the_code_of_one_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    compiler.compiled("topk.cu", "9.0")
    (command,) = (command for command in counting.commands if "-cubin" in command)
    assert command[1:4] == ["-std=c++17", "-cubin", "-arch=sm_90"]
    assert Path(command[4]) == compiler._DIRECTORY / "topk.cu"


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

    assert not list((tmp_path / "cache").rglob("*.cubin"))


@pytest.mark.usefixtures("nvcc")
def test_a_gpu_that_nvcc_does_not_know() -> None:
    with pytest.raises(EnvironmentFault, match=r"nvcc cannot compile topk\.cu for sm_10: nvcc fatal .*sm_10"):
        compiler.compiled("topk.cu", "1.0")


@pytest.mark.usefixtures("nvcc")
def test_a_warning_before_the_error_is_not_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sources = shutil.copytree(compiler._DIRECTORY, tmp_path / "sources")
    (sources / "topk.cu").write_text("__global__ void f() { int unused; }\nthis is no CUDA\n")
    monkeypatch.setattr(compiler, "_DIRECTORY", sources)
    with pytest.raises(EnvironmentFault) as caught:
        compiler.compiled("topk.cu", "8.9")
    assert "topk.cu(2): error" in caught.value.message


def script(directory: Path, text: str) -> str:
    """Write a program that is taken for nvcc."""
    path = directory / "nvcc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "reason"), [("echo broken >&2; exit 1", "broken"), ("exit 3", "Command .* exit status 3")]
)
def test_an_nvcc_that_does_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, reason: str) -> None:
    broken = script(tmp_path, text)
    monkeypatch.setattr(shutil, "which", lambda _name: broken)
    with pytest.raises(EnvironmentFault, match=f"nvcc does not run: {reason}"):
        compiler.compiled("topk.cu", "8.9")


def test_an_nvcc_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: str(tmp_path / "nvcc"))
    with pytest.raises(EnvironmentFault, match=r"nvcc does not run: .*No such file") as caught:
        compiler.compiled("topk.cu", "8.9")
    assert "nvidia-cuda-nvrtc" in caught.value.hint
    assert caught.value.exit_code == 4


class FakeNvrtc(ModuleType):
    """cuda.bindings.nvrtc.

    Attributes:
        given: What it was asked to compile, and how.
        refuses: Whether it finds an error.
        says: Its log.
        missing: What it raises where the library itself is not installed.
        statuses: Status of a function by name, where it fails.
        version: Of the library.
    """

    def __init__(self) -> None:
        super().__init__("nvrtc")
        self.given: list[Any] = []
        self.refuses = False
        self.says = b"topk.cu(3): error: what?\nmore\0"
        self.missing: Exception | None = None
        self.statuses: dict[str, int] = {}
        self.version = (13, 0)

    def nvrtcVersion(self) -> tuple[int, int, int]:  # noqa: N802
        if self.missing is not None:
            raise self.missing
        return (0, *self.version)

    def nvrtcGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, f"NVRTC_ERROR_{status}".encode()

    def nvrtcCreateProgram(self, *arguments: Any) -> tuple[int, str]:  # noqa: N802
        if self.missing is not None:
            raise self.missing
        self.given.append(arguments)
        return self.statuses.get("nvrtcCreateProgram", 0), "program"

    def nvrtcCompileProgram(self, _program: str, count: int, options: list[bytes]) -> tuple[int]:  # noqa: N802
        assert count == len(options)
        self.given.append(options)
        return (6 if self.refuses else 0,)

    def nvrtcGetProgramLogSize(self, _program: str) -> tuple[int, int]:  # noqa: N802
        return 0, len(self.says)

    def nvrtcGetProgramLog(self, _program: str, log: bytearray) -> tuple[int]:  # noqa: N802
        assert len(log) == len(self.says)
        log[:] = self.says
        return (0,)

    def nvrtcGetCUBINSize(self, _program: str) -> tuple[int, int]:  # noqa: N802
        return 0, 8

    def nvrtcGetCUBIN(self, _program: str, cubin: bytearray) -> tuple[int]:  # noqa: N802
        cubin[:] = b"compiled"
        return (self.statuses.get("nvrtcGetCUBIN", 0),)


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

    def test_a_warning_before_the_error_is_not_the_reason(self, fake: FakeNvrtc) -> None:
        fake.refuses = True
        fake.says = b'topk.cu(1): warning #177-D: "unused" was never referenced\n\ntopk.cu(3): error: what?\0'
        with pytest.raises(EnvironmentFault) as caught:
            compiler.compiled("topk.cu", "8.9")
        assert "topk.cu(3): error: what?" in caught.value.message

    def test_what_it_could_not_compile_is_not_kept(self, fake: FakeNvrtc) -> None:
        fake.refuses = True
        with pytest.raises(EnvironmentFault):
            compiler.compiled("topk.cu", "8.9")
        fake.refuses = False
        assert compiler.compiled("topk.cu", "8.9") == b"compiled"

    def test_each_source_and_gpu_is_compiled_for_itself(self, fake: FakeNvrtc) -> None:
        for source in ("topk.cu", "preprocess.cu", "topk.cu"):
            compiler.compiled(source, "8.9")
        compiler.compiled("topk.cu", "9.0")
        assert [(entry[1], options[-1]) for entry, options in zip(fake.given[::2], fake.given[1::2], strict=True)] == [
            (b"topk.cu", b"-arch=sm_89"),
            (b"preprocess.cu", b"-arch=sm_89"),
            (b"topk.cu", b"-arch=sm_90"),
        ]

    def test_another_version_compiles_again(self, fake: FakeNvrtc) -> None:
        for fake.version in ((12, 9), (13, 0)):
            compiler.compiled("topk.cu", "8.9")
        assert len(fake.given) == 4

    @pytest.mark.parametrize("function", ["nvrtcCreateProgram", "nvrtcGetCUBIN"])
    def test_a_call_that_fails_says_so_in_nvrtc_s_words(self, fake: FakeNvrtc, function: str) -> None:
        fake.statuses[function] = 7
        with pytest.raises(EnvironmentFault, match="NVRTC failed: NVRTC_ERROR_7") as caught:
            compiler.compiled("topk.cu", "8.9")
        assert "nvidia-cuda-nvrtc" in caught.value.hint

    def test_bindings_without_their_library(self, fake: FakeNvrtc) -> None:
        fake.missing = RuntimeError("Failed to dlopen libnvrtc.so.13")
        with pytest.raises(EnvironmentFault, match="the kernels cannot be compiled: Failed to dlopen") as caught:
            compiler.compiled("topk.cu", "8.9")
        assert "nvidia-cuda-nvrtc" in caught.value.hint

    def test_neither_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> ModuleType:
            raise ModuleNotFoundError(name)

        monkeypatch.setattr(compiler, "import_module", missing)
        with pytest.raises(EnvironmentFault, match="cannot be compiled: there is no nvcc") as caught:
            compiler.compiled("topk.cu", "8.9")
        assert "nvcc" in caught.value.hint
        assert "nvidia-cuda-nvrtc" in caught.value.hint
        assert caught.value.exit_code == 4

    @pytest.mark.usefixtures("library")
    @pytest.mark.parametrize("source", compiler.SOURCES)
    def test_the_library_itself(self, source: str) -> None:
        assert compiler.compiled(source, "9.0").startswith(ELF)

    @pytest.mark.usefixtures("library")
    def test_the_library_s_own_words(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        sources = shutil.copytree(compiler._DIRECTORY, tmp_path / "sources")
        (sources / "topk.cu").write_text("\nthis is no CUDA\n")
        monkeypatch.setattr(compiler, "_DIRECTORY", sources)
        with pytest.raises(EnvironmentFault, match=r"NVRTC cannot compile topk\.cu for sm_90: topk\.cu\(2\): error"):
            compiler.compiled("topk.cu", "9.0")

    @pytest.fixture
    def library(self) -> None:
        nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings")
        try:
            nvrtc.nvrtcVersion()
        except RuntimeError:
            pytest.skip("needs nvidia-cuda-nvrtc")
