"""Plans: what tells two runs apart, and how their shards fall to parts."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_vit.config import resolve
from trt_vit.errors import UsageError
from trt_vit.parts import Part
from trt_vit.pipeline.plan import Plan, PlannedShard
from trt_vit.settings import ClassifySettings
from trt_vit.sources.shard import file_shards

if TYPE_CHECKING:
    from pathlib import Path

SHARDS = st.lists(st.builds(PlannedShard, st.none() | st.integers(0, 9), st.text(), st.text()), max_size=6)
PLANS = st.builds(
    Plan, SHARDS, st.text(), st.dictionaries(st.text(), st.none() | st.integers() | st.text(), max_size=3)
)


def plan(*digests: str, images: int | None = 2, bundle: str = "b", **settings: Any) -> Plan:
    return Plan([PlannedShard(images, digest, f"shard {digest}") for digest in digests], bundle, settings)


@given(PLANS)
def test_a_plan_survives_being_written_down(written: Plan) -> None:
    read = Plan.parse(json.loads(json.dumps(written.document())))
    assert read == written
    assert read.differences(written) == []


@given(PLANS, PLANS)
def test_plans_that_differ_in_their_shards_or_bundle_are_told_apart(one: Plan, other: Plan) -> None:
    same = [shard.digest for shard in one.shards] == [shard.digest for shard in other.shards]
    if one.bundle != other.bundle or (not same and "shard_size" not in {**one.settings, **other.settings}):
        assert one.differences(other) != []
        assert other.differences(one) != []


@pytest.mark.parametrize(
    ("now", "earlier", "found"),
    [
        (plan("a", top_k=3), plan("a", top_k=5), ["top_k was 5, now it is 3"]),
        (plan("a", top_k=3), plan("a"), ["top_k was None, now it is 3"]),
        (plan("a", bundle="c"), plan("a"), ["the bundle was another"]),
        (
            plan("a", "x", "y"),
            plan("a", "b", "c"),
            ["images in 2 of 3 shards are others or were written since, first among shard b"],
        ),
        (
            plan("a"),
            plan("a", "b"),
            [
                "there were 4 images, now there are 2",
                "images in 1 of 2 shards are others or were written since, first among shard b",
            ],
        ),
        (
            plan("a", "b"),
            plan("a"),
            ["there were 2 images, now there are 4", "there were 1 shards, now there are 2"],
        ),
        # Nobody knows how many images these have, so their number says nothing.
        (plan("a", "b", images=None), plan("a", images=None), ["there were 1 shards, now there are 2"]),
        (
            plan("a", images=None),
            plan("a"),
            ["there were 2 images, now there are an unknown number of"],
        ),
        # Cut otherwise, no shard is like the one of its number, and that says nothing about the images.
        (plan("x", "y", shard_size=1), plan("a", shard_size=4, images=4), ["shard_size was 4, now it is 1"]),
    ],
)
def test_the_difference_is_named(now: Plan, earlier: Plan, found: list[str]) -> None:
    assert now.differences(earlier) == found


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "plan",
        {},
        {"format": 2},
        {"format": 1, "bundle": "b", "settings": {}},
        {"format": 1, "bundle": "b", "settings": [1], "shards": []},
        {"format": 1, "bundle": "b", "settings": {}, "shards": {"a": 1}},
        {"format": 1, "bundle": "b", "settings": {}, "shards": [None]},
        {"format": 1, "bundle": "b", "settings": {}, "shards": [{"images": "2", "digest": "a", "name": "a"}]},
        {"format": 1, "bundle": "b", "settings": {}, "shards": [{"images": [2], "digest": "a", "name": "a"}]},
    ],
)
def test_what_is_no_plan_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match=r"it is not a plan|another version|dictionary"):
        Plan.parse(document)


@dataclass
class FakeFile:
    sha256: str


@dataclass
class FakeManifest:
    files: dict[str, FakeFile]


@dataclass
class FakeBundle:
    manifest: FakeManifest = field(default_factory=lambda: FakeManifest({"engine": FakeFile("1")}))


def test_a_digest_changes_with_a_files_name_size_and_time(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for file in files[:3]:
        file.write_bytes(b"12")
        os.utime(file, ns=(0, 10**18))

    def planned() -> Plan:
        return Plan.of(file_shards([str(file) for file in files], 1), FakeBundle(), {})  # type: ignore[arg-type]

    before = planned()
    assert planned() == before
    assert before.images == 4
    os.utime(files[0], ns=(0, 10**18 + 1))
    files[1].write_bytes(b"123")
    os.utime(files[1], ns=(0, 10**18))
    files[2].rename(tmp_path / "other.png")
    (tmp_path / "3.png").write_bytes(b"")
    changed = [now.digest != then.digest for now, then in zip(planned().shards, before.shards, strict=True)]
    assert changed == [True, True, True, True]


@given(st.integers(0, 60), st.integers(1, 20))
def test_every_shard_is_in_exactly_one_part(shards: int, count: int) -> None:
    parts = [Part(number, count) for number in range(1, count + 1)]
    found = sorted(shard for part in parts for shard in range(shards) if part.has(shard))
    assert found == list(range(shards))


@pytest.mark.parametrize(("number", "count"), [(0, 2), (3, 2), (-1, 2), (1, 0), (0, 0)])
def test_a_part_that_is_none_cannot_be_made(number: int, count: int) -> None:
    with pytest.raises(ValueError, match="a part is I/N with I from 1 to N"):
        Part(number, count)


@pytest.mark.parametrize(
    "value", ["0/2", "3/2", "1/0", "1", "a/b", "1/2/3", "-1/2", "1.0/2", "", "1/2\n", {"number": 5, "count": 2}, 7]
)
def test_a_value_that_names_no_part_is_refused_with_a_hint(value: Any) -> None:
    flags = {"inputs": ["a.png"], "output": "o.jsonl", "shard": value}
    with pytest.raises(UsageError, match="--shard") as caught:
        resolve(ClassifySettings, flags, environment={})
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_part_is_read() -> None:
    flags = {"inputs": ["a.png"], "output": "o.jsonl", "shard": "3/16"}
    assert resolve(ClassifySettings, flags, environment={}).shard == Part(3, 16)
