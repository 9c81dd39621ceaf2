"""The user's cache directory, which holds what can be made again: plans, measurements, compiled kernels."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_directory() -> Path:
    """Return ``$XDG_CACHE_HOME/trt-vit``, or ``~/.cache/trt-vit``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "trt-vit")


def replace_file(path: Path, data: bytes) -> None:
    """Write a file in one step: whoever reads it finds the old one or the new one, and two writers do not mix.

    Missing directories are made for their owner alone, as what is cached may be native code.

    Raises:
        OSError: It cannot be written; the old one is still there.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
