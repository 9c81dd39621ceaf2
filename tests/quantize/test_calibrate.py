from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quantize.graphs import evaluate
from trt_vit.caches import FileCache
from trt_vit.quantize import calibrate as calibrating
from trt_vit.quantize.attention import attention_behind
from trt_vit.quantize.calibrate import Calibration, calibrate, split
from trt_vit.quantize.linear import groups, linear_layers
from trt_vit.quantize.statistics import Statistics, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

PATHS = tuple(f"{number:02}.png" for number in range(20))
FACTS: dict[str, Any] = {"graph": "1", "images": "2"}


@dataclass
class Reader:
    """Makes an image of every path's name, in batches of 4, and keeps which were asked for."""

    filled: bool = False
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self, paths: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        self.asked.append(tuple(paths))
        for start in range(0, len(paths), 4):
            batch = list(paths[start : start + 4])
            if self.filled:
                batch += list(paths[: 4 - len(batch)])
            yield images(batch)


def images(paths: Sequence[str]) -> NDArray[np.float32]:
    generators = [np.random.default_rng(int(path[:2])) for path in paths]
    return np.stack([generator.standard_normal((3, 32, 32), dtype=np.float32) for generator in generators])


@dataclass
class Bench:
    """Calibrates one graph with one cache."""

    model: ir.Model
    cache: FileCache
    told: list[tuple[str, int, int]] = field(default_factory=list)

    def __call__(
        self, reader: Reader, paths: Sequence[str] = PATHS, facts: dict[str, Any] | None = None
    ) -> Calibration:
        return calibrate(
            self.model, paths, reader, cache=self.cache, facts=facts or FACTS, tell=lambda *told: self.told.append(told)
        )

    @property
    def file(self) -> Path:
        (entry,) = self.cache.directory.iterdir()
        return entry / "calibration.npz"


@pytest.fixture
def bench(vit: ir.Model, tmp_path: Path) -> Bench:
    return Bench(vit, FileCache(tmp_path / "calibrations", 10**9))


def assert_same(one: Calibration, other: Calibration) -> None:
    assert_same_statistics(one.statistics, other.statistics)
    np.testing.assert_array_equal(one.reference, other.reference)
    for first, second in zip(one.held_back, other.held_back, strict=True):
        np.testing.assert_array_equal(first, second)


def assert_same_statistics(one: Statistics, other: Statistics) -> None:
    assert list(one.groups) == list(other.groups)
    for name, halves in one.groups.items():
        for half, again in zip(halves, other.groups[name], strict=True):
            for part in ("low", "high", "rows"):
                np.testing.assert_array_equal(getattr(half, part), getattr(again, part))
                assert getattr(half, part).dtype == getattr(again, part).dtype
    assert one.largest == other.largest
    np.testing.assert_array_equal(one.logits, other.logits)


