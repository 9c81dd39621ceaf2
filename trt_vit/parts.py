"""A run that several processes share, as the tasks of an array job do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Which of a run's shards one process does: every ``count``-th, from the ``number``-th on, counted from 1."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse a part that is none."""
        if not 1 <= self.number <= self.count:
            raise ValueError("a part is I/N with I from 1 to N")

    def has(self, shard: int) -> bool:
        """Tell whether a shard, counted from 0, is among them."""
        return shard % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
