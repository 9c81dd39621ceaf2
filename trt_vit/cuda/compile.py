"""The project's own kernels, compiled for the GPU at hand when they are first used, and kept in the user's cache.

nvcc compiles them where there is one, NVRTC (a library that pip can bring) elsewhere. What comes out is native code for
one architecture; the cache is keyed by the source, the architecture and the compiler, and closed to others.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_vit.caches import FileCache, cache_directory
from trt_vit.errors import EnvironmentFault

if TYPE_CHECKING:
    from types import ModuleType

HEADER = "block.cuh"
SOURCES = ("preprocess.cu", "topk.cu")

_DIRECTORY = Path(__file__).parent
_CUBIN = "kernels.cubin"
_CACHE_BYTES = 64 << 20
_FLAGS = ("-std=c++17",)
_HINT = "install the CUDA toolkit, whose nvcc is then found on PATH, or pip install nvidia-cuda-nvrtc"


def compiled(source: str, compute_capability: str) -> bytes:
    """Return a source's kernels for a GPU, from the cache or compiled now.

    Args:
        source: One of ``SOURCES``.
        compute_capability: As ``8.9``.

    Raises:
        EnvironmentFault: There is no compiler, or it fails.
    """
    architecture = f"sm_{compute_capability.replace('.', '')}"
    nvcc = shutil.which("nvcc")
    name, compiler = (_nvrtc_version(), None) if nvcc is None else (_nvcc_version(nvcc), nvcc)
    texts = [(_DIRECTORY / file).read_bytes() for file in (HEADER, source)]
    key = hashlib.sha256(b"\0".join([*texts, architecture.encode(), name.encode(), *map(str.encode, _FLAGS)]))
    cache = FileCache(cache_directory() / "cubins", _CACHE_BYTES)
    found = cache.get(key.hexdigest(), lambda entry: (entry / _CUBIN).read_bytes())
    if found is not None:
        return found
    made = _with_nvrtc(source, architecture) if compiler is None else _with_nvcc(compiler, source, architecture)
    cache.put(key.hexdigest(), lambda entry: _write(entry / _CUBIN, made))
    return made


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _nvcc_version(nvcc: str) -> str:
    return _run([nvcc, "--version"], "nvcc does not run").decode(errors="replace")


def _with_nvcc(nvcc: str, source: str, architecture: str) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory, _CUBIN)
        command = [nvcc, *_FLAGS, "-cubin", f"-arch={architecture}", str(_DIRECTORY / source), "-o", str(output)]
        _run(command, f"nvcc cannot compile {source} for {architecture}")
        return output.read_bytes()


def _run(command: list[str], failure: str) -> bytes:
    try:
        return subprocess.run(command, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        text = getattr(error, "stderr", b"").decode(errors="replace") or str(error)
        raise EnvironmentFault(f"{failure}: {_reason(text)}", hint=_HINT) from error


def _reason(text: str) -> str:
    """Return the line of a compiler's output that says what is wrong: there may be warnings before it."""
    lines = [line.strip(" \0") for line in text.splitlines() if line.strip(" \0")]
    wrong = [line for line in lines if "error" in line or "fatal" in line]
    return (wrong or lines or ["it gives no reason"])[0]


def _nvrtc() -> ModuleType:
    try:
        return import_module("cuda.bindings.nvrtc")
    except (ImportError, OSError) as error:
        raise EnvironmentFault("the kernels cannot be compiled: there is no nvcc", hint=_HINT) from error


def _nvrtc_version() -> str:
    nvrtc = _nvrtc()
    try:
        status, *version = nvrtc.nvrtcVersion()
    except RuntimeError as error:  # what cuda-bindings raises where the library itself is missing
        raise EnvironmentFault(f"the kernels cannot be compiled: {error}", hint=_HINT) from error
    return f"nvrtc {'unknown' if status else version}"


def _with_nvrtc(source: str, architecture: str) -> bytes:
    nvrtc = _nvrtc()
    texts = {file: (_DIRECTORY / file).read_bytes() for file in (HEADER, source)}
    created = nvrtc.nvrtcCreateProgram(texts[source], source.encode(), 1, [texts[HEADER]], [HEADER.encode()])
    program = _checked(nvrtc, created)
    options = [flag.encode() for flag in (*_FLAGS, f"-arch={architecture}")]
    status = nvrtc.nvrtcCompileProgram(program, len(options), options)[0]
    if status:
        log = bytearray(_checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program)))
        nvrtc.nvrtcGetProgramLog(program, log)
        reason = _reason(log.decode(errors="replace"))
        raise EnvironmentFault(f"NVRTC cannot compile {source} for {architecture}: {reason}", hint=_HINT)
    made = bytearray(_checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program)))
    _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, made))
    return bytes(made)


def _checked(nvrtc: ModuleType, result: tuple[Any, ...]) -> Any:
    status, *values = result
    if status:
        reason = nvrtc.nvrtcGetErrorString(status)[1]
        raise EnvironmentFault(f"NVRTC failed: {reason.decode()}", hint=_HINT)
    return values[0] if values else None