@settings(max_examples=60)
@given(st.integers(0, 600))
def test_images_are_measured_or_held_back(count: int) -> None:
    paths = [f"{number}" for number in range(count)]
    measured, held_back = split(paths)
    if count < 8:
        assert (measured, held_back) == (paths, paths)
    else:
        assert [*measured, *held_back] == paths
        assert len(held_back) == min(count // 2, 128)


def test_ranges_come_from_some_images_and_the_reference_from_the_others(bench: Bench) -> None:
    reader = Reader()
    calibration = bench(reader)
    assert sorted(path for asked in reader.asked for path in asked) == list(PATHS)
    attention = [
        str(value.name)
        for layer in linear_layers(bench.model)
        if (found := attention_behind(layer.activation)) is not None
        for value in found.tensors
    ]
    assert len(attention) == 3
    expected = measure(bench.model, list(Reader()(PATHS[:10])), images=10, also=attention)
    assert_same_statistics(calibration.statistics, expected)
    assert set(calibration.statistics.groups) == {group.name for group in groups(linear_layers(bench.model))}
    assert set(attention) <= calibration.statistics.largest.keys()
    held_back = images(PATHS[10:])
    np.testing.assert_array_equal(np.concatenate(calibration.held_back), held_back)
    np.testing.assert_allclose(calibration.reference, evaluate(bench.model, held_back), rtol=1e-4, atol=1e-5)
    assert bench.told == [("calibrating", 4, 10), ("calibrating", 8, 10), ("calibrating", 10, 10)]


def test_few_images_are_used_for_both(bench: Bench) -> None:
    calibration = bench(Reader(), PATHS[:5])
    np.testing.assert_array_equal(np.concatenate(calibration.held_back), images(PATHS[:5]))
    np.testing.assert_allclose(calibration.statistics.logits, calibration.reference, rtol=1e-5, atol=1e-5)


def test_what_a_batch_is_filled_with_has_no_reference(bench: Bench) -> None:
    calibration = bench(Reader(filled=True))
    assert [len(batch) for batch in calibration.held_back] == [4, 4, 4]
    assert len(calibration.reference) == 10
    np.testing.assert_allclose(calibration.reference, evaluate(bench.model, images(PATHS[10:])), rtol=1e-4, atol=1e-5)
    assert bench.told[-1] == ("calibrating", 10, 10)


def test_what_was_measured_is_not_measured_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench(Reader())
    bench.told.clear()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("run again")

    monkeypatch.setattr(calibrating, "measure", refuse)
    monkeypatch.setattr(calibrating, "run", refuse)
    reader = Reader()
    assert_same(bench(reader), first)
    assert reader.asked == [PATHS[10:]]  # which the agreement is measured on
    assert bench.told == []


def test_other_facts_are_measured_on_their_own(bench: Bench) -> None:
    bench(Reader())
    reader = Reader()
    bench(reader, facts=FACTS | {"images": "3"})
    assert PATHS[:10] in reader.asked
    assert len(list(bench.cache.directory.iterdir())) == 2
    again = Reader()
    bench(again, facts=dict(reversed(FACTS.items())))
    assert PATHS[:10] not in again.asked


def without(name: str) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        with np.load(file) as arrays:
            kept = {key: array for key, array in arrays.items() if key != name}
            assert len(kept) == len(arrays.files) - 1
        np.savez(file, **kept)

    return damage


def renamed(file: Path) -> None:
    with np.load(file) as arrays:
        changed = dict(arrays) | {"names": np.frombuffer(b"[1", np.uint8)}
    np.savez(file, **changed)


def turned(where: float) -> Callable[[Path], None]:
    """Damage a few bytes at a share of the file's length: of the data, which has a checksum, or the directory."""

    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        place = int(where * (len(data) - 8))
        data[place : place + 8] = bytes(255 - byte for byte in data[place : place + 8])
        file.write_bytes(data)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"PK"),
        lambda file: file.write_bytes(file.read_bytes()[:-100]),
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        lambda file: np.save(file.open("wb"), np.zeros(3)),
        turned(0.3),
        turned(0.6),
        turned(1.0),
        without("reference"),
        without("logits"),
        without("names"),
        without("0.0.low"),
        without("5.1.rows"),
        renamed,
    ],
)
def test_a_damaged_file_is_measured_again_and_replaced(bench: Bench, damage: Callable[[Path], None]) -> None:
    first = bench(Reader())
    damage(bench.file)
    reader = Reader()
    assert_same(bench(reader), first)
    assert PATHS[:10] in reader.asked
    again = Reader()
    assert_same(bench(again), first)
    assert PATHS[:10] not in again.asked


@pytest.mark.parametrize(("wanted", "batches"), [(1, 1), (7, 1), (8, 1), (9, 2), (16, 2), (17, 3), (19, 3), (99, 3)])
def test_as_many_batches_as_hold_so_many_images(wanted: int, batches: int) -> None:
    held_back = tuple(np.full((size, 3, 2, 2), index, np.float32) for index, size in enumerate((8, 8, 3)))
    calibration = Calibration(
        Statistics({}, {}, np.empty((0, 1), np.float32)), held_back, np.empty((19, 1), np.float32)
    )
    found = calibration.held_back_batches(wanted)
    assert [batch[0, 0, 0, 0] for batch in found] == list(range(batches))
