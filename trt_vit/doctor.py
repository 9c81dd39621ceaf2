"""What this machine offers, and what is missing for what."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trt_vit import __version__
from trt_vit.cuda import driver
from trt_vit.runtime import registry
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.tensorrt_family import FAMILIES, FIRST_SAFE, load_family, module_name

if TYPE_CHECKING:
    from collections.abc import Mapping

CORE = ("numpy", "onnxruntime", "openvino", "pillow", "pyarrow", "simplejpeg")
EXPORT = ("huggingface-hub", "onnx", "onnxscript", "safetensors", "torch", "transformers")
GPU = ("cuda-bindings", "pycuda")
ACCELERATORS = (
    *GPU,
    "nvidia-cuda-nvrtc",
    "nvidia-nvimgcodec-cu13",
    "nvtx",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
)
_GPU_FIX = "pip install 'trt-vit[cuda]'"
_CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")


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
    if packages["tensorrt"] is None:
        packages["tensorrt"] = _tensorrt_version()
    return {
        "trt_vit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cpu": cpu_features(),
        "cuda_driver": driver.version(),
        "gpus": [vars(gpu) for gpu in driver.gpus()],
        "tensorrt": tensorrt_family(),
        "packages": packages,
        "runtimes": registry.usable(),
        "findings": [vars(finding) for finding in [*findings(packages), *gpu_findings(packages), *broken_runtimes()]],
    }


def tensorrt_family() -> dict[str, str | None]:
    """Return which TensorRT is used on this machine, and why that one: ``family``, ``version``, ``why``."""
    found = [name for name in FAMILIES if module_name(name) is not None and registry.failure(name) is None]
    if not found:
        return {"family": None, "version": None, "why": "neither TensorRT nor TensorRT for RTX is installed"}
    reasons = [
        "both are installed: TensorRT builds for every GPU, TensorRT for RTX also without one (--runtime tensorrt-rtx)"
        if len(found) > 1
        else "the only one that is installed",
        "this machine has a GPU for it" if driver.gpus() else "this machine has no GPU: it can build, but not run",
    ]
    if found[0] == "tensorrt" and not driver.gpus():
        reasons[1] = "this machine has no GPU: it can neither build nor run"
    return {"family": found[0], "version": load_family(found[0]).version, "why": "; ".join(reasons)}


def _tensorrt_version() -> str | None:
    """Return the version of TensorRT where it was installed under another name, tensorrt-cu12 say."""
    found = module_name("tensorrt") is not None and registry.failure("tensorrt") is None
    return load_family("tensorrt").version if found else None


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
    if tensorrt is not None and int(tensorrt.split(".")[0]) < FIRST_SAFE:
        problem = f"TensorRT {tensorrt} has known flaws that let a crafted model run code"
        found.append(Finding(problem, f"upgrade to TensorRT {FIRST_SAFE} or later"))
    return found


def gpu_findings(packages: Mapping[str, str | None]) -> list[Finding]:
    """Return what the machine's GPU lacks, given packages as name to version; nothing where there is no GPU."""
    if not driver.gpus():
        return []
    missing = [name for name in GPU if packages[name] is None]
    found = [Finding(f"{', '.join(missing)} not installed: the GPU is not used", _GPU_FIX)] if missing else []
    if packages["nvidia-nvimgcodec-cu13"] is None:
        found.append(Finding("nvidia-nvimgcodec-cu13 is not installed: --decode fast does not work", _GPU_FIX))
    if shutil.which("nvcc") is None and packages["nvidia-cuda-nvrtc"] is None:
        problem = "neither nvcc nor NVRTC is there: kernels cannot be compiled"
        found.append(Finding(problem, "install the CUDA toolkit, or pip install nvidia-cuda-nvrtc"))
    return found


def broken_runtimes() -> list[Finding]:
    """Return what is wrong with the runtimes that are installed and do not import."""
    reasons = {name: registry.failure(name) for name in registry.installed()}
    return [
        Finding(
            f"{name} is installed but does not load: {reason}",
            f"pip install --force-reinstall {name}",
            fatal=name not in FAMILIES,
        )
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
