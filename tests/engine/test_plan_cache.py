from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from trt_vit.engine import plan_cache
from trt_vit.engine.layers import EngineLayer
from trt_vit.engine.plan import Plan
from trt_vit.engine.plan_cache import PlanCache, key_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAYERS = [EngineLayer("fc1", "gemm", ("node_fc1", "node_gelu"), ("int8", "fp16")), EngineLayer("s", "kgen", (), ())]


def plan(data: bytes = b"plan") -> Plan:
    return Plan(data, LAYERS, 324)


def test_a_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "not" / "there")
    assert cache.get("key") is None
    cache.put("key", plan())
    assert cache.get("key") == plan()
    assert cache.get("other") is None
    cache.put("key", plan(b"another"))
    assert cache.get("key") == plan(b"another")
    assert [entry.name for entry in cache.directory.iterdir()] == ["key"]


def test_the_directory_is_its_owners_alone(tmp_path: Path) -> None:
    PlanCache(tmp_path / "plans").put("key", plan())
    assert stat.S_IMODE((tmp_path / "plans").stat().st_mode) == 0o700


def change(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(entry: Path) -> None:
        (entry / name).write_bytes(edit((entry / name).read_bytes()))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        change("engine.plan", lambda _: b""),
        change("engine.plan", lambda data: data[:-1] + b"N"),
        change("plan.json", lambda _: b""),
        change("plan.json", lambda _: b"[]"),
        change("plan.json", lambda _: b"{}"),
        change("plan.json", lambda data: data.replace(b"gemm", b"kgen")),
        change("plan.json", lambda data: data.replace(b"324", b"325")),
        change("plan.json", lambda data: data.replace(b'"kind"', b'"sort"')),
        change("plan.json", lambda data: data.replace(b'"node_fc1"', b"[1]")),
        lambda entry: (entry / "engine.plan").unlink(),
        lambda entry: (entry / "plan.json").unlink(),
    ],
)
def test_what_was_damaged_is_not_used_and_can_be_replaced(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    cache = PlanCache(tmp_path)
    cache.put("key", plan())
    damage(tmp_path / "key")
    assert cache.get("key") is None
    cache.put("key", plan())
    assert cache.get("key") == plan()


def test_the_longest_unused_plans_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "LIMIT_BYTES", 32_000)
    cache = PlanCache(tmp_path)
    for number, key in enumerate("abc"):
        cache.put(key, plan(bytes(10_000)))
        os.utime(tmp_path / key, (number, number))
    assert cache.get("a") is not None  # so b is the longest unused
    cache.put("d", plan(bytes(10_000)))
    assert {entry.name for entry in tmp_path.iterdir()} == {"a", "c", "d"}
    cache.put("e", plan(bytes(20_000)))
    assert {entry.name for entry in tmp_path.iterdir()} == {"d", "e"}


def test_what_is_not_a_plan_stays_and_does_not_disturb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "LIMIT_BYTES", 1)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    cache = PlanCache(tmp_path)
    cache.put("key", plan())
    assert cache.get("key") == plan()
    assert {entry.name for entry in tmp_path.iterdir()} == {"notes.txt", "folder", "key"}


def full_disk(*_: object) -> int:
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_no_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PlanCache(tmp_path / "plans")
    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    cache.put("key", plan())
    assert list(cache.directory.iterdir()) == []


def test_a_place_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = PlanCache(tmp_path / "file" / "plans")
    cache.put("key", plan())
    assert cache.get("key") is None


def test_a_read_only_cache_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PlanCache(tmp_path)
    cache.put("key", plan())

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.get("key") == plan()


def test_the_key_is_of_the_graph_its_weights_and_the_facts(tmp_path: Path) -> None:
    onnx, weights = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    onnx.write_bytes(b"graph")
    facts = {"version": "1.7", "batch": "1,4,8"}
    keys = [key_of(onnx, facts), key_of(onnx, {**facts, "batch": "1,4,9"})]
    weights.write_bytes(b"weights")
    keys.append(key_of(onnx, facts))
    weights.write_bytes(b"Weights")
    keys.append(key_of(onnx, facts))
    onnx.write_bytes(b"Graph")
    keys.append(key_of(onnx, facts))
    assert len(set(keys)) == 5
    assert key_of(onnx, dict(reversed(facts.items()))) == keys[-1]
    assert all(len(key) == 64 for key in keys)


def test_nothing_is_taken_from_where_others_can_write(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "plans")
    cache.put("key", plan())
    assert cache.get("key") == plan()
    cache.directory.chmod(0o777)
    assert cache.get("key") is None
    cache.directory.chmod(0o700)
    (cache.directory / "key").chmod(0o775)
    assert cache.get("key") is None
    (cache.directory / "key").chmod(0o700)
    (cache.directory / "link").symlink_to(cache.directory / "key")
    assert cache.get("link") is None
    assert cache.get("key") == plan()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    (tmp_path / ".old.partial").mkdir()
    (tmp_path / ".new.partial").mkdir()
    os.utime(tmp_path / ".old.partial", (0, 0))
    cache.put("key", plan())
    assert {path.name for path in tmp_path.iterdir()} == {"key", ".new.partial"}
