"""The runtimes by name: which there are, which are installed, and how a bundle's own is opened."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from trt_vit.errors import EnvironmentFault

if TYPE_CHECKING:
    from trt_vit.engine.manifest import RuntimeName
    from trt_vit.runtime.protocol import EngineFiles, Runtime, RuntimeOptions

PREFERENCE: tuple[RuntimeName, ...] = ("openvino", "onnxruntime")
"""Order in which ``auto`` looks for a runtime. Each name is also that of the package it needs."""


def installed() -> list[RuntimeName]:
    """Return the runtimes whose package is installed, the preferred one first."""
    return [name for name in PREFERENCE if find_spec(name) is not None]


def failure(name: RuntimeName) -> str | None:
    """Return why an installed runtime's package cannot be imported, on one line, or None where it can."""
    try:
        import_module(name)
    except (ImportError, OSError) as error:
        return " ".join(str(error).split())
    return None


def choose() -> RuntimeName:
    """Return the runtime that ``auto`` means on this machine.

    Raises:
        EnvironmentFault: None is installed.
    """
    names = installed()
    if not names:
        raise EnvironmentFault("no runtime is installed", hint="pip install openvino")
    return names[0]


def open_runtime(name: RuntimeName, engine: EngineFiles, options: RuntimeOptions) -> Runtime:
    """Load an engine with the runtime that it was built for.

    Raises:
        EnvironmentFault: The runtime is missing or does not work.
        ArtifactError: A file of the engine was changed, or the runtime cannot read it.
    """
    # Each runtime's module is imported only for an engine that needs it.
    if name == "openvino":
        from trt_vit.runtime.openvino import OpenVinoRuntime  # noqa: PLC0415

        return OpenVinoRuntime(engine, options)
    from trt_vit.runtime.onnxruntime import OnnxRuntimeRuntime  # noqa: PLC0415

    return OnnxRuntimeRuntime(engine, options)
