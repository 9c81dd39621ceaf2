from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from trt_vit.sources.files import File, LocalFile, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(params=["local", "memory"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, bytes], File]:
    """Puts a file of a name on a disk, or behind a URL."""
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec")

    def local(name: str, data: bytes) -> File:
        (tmp_path / name).write_bytes(data)
        return LocalFile(str(tmp_path / name))

    def memory(name: str, data: bytes) -> File:
        fsspec.filesystem("memory").pipe_file(f"/put/{name}", data)
        return RemoteFile(f"memory://put/{name}", len(data), "1")

    return local if request.param == "local" else memory
