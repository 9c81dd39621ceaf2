from __future__ import annotations

import http.server
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.sources.pages import Handler, Pages
from trt_vit.sources import faults
from trt_vit.sources.files import File, LocalFile, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that fails is asked again without waiting."""
    monkeypatch.setattr(faults, "WAITS", tuple(0.0 for _ in faults.WAITS))


@pytest.fixture
def pages() -> Iterator[Pages]:
    pytest.importorskip("aiohttp", reason="needs aiohttp")
    found = Pages()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, found))
    server.daemon_threads = True
    found.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()
