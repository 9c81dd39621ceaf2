"""What this machine offers, and what is missing for what."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trt_vit import __version__
from trt_vit.runtime import registry
from trt_vit.runtime.cpu import usable_cores

if TYPE_CHECKING:
    from collections.abc import Mapping

CORE = ("numpy", "onnxruntime", "openvino", "pillow", "pyarrow", "simplejpeg")
EXPORT = ("huggingface-hub", "onnx", "onnxscript", "safetensors", "torch", "transformers")
ACCELERATORS = ("onnxruntime-gpu", "pycuda", "tensorrt", "tensorrt-rtx")
_FIRST_SAFE_TENSORRT = 11
_CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")
_CUDA_DRIVER = "libcuda.so.1"
_CUDA_SUCCESS = 0


@dataclass(frozen=True)
class Finding:
    """Something a person should act on.

    Attributes:
        problem: What is wrong or missing, and what does not work for it.
        fix: What to do about it.
        fatal: Whether nothing can be classified until then.
    """

    problem: str
    fix: str
    fatal: bool = False


def examine() -> dict[str, Any]:
    """Return what the machine has, and the findings, as one JSON-ready document."""
    packages = {name: installed_version(name) for name in (*CORE, *EXPORT, *ACCELERATORS)}
    return {
        "trt_vit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cpu": cpu_features(),
        "cuda_driver": cuda_driver_version(),
        "packages": packages,
        "runtimes": [name for name in registry.installed() if registry.failure(name) is None],
        "findings": [vars(finding) for finding in [*findings(packages), *broken_runtimes()]],
    }


def findings(packages: Mapping[str, str | None]) -> list[Finding]:
    """Return what is wrong with a set of installed packages, given as name to version."""
    found = [
        Finding(f"{name} is not installed: nothing can be classified", "pip install trt-vit", fatal=True)
        for name in CORE
        if packages[name] is None and not (name == "onnxruntime" and packages["onnxruntime-gpu"])
    ]
    missing = [name for name in EXPORT if packages[name] is None]
    if missing:
        problem = f"{', '.join(missing)} not installed: checkpoints cannot be exported, no engine can be built"
        found.append(Finding(problem, "pip install 'trt-vit[export]'"))
    tensorrt = packages["tensorrt"]
    if tensorrt is not None and int(tensorrt.split(".")[0]) < _FIRST_SAFE_TENSORRT:
        problem = f"TensorRT {tensorrt} has known flaws that let a crafted model run code"
        found.append(Finding(problem, f"upgrade to TensorRT {_FIRST_SAFE_TENSORRT} or later"))
    return found


def broken_runtimes() -> list[Finding]:
    """Return what is wrong with the runtimes that are installed and do not import."""
    reasons = {name: registry.failure(name) for name in registry.installed()}
    return [
        Finding(f"{name} is installed but does not load: {reason}", f"pip install --force-reinstall {name}", fatal=True)
        for name, reason in reasons.items()
        if reason is not None
    ]


def installed_version(package: str) -> str | None:
    """Return a package's version, or None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_features() -> list[str]:
    """Return the vector and matrix instruction sets that matter here and that this CPU has."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as stream:  # noqa: PTH123 - not a real file
            flags = next((line.split(":", 1)[1].split() for line in stream if line.startswith("flags")), [])
    except OSError:
        flags = []
    return [feature for feature in _CPU_FEATURES if feature in flags]


def cuda_driver_version() -> str | None:
    """Return the newest CUDA version that the NVIDIA driver supports, as ``13.0``, or None without a working driver."""
    try:
        driver = ctypes.CDLL(_CUDA_DRIVER)
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuInit(0) != _CUDA_SUCCESS or driver.cuDriverGetVersion(ctypes.byref(version)) != _CUDA_SUCCESS:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"
