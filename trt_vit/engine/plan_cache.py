"""Built plans, kept: the same graph, settings, versions and GPU never build twice.

A plan is native code, and the digest beside it shows damage, not who wrote it: nothing is taken from a directory that
others can write to.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_vit.caches import make_private, only_ours
from trt_vit.engine.layers import EngineLayer
from trt_vit.engine.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMIT_BYTES = 16 * 2**30
"""Plans above this, the longest unused first, are removed when another is stored."""

_ABANDONED_SECONDS = 24 * 3600
"""Age of what a process that was killed has left half-written."""
_PLAN = "engine.plan"
_FACTS = "plan.json"


def key_of(onnx: Path, facts: Mapping[str, Any]) -> str:
    """Return the digest of all that decides what a build gives.

    Args:
        onnx: The graph, its external weights beside it.
        facts: Whatever else does: settings, versions, the GPU; JSON-ready.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for file in sorted(onnx.parent.glob(f"{onnx.name}*")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


@dataclass(frozen=True)
class PlanCache:
    """Plans by key, each in a directory of its own.

    Attributes:
        directory: Where they lie; made when something is stored.
    """

    directory: Path

    def get(self, key: str) -> Plan | None:
        """Return the plan that was stored under ``key``; None if there is none, or one that is damaged or not ours."""
        entry = self.directory / key
        try:
            if not (only_ours(self.directory) and only_ours(entry)):
                return None
            facts = json.loads((entry / _FACTS).read_text(encoding="utf-8"))
            data = (entry / _PLAN).read_bytes()
            layers = [
                EngineLayer(**{name: _frozen(value) for name, value in layer.items()}) for layer in facts["layers"]
            ]
            plan = Plan(data, layers, facts["weights_bytes"])
            if _digest(plan) != facts["sha256"]:
                return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        with suppress(OSError):  # another user's cache is read all the same
            os.utime(entry)
        return plan

    def put(self, key: str, plan: Plan) -> None:
        """Store a plan, whole or not at all. A full or read-only disk is no error: the plan is built again then."""
        facts = {
            "sha256": _digest(plan),
            "weights_bytes": plan.weights_bytes,
            "layers": [asdict(layer) for layer in plan.layers],
        }
        try:
            make_private(self.directory)
            self._make_room(len(plan.data))
            with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=self.directory) as scratch:
                work = Path(scratch, key)
                work.mkdir(mode=0o700)
                (work / _PLAN).write_bytes(plan.data)
                (work / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
                shutil.rmtree(self.directory / key, ignore_errors=True)
                work.rename(self.directory / key)
        except OSError:
            return

    def _make_room(self, wanted: int) -> None:
        for entry in self.directory.glob(".*.partial"):
            if entry.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
        entries = [entry for entry in self.directory.iterdir() if (entry / _FACTS).is_file()]
        sizes = {entry: _size(entry) for entry in entries}
        total = sum(sizes.values()) + wanted
        for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime):
            if total <= LIMIT_BYTES:
                return
            shutil.rmtree(entry, ignore_errors=True)
            total -= sizes[entry]


def _digest(plan: Plan) -> str:
    """Return the digest of a plan and of what is known about it."""
    facts = [plan.weights_bytes, [asdict(layer) for layer in plan.layers]]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(plan.data)
    return digest.hexdigest()


def _size(entry: Path) -> int:
    return sum(file.stat().st_size for file in entry.iterdir())


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
