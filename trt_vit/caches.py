"""The user's cache directory, which holds what can be made again: plans, measurements, compiled kernels."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def cache_directory() -> Path:
    """Return ``$XDG_CACHE_HOME/trt-vit``, or ``~/.cache/trt-vit``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "trt-vit")


def make_private(directory: Path) -> None:
    """Make a directory, and those above it that are missing, for their owner alone: what is cached may be native code.

    Raises:
        OSError: It cannot be made.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


def only_ours(path: Path) -> bool:
    """Tell whether a directory is one that nobody but its owner can write to, the owner being this user or root."""
    status = path.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    return stat.S_ISDIR(status.st_mode) and status.st_uid in {0, os.geteuid()} and not status.st_mode & others


def replace_file(path: Path, data: bytes) -> None:
    """Write a file in one step: whoever reads it finds the old one or the new one, and two writers do not mix.

    Raises:
        OSError: It cannot be written; the old one is still there.
    """
    make_private(path.parent)
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
