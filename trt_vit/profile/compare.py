"""Two profiles of the same bundle: what is faster, what slower, and what only seems so."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_vit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trt_vit.profile.sweep import Point

_HINT = "name a file with what trt-vit profile --json has printed"


@dataclass(frozen=True)
class OldPoint:
    """A point of an earlier run.

    Attributes:
        batch_size: Images a batch.
        lanes: Batches in flight.
        mean: Images a second.
        noise: Standard error of the mean, as a share of it.
    """

    batch_size: int
    lanes: int
    mean: float
    noise: float


@dataclass(frozen=True)
class Change:
    """A point against an earlier run of the same.

    Attributes:
        batch_size: Images a batch.
        lanes: Batches in flight.
        before: Images a second then.
        after: Images a second now.
        ratio: The one over the other.
        noise: What the ratio may differ from 1 by without meaning anything: two standard errors of both together.
        verdict: ``faster``, ``slower``, or ``the same`` within the noise.
    """

    batch_size: int
    lanes: int
    before: float
    after: float
    ratio: float
    noise: float
    verdict: str


def read_points(file: Path) -> list[OldPoint]:
    """Read the points of an earlier document.

    Raises:
        UsageError: It cannot be read, or is none.
    """
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["points"]
        found = [(int(row["batch_size"]), int(row["lanes"]), row["throughput"]) for row in rows]
        points = [OldPoint(size, lanes, float(rate["mean"]), float(rate["noise"])) for size, lanes, rate in found]
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", hint=_HINT) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is not the document of a profile", hint=_HINT) from error
    return points


def compare_points(old: Sequence[OldPoint], new: Sequence[Point]) -> list[Change]:
    """Hold points against those of an earlier run; those that it has not are left out."""
    earlier = {(point.batch_size, point.lanes): point for point in old}
    changes = []
    for point in new:
        before, now = earlier.get((point.batch_size, point.lanes)), point.throughput
        if before is None or before.mean <= 0:
            continue
        ratio, noise = now.mean / before.mean, 2 * math.hypot(before.noise, now.noise)
        verdict = "the same" if abs(ratio - 1) <= noise else "faster" if ratio > 1 else "slower"
        changes.append(Change(point.batch_size, point.lanes, before.mean, now.mean, ratio, noise, verdict))
    return changes
