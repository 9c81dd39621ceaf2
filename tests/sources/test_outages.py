"""Servers that fail: a run ends and can go on, and only what is wrong with one file is an error of its row."""

from __future__ import annotations

import errno
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.sources.archives import png, rows_of, table_of, tar_of
from trt_vit.errors import EnvironmentFault, ImageError
from trt_vit.images.limits import NO_FURTHER_LIMITS
from trt_vit.pipeline.classify import classify_inputs
from trt_vit.settings import ClassifySettings
from trt_vit.sources import faults, parquet, remote, tar_shard
from trt_vit.sources.files import RemoteFile
from trt_vit.sources.open import open_shards

if TYPE_CHECKING:
    from pathlib import Path

    from tests.sources.pages import Pages
    from trt_vit.engine.bundle import Bundle

fsspec = pytest.importorskip("fsspec", reason="needs fsspec")


def test_a_run_that_an_outage_ends_goes_on_and_has_no_row_of_it(
    onnxruntime_bundle: Bundle, pages: Pages, tmp_path: Path
) -> None:
    pages.content = {f"/{number:03}.png": png(number, 16) for number in range(30)}
    inputs = [pages.address + name for name in pages.content]
    (tmp_path / "list.txt").write_text("\n".join([*inputs, f"{pages.address}/none.png"]))
    output = tmp_path / "rows.jsonl"
    settings = ClassifySettings(inputs=[str(tmp_path / "list.txt")], output=output, shard_size=5, batch_size=1)
    pages.down, pages.failing = 12, [503]
    with pytest.raises(EnvironmentFault, match=r"cannot read http://.*: HTTP 503") as caught:
        classify_inputs(onnxruntime_bundle.path, settings, print)
    assert caught.value.exit_code == 4
    assert not output.exists()
    pages.failing = ()
    outcome = classify_inputs(onnxruntime_bundle.path, settings, print)
    assert (outcome.images, outcome.failed) == (31, 1)
    assert outcome.resumed % 5 == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["path"] for row in rows] == [*inputs, f"{pages.address}/none.png"]
    assert [row["error"] for row in rows if row["error"]] == ["cannot read the file: no such file"]


@pytest.mark.parametrize("failing", [[503], [500], [429], [408], [None]])
def test_a_file_whose_server_fails_ends_the_run(pages: Pages, failing: list[int | None]) -> None:
    pages.content = {"/a.png": png(0)}
    pages.failing = failing
    with pytest.raises(EnvironmentFault, match=rf"cannot read {pages.address}/a\.png: ") as caught:
        RemoteFile(f"{pages.address}/a.png?token=word").read(NO_FURTHER_LIMITS)
    assert "word" not in str(caught.value)
    assert caught.value.hint == "run the command again: it goes on where it ended"
    assert len(pages.asked) >= 1 + len(faults.WAITS)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416])
def test_what_a_server_says_of_one_file_is_an_error_of_its_row(pages: Pages, status: int) -> None:
    pages.failing = [status]
    with pytest.raises(ImageError, match=r"cannot read the file: (HTTP|no such file)"):
        RemoteFile(f"{pages.address}/a.png").read(NO_FURTHER_LIMITS)
    assert len(pages.asked) == 1


@pytest.mark.parametrize("failing", [[503, 200], [None, 500, 429, 200]])
def test_a_server_that_fails_is_asked_again(pages: Pages, failing: list[int | None]) -> None:
    pages.content = {"/a.png": png(0)}
    pages.failing = failing
    assert RemoteFile(f"{pages.address}/a.png").read(NO_FURTHER_LIMITS) == png(0)


