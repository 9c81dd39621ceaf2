"""Names for what a thread is doing, which NVIDIA's profilers show. Without the package nvtx they cost nothing."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

_DOMAIN = "trt_vit"


def stage(name: str) -> AbstractContextManager[Any]:
    """Name what happens in a ``with`` block, and what it enqueues, after a stage."""
    package = _nvtx()
    return nullcontext() if package is None else package.annotate(name, domain=_DOMAIN)


@cache
def _nvtx() -> Any:
    try:
        import nvtx  # noqa: PLC0415 - late, and only where it is installed
    except ImportError:
        return None
    return nvtx
