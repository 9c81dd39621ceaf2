"""What a figure is worth nothing without: the machine and the versions it was measured with."""

from __future__ import annotations

from typing import Any

from trt_vit.doctor import examine


def environment() -> dict[str, Any]:
    """Return the machine and the versions of every package that is installed."""
    report = examine()
    packages = {name: version for name, version in report["packages"].items() if version is not None}
    kept = ("trt_vit", "python", "platform", "cores", "memory_bytes", "cpu", "cuda_driver")
    return {key: report[key] for key in kept} | {"processor": processor_name(), "packages": packages}


def processor_name() -> str:
    """Return the processor's name as Linux gives it."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as stream:  # noqa: PTH123 - not a real file
        return next((line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")), "unknown")
