"""Built plans, kept: the same graph, settings, versions and GPU never build twice.

A plan is native code, and the digest beside it shows damage, not who wrote it: nothing is taken from a directory that
others can write to.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from trt_vit.caches import FileCache, digest_of
from trt_vit.engine.layers import EngineLayer
from trt_vit.engine.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LIMIT_BYTES = 16 * 2**30
"""Plans above this, the longest unused first, are removed when another is stored."""

_PLAN = "engine.plan"
_FACTS = "plan.json"


def key_of(onnx: Path, facts: Mapping[str, Any]) -> str:
    """Return the digest of all that decides what a build gives.

    Args:
        onnx: The graph, its external weights beside it.
        facts: Whatever else does: settings, versions, the GPU; JSON-ready.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(digest_of(onnx).encode())
    return digest.hexdigest()


class PlanCache:
    """Plans by key."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = FileCache(directory, LIMIT_BYTES)

    def get(self, key: str) -> Plan | None:
        """Return the plan that was stored under ``key``; None if there is none, or one that is damaged or not ours."""
        return self._files.get(key, _load)

    def put(self, key: str, plan: Plan) -> None:
        """Store a plan, whole or not at all. A full or read-only disk is no error: the plan is built again then."""
        self._files.put(key, lambda entry: _save(entry, plan))


def _load(entry: Path) -> Plan | None:
    facts = json.loads((entry / _FACTS).read_text(encoding="utf-8"))
    data = (entry / _PLAN).read_bytes()
    layers = [EngineLayer(**{name: _frozen(value) for name, value in layer.items()}) for layer in facts["layers"]]
    plan = Plan(data, layers, facts["weights_bytes"])
    return plan if _digest(plan) == facts["sha256"] else None


def _save(entry: Path, plan: Plan) -> None:
    facts = {
        "sha256": _digest(plan),
        "weights_bytes": plan.weights_bytes,
        "layers": [asdict(layer) for layer in plan.layers],
    }
    (entry / _PLAN).write_bytes(plan.data)
    (entry / _FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _digest(plan: Plan) -> str:
    """Return the digest of a plan and of what is known about it."""
    facts = [plan.weights_bytes, [asdict(layer) for layer in plan.layers]]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(plan.data)
    return digest.hexdigest()


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
