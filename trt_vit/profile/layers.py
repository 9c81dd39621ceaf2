"""Where an engine's time goes: its layers by kind and number format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trt_vit.runtime.protocol import LayerTime


@dataclass(frozen=True)
class LayerGroup:
    """The layers of one kind and number format.

    Attributes:
        kind: The library's word for what they are.
        precision: The number format they compute in.
        layers: How many there are.
        seconds: What they take together for a batch.
        share: Of the time of all layers, 0 to 1.
    """

    kind: str
    precision: str
    layers: int
    seconds: float
    share: float


def group_layers(layers: Sequence[LayerTime]) -> list[LayerGroup]:
    """Return the groups of an engine's layers, those that take longest first."""
    total = sum(layer.seconds for layer in layers)
    groups: dict[tuple[str, str], list[float]] = {}
    for layer in layers:
        groups.setdefault((layer.kind, layer.precision), []).append(layer.seconds)
    found = [
        LayerGroup(kind, precision, len(times), sum(times), sum(times) / total if total else 0.0)
        for (kind, precision), times in groups.items()
    ]
    return sorted(found, key=lambda group: -group.seconds)
