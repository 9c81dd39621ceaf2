"""Running something over and over for so long, the first time for warm-up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


def repeat_for(seconds: float, run: Callable[[], T], warmed: Callable[[], None] = lambda: None) -> Iterator[T]:
    """Call ``run`` once for warm-up, then until ``seconds`` have passed, at least once; give what it returned.

    Args:
        seconds: For how long.
        run: What to do.
        warmed: Called after the warm-up.
    """
    run()
    warmed()
    end = time.perf_counter() + seconds
    while True:
        yield run()
        if time.perf_counter() >= end:
            return
