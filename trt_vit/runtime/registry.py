"""The runtimes by name: which there are, which are installed, and how a bundle's own is opened."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from trt_vit.cuda import driver
from trt_vit.errors import EnvironmentFault
from trt_vit.runtime.tensorrt_family import FAMILIES, load_family, module_name

if TYPE_CHECKING:
    from trt_vit.engine.manifest import RuntimeName
    from trt_vit.runtime.protocol import EngineFiles, Runtime, RuntimeOptions

PREFERENCE: tuple[RuntimeName, ...] = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")
"""Order in which ``auto`` looks for a runtime."""


def installed() -> list[RuntimeName]:
    """Return the runtimes whose package is installed, the preferred one first."""
    return [name for name in PREFERENCE if _package(name) is not None]


def failure(name: RuntimeName) -> str | None:
    """Return why an installed runtime's package cannot be imported, on one line, or None where it can."""
    try:
        if name in FAMILIES:
            load_family(name)
        else:
            import_module(name)
    except EnvironmentFault as error:
        return error.message
    except (ImportError, OSError) as error:
        return " ".join(str(error).split())
    return None


def usable() -> list[RuntimeName]:
    """Return the runtimes that can run an engine here: installed, loading, and with a GPU where they need one."""
    has_gpu = bool(driver.gpus())
    return [name for name in installed() if (has_gpu or name not in FAMILIES) and failure(name) is None]


def choose() -> RuntimeName:
    """Return the runtime that ``auto`` means on this machine: TensorRT where there is a GPU for it.

    Raises:
        EnvironmentFault: None is usable.
    """
    names = usable()
    if not names:
        raise EnvironmentFault("no runtime is installed", hint="pip install openvino; trt-vit doctor tells more")
    return names[0]


def _package(name: RuntimeName) -> str | None:
    """Return the name of the module that a runtime needs, or None where it is not installed."""
    if name in FAMILIES:
        return module_name(name)
    return name if find_spec(name) is not None else None


def open_runtime(name: RuntimeName, engine: EngineFiles, options: RuntimeOptions) -> Runtime:
    """Load an engine with the runtime that it was built for.

    Raises:
        EnvironmentFault: The runtime is missing or does not work.
        ArtifactError: A file of the engine was changed, or the runtime cannot read it.
    """
    # Each runtime's module is imported only for an engine that needs it.
    if name in FAMILIES:
        from trt_vit.runtime.tensorrt import TensorRtRuntime  # noqa: PLC0415

        return TensorRtRuntime(engine, options, name)
    if name == "openvino":
        from trt_vit.runtime.openvino import OpenVinoRuntime  # noqa: PLC0415

        return OpenVinoRuntime(engine, options)
    from trt_vit.runtime.onnxruntime import CUDA, OnnxRuntimeRuntime, providers  # noqa: PLC0415

    if driver.gpus() and CUDA in dict(providers()) and find_spec("pycuda") is not None:
        from trt_vit.runtime.onnxruntime_cuda import OnnxRuntimeCudaRuntime  # noqa: PLC0415

        return OnnxRuntimeCudaRuntime(engine, options)
    return OnnxRuntimeRuntime(engine, options)
