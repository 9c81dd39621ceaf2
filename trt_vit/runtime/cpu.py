"""What the CPU runtimes need to know of the machine."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return how many cores this process may run on: the affinity mask, not the machine's count."""
    return len(os.sched_getaffinity(0))
