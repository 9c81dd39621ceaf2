from __future__ import annotations

import multiprocessing
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import pytest

from trt_vit.cuda.driver import Gpu
from trt_vit.engine import timing_cache
from trt_vit.engine.timing_cache import TimingCache
from trt_vit.runtime.tensorrt_family import Family

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier
    from pathlib import Path

MAGIC = b"timings:"


class FakeCache:
    """Measurements by name. What does not begin as it should is of another version."""

    def __init__(self, data: bytes) -> None:
        self.fits = not data or data.startswith(MAGIC)
        self.known = set(data.removeprefix(MAGIC).split()) if self.fits else set[bytes]()

    def combine(self, other: FakeCache, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.known |= other.known
        return other.fits

    def serialize(self) -> bytes:
        return MAGIC + b" ".join(sorted(self.known))


class FakeConfig:
    """A builder's configuration. ``accepts_nothing`` is TensorRT that gives no cache for data that it cannot read."""

    def __init__(self, *, gives_none: bool = False) -> None:
        self.cache: FakeCache | None = None
        self._gives_none = gives_none

    def create_timing_cache(self, data: bytes) -> FakeCache | None:
        cache = FakeCache(data)
        return None if self._gives_none and not cache.fits else cache

    def set_timing_cache(self, cache: FakeCache, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.fits:
            self.cache = cache
        return cache.fits

    def get_timing_cache(self) -> FakeCache | None:
        return self.cache


def timings(directory: Path, version: str = "11.4.0", gpu: str = "NVIDIA L4", capability: str = "8.9") -> TimingCache:
    return TimingCache(directory, Family("tensorrt", ModuleType("tensorrt"), version), Gpu(gpu, capability, 1))


def measure(cache: TimingCache, *names: bytes, config: Any = None) -> set[bytes]:
    """Build once and measure some things; return what was known before."""
    config = config or FakeConfig()
    cache.give(config)
    before = set(config.cache.known)
    config.cache.known |= set(names)
    cache.take(config)
    return before


def test_a_later_build_knows_what_an_earlier_one_measured(tmp_path: Path) -> None:
    cache = timings(tmp_path / "not" / "there")
    assert measure(cache, b"gemm") == set()
    assert measure(cache, b"softmax") == {b"gemm"}
    assert measure(cache) == {b"gemm", b"softmax"}


def test_measurements_that_others_can_have_written_are_not_used(tmp_path: Path) -> None:
    cache = timings(tmp_path / "timings")
    cache.path.parent.mkdir()
    cache.path.write_bytes(MAGIC + b"hostile")
    cache.path.parent.chmod(0o777)
    config = FakeConfig()
    cache.give(cast("Any", config))
    assert config.cache is not None
    assert config.cache.known == set()
    (tmp_path / "victim").write_text("mine")
    cache.path.with_suffix(".lock").symlink_to(tmp_path / "victim")
    cache.take(cast("Any", config))
    assert (tmp_path / "victim").read_text() == "mine"
    assert cache.path.read_bytes() == MAGIC + b"hostile"


def test_each_version_and_gpu_has_its_own(tmp_path: Path) -> None:
    others = [timings(tmp_path, version="11.5.0"), timings(tmp_path, gpu="A/B"), timings(tmp_path, capability="9.0")]
    measure(timings(tmp_path), b"gemm")
    assert all(measure(other) == set() for other in others)
    assert len(list(tmp_path.glob("*.timing"))) == 4
    assert timings(tmp_path).path.name == "tensorrt-11.4.0-NVIDIA-L4-sm8.9.timing"


@pytest.mark.parametrize("gives_none", [False, True])
def test_a_file_that_tensorrt_does_not_accept_counts_as_none(tmp_path: Path, *, gives_none: bool) -> None:
    cache = timings(tmp_path)
    cache.path.write_bytes(b"of another version")
    assert measure(cache, b"gemm", config=FakeConfig(gives_none=gives_none)) == set()
    assert cache.path.read_bytes() == b"timings:gemm"


def test_what_another_build_stored_meanwhile_is_kept(tmp_path: Path) -> None:
    cache, config = timings(tmp_path), FakeConfig()
    cache.give(cast("Any", config))
    measure(timings(tmp_path), b"softmax")
    assert config.cache is not None
    config.cache.known.add(b"gemm")
    cache.take(cast("Any", config))
    assert cache.path.read_bytes() == b"timings:gemm softmax"


def test_the_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    cache = timings(tmp_path)
    measure(cache, b"gemm")
    with cache.path.open("rb") as reader:
        measure(cache, b"softmax")
        assert reader.read() == b"timings:gemm"
    assert {file.suffix for file in tmp_path.iterdir()} == {".timing", ".lock"}


def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = timings(tmp_path)
    measure(cache, b"gemm")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(timing_cache, "replace_file", full)
    assert measure(cache, b"softmax") == {b"gemm"}
    assert cache.path.read_bytes() == b"timings:gemm"


def test_a_place_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert measure(timings(tmp_path / "file" / "timings"), b"gemm") == set()


def build_often(directory: Path, name: str, start: Barrier) -> None:
    start.wait()
    for number in range(40):
        measure(timings(directory), f"{name}{number}".encode())


def test_two_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    processes = [context.Process(target=build_often, args=(tmp_path, name, start)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    expected = {f"{name}{number}".encode() for name in "ab" for number in range(40)}
    assert measure(timings(tmp_path)) == expected