def test_a_server_that_fails_when_files_are_looked_up_ends_the_run(pages: Pages, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{pages.address}/{number}.png\n" for number in range(3)))
    (tmp_path / "closed.txt").write_text("http://127.0.0.1:1/a.png\n")
    pages.failing = [503]
    with pytest.raises(EnvironmentFault, match=rf"cannot read {pages.address}/.\.png: HTTP 503"):
        open_shards([str(tmp_path / "list.txt")], 9)
    with pytest.raises(EnvironmentFault, match=r"cannot read http://127\.0\.0\.1:1/a\.png: the server cannot be"):
        open_shards([str(tmp_path / "closed.txt")], 9)
    pages.failing = [404]
    (shard,) = open_shards([str(tmp_path / "list.txt")], 9)
    assert [said for _, said in rows_of([shard])] == ["cannot read the file: no such file"] * 3


@pytest.mark.parametrize("name", ["a.png", "a.tar", "a.parquet", "d/", "d/*.png", "list.txt"])
def test_a_server_that_cannot_be_reached_is_not_called_a_missing_file(name: str) -> None:
    pytest.importorskip("aiohttp", reason="needs aiohttp")
    with pytest.raises(EnvironmentFault) as caught:
        open_shards([f"https://127.0.0.1:1/{name}"], 9)
    assert caught.value.message.startswith(f"cannot list 'https://127.0.0.1:1/{name}': the server cannot be reached: ")
    assert caught.value.hint == "check the address and the network, and run the command again"


def test_a_parquet_file_that_an_outage_keeps_from_being_opened_is_no_row(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages.content = {"/y.parquet": table_of([{"bytes": png(3), "path": None}])}
    read = remote._Reader.read

    def failing(self: remote._Reader, size: int = -1) -> bytes:
        pages.failing = [502]
        return read(self, size)

    monkeypatch.setattr(remote._Reader, "read", failing)
    with pytest.raises(EnvironmentFault, match=r"cannot read http://.*/y\.parquet: HTTP 502"):
        open_shards([f"{pages.address}/y.parquet"], 9)


def test_large_images_of_archives_end_the_run_where_their_server_fails(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_shard, "HELD_BYTES", 10)
    monkeypatch.setattr(parquet, "HELD_BYTES", 10)
    pages.content = {
        "/x.tar": tar_of({"m.png": png(1)}),
        "/y.parquet": table_of([{"bytes": png(3), "path": None}]),
    }
    for name in pages.content:
        pages.failing = ()
        (shard,) = open_shards([f"{pages.address}{name}"], 9)
        (item,) = shard.items()
        pages.failing = [503]
        with pytest.raises(EnvironmentFault, match=rf"cannot read {pages.address}{name}: HTTP 503"):
            item.read(NO_FURTHER_LIMITS)


class Answered(Exception):  # noqa: N818 - as libraries have them
    def __init__(self, **attributes: Any) -> None:
        super().__init__("what a library says")
        self.__dict__.update(attributes)


def of_botocore(status: int, code: str, kind: type[Exception] = OSError) -> Exception:
    """What s3fs makes of botocore's errors."""
    error = kind("what S3 says")
    error.__cause__ = Answered(response={"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}})
    return error


def caused(cause: Exception) -> Exception:
    error = FileNotFoundError("a.png")
    error.__cause__ = cause
    return error


OUTAGES = [
    TimeoutError(),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    socket.gaierror(-2, "Name or service not known"),
    OSError(errno.EIO, "Input/output error"),
    EOFError(),
    Answered(),
    Answered(status=503),
    Answered(code=429),
    Answered(status_code=500),
    Answered(response=Answered(status_code=502)),
    of_botocore(503, "SlowDown"),
    of_botocore(400, "ExpiredToken", PermissionError),
    caused(Answered(status=503)),
    caused(ConnectionRefusedError()),
]
OF_ONE_FILE = [
    PermissionError(),
    IsADirectoryError(),
    OSError(errno.ENAMETOOLONG, "File name too long"),
    ValueError("not a name"),
    Answered(status=403),
    Answered(code=404),
    Answered(status_code=410),
    Answered(response=Answered(status_code=401)),
    of_botocore(403, "AccessDenied", PermissionError),
    of_botocore(400, "KeyTooLongError"),
    FileNotFoundError(),
    caused(Answered(status=404)),
    caused(KeyError("a.png")),
    of_botocore(404, "NoSuchKey", FileNotFoundError),
]


@pytest.mark.parametrize("error", [*OUTAGES, *OF_ONE_FILE], ids=repr)
def test_an_outage_is_told_from_what_is_wrong_with_one_file(error: Exception) -> None:
    with pytest.raises(faults.RemoteError) as caught, faults.failures():
        raise error
    assert isinstance(caught.value, faults.RemoteOutageError) == (error in OUTAGES)


def asked(url: str, error: Exception) -> int:
    """How often a server is asked that fails for ever."""
    count = 0

    def ask() -> None:
        nonlocal count
        count += 1
        with faults.failures():
            raise error

    with pytest.raises(faults.RemoteError):
        faults.patiently(url, ask)
    return count


def test_who_is_asked_again() -> None:
    assert asked("https://host/a", ConnectionResetError()) == 1 + len(faults.WAITS)
    assert asked("https://host/a", PermissionError()) == 1
    assert asked("https://host/a", TimeoutError()) == 1
    assert asked("s3://bucket/a", ConnectionResetError()) == 1
