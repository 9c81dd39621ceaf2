"""The TensorRT family: TensorRT 10 and 11, and TensorRT for RTX, behind one door.

They have nearly one Python API. What differs is held here: how each is imported, what it can build for, and the little
that only one of them has. Networks are strongly typed throughout: it is the only mode that all of them have.

The bindings' types are imported for annotations only, as ``trt`` (what all of the family have) and ``rtx`` (what only
TensorRT for RTX has); where names of the module are needed at run time, ``trt`` is the bindings of the family in use.
The conformance tests hold this code against the real bindings of each member.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, Protocol, cast, get_args

from trt_vit.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from types import ModuleType

    import tensorrt as trt
    import tensorrt_rtx as rtx

FamilyName = Literal["tensorrt", "tensorrt-rtx"]
FAMILIES: tuple[FamilyName, ...] = get_args(FamilyName)

OLDEST = (10, 12)
"""Oldest TensorRT that this is written for. TensorRT for RTX has version numbers of its own."""
FIRST_SAFE = 11
"""TensorRT before this has known flaws that let a crafted plan or model run code."""

OLDEST_PORTABLE = 8.0
"""Oldest compute capability that a plan of TensorRT for RTX runs on which is for no GPU generation in particular."""

_MODULES: dict[FamilyName, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Names that a family's bindings go by: those of the package that fetches all, and of the bindings alone."""
_LIBRARIES: dict[FamilyName, str] = {"tensorrt": "tensorrt_libs", "tensorrt-rtx": "tensorrt_rtx_libs"}
_KEPT = (", LayerType: ", "Total Weights Memory")
"""What of the messages below a warning is kept: a verbose build says hundreds of megabytes."""
_HINTS: dict[FamilyName, str] = {
    "tensorrt": "pip install 'trt-vit[tensorrt]'",
    "tensorrt-rtx": "pip install 'trt-vit[rtx]'",
}


@dataclass(frozen=True)
class Family:
    """A member of the family, loaded.

    Attributes:
        name: Which one.
        bindings: Its module. Only ``trt`` reads names from it, so that they are checked.
        version: As the module gives it.
    """

    name: FamilyName
    bindings: ModuleType
    version: str

    @property
    def title(self) -> str:
        """Name for messages."""
        return f"{'TensorRT' if self.name == 'tensorrt' else 'TensorRT for RTX'} {self.version}"


class Log(Protocol):
    """What a TensorRT object has said, kept for errors and for the list of layers at the end of a build."""

    @property
    def logger(self) -> trt.ILogger:
        """The logger to create TensorRT objects with. It must outlive them."""
        ...

    @property
    def errors(self) -> list[str]:
        """Error messages, oldest first, each on one line."""
        ...

    @property
    def notes(self) -> list[str]:
        """Messages about the finished engine, as they are."""
        ...


def module_name(name: FamilyName) -> str | None:
    """Return the name that a family's bindings are installed under, or None where they are not."""
    return next((module for module in _MODULES[name] if find_spec(module) is not None), None)


def load_family(name: FamilyName) -> Family:
    """Import a family's bindings.

    Raises:
        EnvironmentFault: They are missing, do not load, or are too old.
    """
    module = module_name(name)
    if module is None:
        raise EnvironmentFault(f"{name} is not installed", hint=_HINTS[name])
    try:
        if find_spec(_LIBRARIES[name]) is not None:
            import_module(_LIBRARIES[name])  # the bindings alone do not look for the libraries' package everywhere
        bindings = import_module(module)
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise EnvironmentFault(f"{name} does not load: {reason}", hint=_HINTS[name]) from error
    version = str(bindings.__version__)
    if name == "tensorrt" and tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        message = f"TensorRT {version} is older than {'.'.join(map(str, OLDEST))}"
        raise EnvironmentFault(message, hint="upgrade it: pip install -U tensorrt")
    return Family(name, bindings, version)


def create_log(family: Family) -> Log:
    """Return a log whose logger can be given to the family's objects. Calls may come from several threads at once."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = family.bindings

    class _Log(trt.ILogger):  # type: ignore[misc]  # Any where the bindings are not installed
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.notes: list[str] = []

        @property
        def logger(self) -> trt.ILogger:
            return self

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in {trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR}:
                self.errors.append(" ".join(msg.split()))
            elif any(text in msg for text in _KEPT):
                self.notes.append(msg)

    return _Log()


def last_error(log: Log, otherwise: str, since: int = 0) -> str:
    """Return what TensorRT said last that was an error, or ``otherwise`` where it said nothing.

    Args:
        log: What it has said.
        otherwise: What to say in its place.
        since: How many errors there were before: those explain something else.
    """
    return log.errors[-1] if len(log.errors) > since else otherwise


def compute_capabilities(family: Family) -> list[str]:
    """Return what TensorRT for RTX can build for without that GPU at hand, as ``8.9``.

    Raises:
        UsageError: TensorRT itself builds only for the GPU it runs on.
    """
    if family.name != "tensorrt-rtx":
        message = f"{family.title} builds only for the GPU of the machine it runs on"
        raise UsageError(message, hint="leave out --compute-capability, or build with --runtime tensorrt-rtx")
    members = _capability_members(family)
    return [
        f"{digits[:-1]}.{digits[-1]}" for digits in (name.removeprefix("SM") for name in members) if digits.isdigit()
    ]


def refuse_unknown_capability(family: Family, capability: str) -> None:
    """Refuse a compute capability, given as ``8.9``, that the family cannot build for without that GPU at hand.

    Raises:
        UsageError: TensorRT for RTX does not know it, or this is not TensorRT for RTX.
    """
    known = compute_capabilities(family)
    if capability not in known:
        message = f"{family.title} cannot build for compute capability {capability}"
        raise UsageError(message, hint=f"choose one of {', '.join(known)}")


def target_capability(family: Family, config: trt.IBuilderConfig, capability: str) -> None:
    """Make a build be for one compute capability, given as ``8.9``, whatever GPU is at hand.

    Raises:
        UsageError: As for ``refuse_unknown_capability``.
    """
    refuse_unknown_capability(family, capability)
    _target(family, cast("rtx.IBuilderConfig", config), f"SM{capability.replace('.', '')}")


def _capability_members(family: Family) -> list[str]:
    if TYPE_CHECKING:
        import tensorrt_rtx as rtx
    else:
        rtx = family.bindings
    return list(rtx.ComputeCapability.__members__)


def _target(family: Family, config: rtx.IBuilderConfig, member: str) -> None:
    if TYPE_CHECKING:
        import tensorrt_rtx as rtx
    else:
        rtx = family.bindings
    config.num_compute_capabilities = 1
    config.set_compute_capability(rtx.ComputeCapability.__members__[member], 0)
