"""What a build is to make: every question about it that can be answered before the checkpoint is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trt_vit.cuda import driver
from trt_vit.engine.manifest import Precision, RuntimeName, TargetRecord
from trt_vit.engine.plan import refuse_unbuildable
from trt_vit.errors import UsageError
from trt_vit.runtime import registry
from trt_vit.runtime.tensorrt_family import (
    FAMILIES,
    OLDEST_PORTABLE,
    Family,
    load_family,
    module_name,
    refuse_unknown_capability,
)

if TYPE_CHECKING:
    from trt_vit.settings import BuildSettings

BUILT = Path("engines", "built")
"""Where bundles go that are given no place."""

QUANTIZED: tuple[Precision, ...] = ("int8", "fp8")
"""Precisions whose ranges have to be measured."""

_PRECISIONS: dict[RuntimeName, tuple[Precision, ...]] = {
    "tensorrt": ("fp32", "fp16", "bf16", "int8", "fp8"),
    "tensorrt-rtx": ("fp32", "fp16", "bf16", "int8", "fp8"),
    "openvino": ("fp32", "bf16", "int8"),
    "onnxruntime": ("fp32", "int8"),
}
_FIRST_CAPABILITY: dict[Precision, tuple[float, str]] = {"bf16": (8.0, "Ampere"), "fp8": (8.9, "Ada")}
"""The compute capability from which on a GPU multiplies such numbers, and its generation's name."""


@dataclass(frozen=True)
class TensorRtOrder:
    """Which TensorRT builds, and what for."""

    family: Family
    target: TargetRecord


@dataclass(frozen=True)
class Order:
    """What is to be built.

    Attributes:
        settings: As the user gave them.
        runtime: The runtime it is for, ``auto`` resolved.
        precision: Precision of the engine.
        tensorrt: What only a TensorRT build needs; None for the other runtimes.
        path: Where the bundle goes.
    """

    settings: BuildSettings
    runtime: RuntimeName
    precision: Precision
    tensorrt: TensorRtOrder | None
    path: Path


def take_order(settings: BuildSettings) -> Order:
    """Choose the runtime and refuse what it cannot do, before anything slow is begun.

    Raises:
        UsageError: The settings ask for something that the runtime or the GPU does not have.
        EnvironmentFault: The runtime, or the GPU that it needs, is missing.
    """
    precision = settings.precision
    runtime = _runtime_for(precision) if settings.runtime == "auto" else settings.runtime
    if precision not in _PRECISIONS[runtime]:
        message = f"{runtime} engines are built in {' or '.join(_PRECISIONS[runtime])}, not in {precision}"
        raise UsageError(message, hint="choose another --precision, or --runtime tensorrt-rtx")
    _refuse_uncalibrated(settings)
    path = settings.output or default_path(settings.source, precision, runtime)
    if runtime in FAMILIES:
        return Order(settings, runtime, precision, _tensorrt_order(settings, load_family(runtime)), path)
    for flag, given in (
        ("--compute-capability", settings.compute_capability is not None),
        ("--quantize-attention", settings.quantize_attention),
    ):
        if given:
            message = f"{flag} means nothing for {runtime}"
            raise UsageError(message, hint="leave it out, or build with --runtime tensorrt-rtx")
    return Order(settings, runtime, precision, None, path)


def _runtime_for(precision: Precision) -> RuntimeName:
    """Return what ``auto`` means: the best runtime of this machine, or one that builds without running here.

    Raises:
        EnvironmentFault: No runtime is usable.
    """
    best = registry.choose()
    if precision not in _PRECISIONS[best] and module_name("tensorrt-rtx") is not None:
        return "tensorrt-rtx"
    return best


def default_path(source: str, precision: Precision, runtime: RuntimeName) -> Path:
    """Return where the bundle of a source goes by default: named for what it was made from and for."""
    path = os.path.expanduser(source)  # noqa: PTH111 - as the checkpoint's own resolution reads it
    local = os.path.basename(os.path.realpath(path)).removesuffix(".onnx")  # noqa: PTH119
    name = local if os.path.exists(path) else source.replace("/", "--")  # noqa: PTH110
    return BUILT / f"{name}-{precision}-{runtime}"


def _refuse_uncalibrated(settings: BuildSettings) -> None:
    """Refuse INT8 and FP8 without images to measure ranges on; an .onnx file may hold ranges of its own."""
    if settings.precision not in QUANTIZED:
        return
    if settings.calibration is not None and not os.path.isdir(settings.calibration):  # noqa: PTH112 - a long name
        message = f"--calibration {settings.calibration} is not a directory"
        raise UsageError(message, hint="name a directory of images like those to classify")
    if settings.calibration is None and not settings.source.lower().endswith(".onnx"):
        raise uncalibrated(settings.precision)


def uncalibrated(precision: Precision) -> UsageError:
    """Return the error of a build that has nothing to measure ranges on."""
    message = f"{precision} needs images to measure ranges on, and --calibration names none"
    return UsageError(message, hint="give --calibration DIR, a directory of images like those to classify")


def _tensorrt_order(settings: BuildSettings, family: Family) -> TensorRtOrder:
    refuse_unbuildable(family)
    if settings.compute_capability is not None:
        refuse_unknown_capability(family, settings.compute_capability)
    gpu = next(iter(driver.gpus()), None) if family.name == "tensorrt" else None
    target = TargetRecord(
        lanes=settings.lanes,
        compute_capability=settings.compute_capability,
        gpu=None if gpu is None else gpu.name,
        workspace_gib=settings.workspace_gib,
        optimization_level=settings.optimization_level,
        aux_streams=0 if settings.aux_streams is None and settings.lanes > 1 else settings.aux_streams,
        version_compatible=settings.version_compatible,
        hardware_compatible=settings.hardware_compatible,
    )
    capability = target.compute_capability or (gpu.compute_capability if gpu is not None else OLDEST_PORTABLE)
    first, generation = _FIRST_CAPABILITY.get(settings.precision, (0.0, ""))
    if float(capability) < first:
        message = f"{settings.precision} is not for GPUs of compute capability {capability}"
        if target.compute_capability is None and gpu is None:
            message = f"{settings.precision} is not for every GPU from Ampere (8.0) on, which is what is built for"
        hint = f"that needs {generation} ({first}) or later, --compute-capability names it; or build in fp16 or int8"
        raise UsageError(message, hint=hint)
    return TensorRtOrder(family, target)
