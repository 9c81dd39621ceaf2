from __future__ import annotations

import hashlib
import threading
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from tests.support.fake_tensorrt import FakeCache
from tests.support.recording_device import RecordingDevice
from trt_vit.runtime.tensorrt_cache import KernelCache, cache_path
from trt_vit.runtime.tensorrt_family import Family

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KERNELS = b"kernels, compiled"


def family(version: str = "1.7.1") -> Family:
    return Family("tensorrt-rtx", ModuleType("tensorrt_rtx"), version)


def run(path: Path, count: int = 4) -> FakeCache:
    """Run one batch; return the library's cache."""
    cache = FakeCache()
    with KernelCache(cache, path).compiling(count):
        pass
    return cache


def test_kernels_are_read_back_by_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "a" / "kernels"
    assert run(path).given == []
    assert run(path).given == [KERNELS]
    assert path.read_bytes() == hashlib.sha256(KERNELS).digest() + KERNELS
    assert [other.name for other in path.parent.iterdir()] == ["kernels"]
    assert path.parent.stat().st_mode & 0o077 == 0
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data + b"!", lambda data: data[:10], lambda _data: b""]
)
def test_a_damaged_file_is_not_shown_to_the_library(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "kernels"
    run(path)
    path.write_bytes(damage(path.read_bytes()))
    assert run(path).given == []
    assert run(path).given == [KERNELS]  # and replaced


def test_kernels_that_others_can_have_written_are_not_shown_to_the_library(tmp_path: Path) -> None:
    path = tmp_path / "trt-vit" / "kernels" / "file"
    run(path)
    assert run(path).given == [KERNELS]
    for directory in (path.parent, path.parents[1]):
        directory.chmod(0o777)
        path.write_bytes(hashlib.sha256(b"hostile").digest() + b"hostile")
        assert run(path).given == []
        assert path.read_bytes().endswith(b"hostile")  # nor is anything left there
        directory.chmod(0o700)
    path.unlink()
    run(path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert run(path).given == []


def test_a_place_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run(tmp_path / "file" / "kernels")
    (tmp_path / "directory").mkdir()
    run(tmp_path / "directory")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "file"]


def test_each_engine_gpu_and_version_has_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device, other = RecordingDevice(), RecordingDevice()
    other.name = "Another GPU"
    paths = {
        cache_path(family(), b"plan", device),
        cache_path(family(), b"plan!", device),
        cache_path(family(), b"plan", other),
        cache_path(family("1.8.0"), b"plan", device),
    }
    assert len(paths) == 4
    assert {path.parent for path in paths} == {tmp_path / "trt-vit" / "kernels"}
    assert cache_path(family(), b"plan", device) in paths
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_path(family(), b"plan", device).parent == tmp_path / "home" / ".cache" / "trt-vit" / "kernels"


def test_lanes_compile_one_after_the_other_and_known_sizes_do_not_wait(tmp_path: Path) -> None:
    kernels = KernelCache(FakeCache(), tmp_path / "kernels")
    with kernels.compiling(4):
        pass
    entered = {count: threading.Event() for count in (4, 8)}

    def lane(count: int) -> None:
        with kernels.compiling(count):
            entered[count].set()

    with kernels.compiling(2):
        lanes = [threading.Thread(target=lane, args=(count,)) for count in entered]
        for thread in lanes:
            thread.start()
        assert entered[4].wait(5)
        assert not entered[8].wait(0.1)
    assert entered[8].wait(5)
    for thread in lanes:
        thread.join()


def test_a_batch_that_fails_is_compiled_again(tmp_path: Path) -> None:
    path = tmp_path / "kernels"
    kernels = KernelCache(FakeCache(), path)
    with pytest.raises(RuntimeError), kernels.compiling(4):
        raise RuntimeError
    assert not path.exists()
    with kernels.compiling(4):
        pass
    assert path.exists()
