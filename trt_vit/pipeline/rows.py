"""A result row: what every input gets exactly one of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of an image.

    Attributes:
        index: Class index.
        label: The checkpoint's label of the class.
        probability: Softmax probability, 0 to 1.
    """

    index: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one input.

    Attributes:
        path: The input as it was listed.
        error: Why it has no predictions, on one line, or None.
        topk: Its predictions, the most probable first; empty where there is an error.
    """

    path: str
    error: str | None
    topk: tuple[Prediction, ...]

    @property
    def status(self) -> str:
        """``ok`` or ``error``."""
        return "ok" if self.error is None else "error"


def count_failed(rows: Iterable[Row]) -> int:
    """Return how many of the rows are errors."""
    return sum(row.error is not None for row in rows)
