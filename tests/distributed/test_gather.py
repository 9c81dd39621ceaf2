"""Rows of shards, put together from pieces that come in any order and more than once."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trt_vit.distributed.gather import Gatherer
from trt_vit.distributed.site import Fault
from trt_vit.distributed.worker import Piece
from trt_vit.errors import EnvironmentFault
from trt_vit.parts import Part
from trt_vit.pipeline.assemble import assemble
from trt_vit.pipeline.journal import Journal, open_journal
from trt_vit.pipeline.plan import Plan, PlannedShard
from trt_vit.pipeline.rows import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = (5, 0, 1, 8, 4)
"""Images of each shard."""


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    plan = Plan([PlannedShard(size, str(size), "") for size in SIZES], "bundle", {"top_k": 1})
    with open_journal(tmp_path / "o.jsonl", plan, Part(), print, resume=True) as journal:
        yield journal


def pieces(size: int = 4) -> list[Piece]:
    """Return the pieces of all shards, every third image failed."""
    found = []
    for shard, images in enumerate(SIZES):
        rows = [Row(f"{shard}-{number}", None if number % 3 else "broken", ()) for number in range(images)]
        for first in range(0, max(1, images), size):
            last = first + size >= images
            found.append(Piece(shard, first, last=last, rows=rows[first : first + size], seconds={"infer": 0.5}))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_rows_come_out_in_order_and_once(journal: Journal, seed: int) -> None:
    gatherer = Gatherer(journal)
    coming = [*pieces(), *pieces()]
    random.Random(seed).shuffle(coming)  # noqa: S311 - an order, not a secret
    told = [row for piece in coming for row in gatherer.add(piece)]
    assert journal.pending == []
    assert journal.finish(assemble) is not None
    names = [json.loads(line)["path"] for line in Path(str(journal.output)).read_text().splitlines()]
    assert names == [f"{shard}-{number}" for shard, images in enumerate(SIZES) for number in range(images)]
    assert sorted(row.path for row in told) == sorted(names)
    summary = gatherer.summary(2.0)
    assert (summary.images, summary.failed, summary.seconds) == (18, 8, 2.0)
    assert summary.stages["infer"] == 0.5 * len(pieces())


def test_a_shard_is_committed_with_its_last_piece_and_not_before(journal: Journal) -> None:
    gatherer = Gatherer(journal)
    first, last = (piece for piece in pieces() if piece.shard == 0)
    gatherer.add(last)
    assert journal.commits == {}
    assert not journal.file_of(0).exists()
    gatherer.add(first)
    assert (journal.commits[0].images, journal.commits[0].failed) == (5, 2)


def test_a_fault_is_raised(journal: Journal) -> None:
    piece = Piece(0, 0, fault=Fault(EnvironmentFault, "the engine failed", "try less"))
    with pytest.raises(EnvironmentFault, match=r"the engine failed \(try less\)"):
        Gatherer(journal).add(piece)
    assert journal.commits == {}
