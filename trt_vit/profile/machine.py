"""The machine that something was measured on: without it a figure is worth nothing."""

from __future__ import annotations

from typing import Any

from trt_vit.doctor import examine

_KEPT = ("trt_vit", "python", "platform", "cores", "memory_bytes", "cpu", "cuda_driver", "gpus", "packages")


def environment() -> dict[str, Any]:
    """Return the machine, and the versions of what is installed."""
    report = examine()
    packages = {name: version for name, version in report["packages"].items() if version is not None}
    return {key: report[key] for key in _KEPT} | {"processor": processor(), "packages": packages}


def processor() -> str:
    """Return the processor's name as Linux gives it, or ``unknown``."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as stream:  # noqa: PTH123 - not a real file
            return next((line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")), "unknown")
    except OSError:
        return "unknown"
