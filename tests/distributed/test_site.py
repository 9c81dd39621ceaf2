"""What a worker says of where it runs."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from trt_vit.distributed.site import Fault, Site, bundle_files, look
from trt_vit.errors import EnvironmentFault, InputError
from trt_vit.sources.shard import FileShard

if TYPE_CHECKING:
    from pathlib import Path

    from trt_vit.engine.bundle import Bundle


@pytest.fixture(autouse=True)
def _stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker goes to where the driver stands; these tests come back from there."""
    monkeypatch.chdir(tmp_path)


def site_of(bundle: Bundle, directory: Path) -> Site:
    return Site(directory, bundle.path, bundle.sha256)


def test_a_worker_stands_where_the_driver_does(openvino_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    shard = FileShard(["images/kind 0/image00.jpg"], 0, 1)
    digest = shard.digest()
    (tmp_path / "elsewhere").mkdir()
    site = site_of(openvino_bundle, tmp_path)
    assert look(site, shard, digest) == (None, True)
    fault, _ = look(replace(site, directory=tmp_path / "elsewhere"), shard, digest)
    assert fault is not None
    assert fault.kind is InputError
    assert "'images/kind 0/image00.jpg' as this machine does" in fault.message


def test_a_worker_says_what_it_lacks(openvino_bundle: Bundle, tmp_path: Path) -> None:
    shard = FileShard([], 0, 0)
    site = site_of(openvino_bundle, tmp_path)
    gone, _ = look(replace(site, directory=tmp_path / "gone"), shard, shard.digest())
    assert gone == Fault(
        InputError,
        f"a worker does not see {tmp_path / 'gone'}: No such file or directory",
        "run from a directory that all machines of the cluster share",
    )
    older, _ = look(replace(site, version="0.0.9"), shard, shard.digest())
    assert older is not None
    assert older.kind is EnvironmentFault
    assert look(replace(site, bundle=tmp_path / "gone"), shard, shard.digest()) == (None, False)
    assert look(replace(site, sha256="of another"), shard, shard.digest()) == (None, False)


def test_a_bundle_that_is_not_seen_is_fetched_once(
    openvino_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fetched: list[str] = []
    found: list[str] = []

    def fetch() -> dict[str, bytes]:
        fetched.append("")
        return bundle_files(openvino_bundle)

    site = Site(tmp_path, tmp_path / "gone", openvino_bundle.sha256, fetch)
    threads = [threading.Thread(target=lambda: found.append(site.open_bundle().sha256)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [openvino_bundle.sha256] * 4
    assert len(fetched) == 1
    site.open_bundle().verify()
    assert not site.open_bundle().path.is_relative_to(openvino_bundle.path)


def test_a_bundle_that_cannot_be_kept_says_so(
    openvino_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def full() -> dict[str, bytes]:
        raise OSError("no room")

    with pytest.raises(EnvironmentFault, match=r"a worker cannot keep the bundle in .*cache"):
        Site(tmp_path, tmp_path / "gone", openvino_bundle.sha256, full).open_bundle()
