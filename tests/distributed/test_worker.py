"""What workers do, without anything that spreads them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from trt_vit.distributed import worker
from trt_vit.distributed.site import Fault, Site
from trt_vit.distributed.worker import Engine, Piece, decode_shard, piece_size
from trt_vit.errors import ArtifactError, InputError
from trt_vit.images.source import list_images
from trt_vit.pipeline.classify import load_classifier
from trt_vit.pipeline.run import classify
from trt_vit.pipeline.stages import ON_THREADS
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.sources.item import FileItem
from trt_vit.sources.shard import FileShard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from trt_vit.engine.bundle import Bundle
    from trt_vit.pipeline.rows import Row

OPTIONS = RuntimeOptions(batch_size=4)


@pytest.fixture(autouse=True)
def _stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker goes to where the driver stands; these tests come back from there."""
    monkeypatch.chdir(tmp_path)
    worker._preprocessor.cache_clear()


@pytest.fixture
def paths(images: Path, tmp_path: Path) -> list[str]:
    """The images, with two among them that cannot be used."""
    copy = shutil.copytree(images, tmp_path / "images")
    (copy / "kind 0" / "broken.jpg").write_bytes(b"\xff\xd8\xffnot a picture")
    (copy / "kind 2" / "empty.png").touch()
    return list_images([str(copy)])


def site_of(bundle: Bundle, directory: Path) -> Site:
    return Site(directory, bundle.path, bundle.sha256)


def rows_of(bundle: Bundle, site: Site, paths: list[str], size: int, threads: int = 1) -> list[Row]:
    """Decode and classify as one worker after the other would."""
    engine = Engine(site, OPTIONS, 5)
    shard = FileShard(paths, 0, len(paths))
    decoded = decode_shard(site, (3, shard), size, threads, ON_THREADS)
    pieces = [engine.classify(piece, pixels) for piece, pixels in decoded]
    assert [piece.shard for piece in pieces] == [3] * len(pieces)
    assert [piece.first for piece in pieces] == list(range(0, len(paths), size))
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    return [row for piece in pieces for row in piece.rows]


class Kept:
    """A sink that keeps the rows."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def write(self, rows: Iterable[Row]) -> None:
        self.rows += rows

    def close(self) -> None: ...

    def discard(self) -> None: ...


@pytest.mark.parametrize("size", [4, 8, 13, 64])
def test_pieces_have_the_rows_of_the_pipeline(
    openvino_bundle: Bundle, paths: list[str], tmp_path: Path, size: int
) -> None:
    kept = Kept()
    classify(map(FileItem, paths), load_classifier(openvino_bundle, OPTIONS, k=5), kept, lambda _rows: None)
    assert rows_of(openvino_bundle, site_of(openvino_bundle, tmp_path), paths, size, threads=2) == kept.rows
    assert sum(row.error is not None for row in kept.rows) == 2


def test_a_piece_in_which_nothing_can_be_used_is_not_inferred(openvino_bundle: Bundle, tmp_path: Path) -> None:
    names = [str(tmp_path / f"{number}.jpg") for number in range(5)]
    site = site_of(openvino_bundle, tmp_path)
    piece, pixels = next(decode_shard(site, (0, FileShard(names, 0, 5)), 8, 1, ON_THREADS))
    found = Engine(site, OPTIONS, 5).classify(piece, pixels)
    assert [row.path for row in found.rows] == names
    assert all("No such file" in (row.error or "") for row in found.rows)
    assert found.seconds["infer"] == 0
    assert found.seconds["read"] > 0


def test_a_shard_without_images_has_one_piece_that_is_empty(openvino_bundle: Bundle, tmp_path: Path) -> None:
    pieces = list(decode_shard(site_of(openvino_bundle, tmp_path), (7, FileShard([], 0, 0)), 8, 1, ON_THREADS))
    assert [(piece.first, piece.names, piece.last) for piece, _ in pieces] == [(0, [], True)]
    assert pieces[0][1].shape == (0, 32, 32, 3)


@dataclass(frozen=True)
class FailingShard(FileShard):
    """Files whose list ends with an error."""

    def items(self) -> Iterator[FileItem]:
        yield from super().items()
        raise InputError("the list has gone", hint="put it back")


def test_what_ends_a_shard_reaches_the_driver(openvino_bundle: Bundle, paths: list[str], tmp_path: Path) -> None:
    site = site_of(openvino_bundle, tmp_path)
    engine = Engine(site, OPTIONS, 5)
    pieces = [engine.classify(*pair) for pair in decode_shard(site, (0, FailingShard(paths, 0, 9)), 4, 1, ON_THREADS)]
    assert [piece.fault for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].fault == Fault(InputError, "the list has gone", "put it back")
    assert pieces[-1].rows == []
    with pytest.raises(InputError, match=r"the list has gone \(put it back\)"):
        pieces[-1].fault.throw()


def test_an_engine_that_does_not_load_is_the_fault_of_each_piece(openvino_bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(openvino_bundle.path, tmp_path / "bundle")
    (copy / "engine.bin").write_bytes(b"changed")
    engine = Engine(Site(tmp_path, copy, openvino_bundle.sha256), OPTIONS, 5)
    found = engine.classify(Piece(0, 0, ["a.jpg"], [None]), np.zeros((1, 32, 32, 3), np.uint8))
    assert found.fault is not None
    assert found.fault.kind is ArtifactError
    assert str(copy) in found.fault.message


@pytest.mark.parametrize(("batch", "size"), [(1, 64), (8, 64), (24, 48), (64, 64), (128, 128)])
def test_a_piece_is_of_whole_batches(batch: int, size: int) -> None:
    assert piece_size(batch) == size
