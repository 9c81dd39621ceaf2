"""Files behind URLs: a web server that behaves and one that does not, threads, and what is said of a failure."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.sources.archives import png, rows_of, table_of, tar_of
from trt_vit.errors import EnvironmentFault, ImageError, InputError, UsageError
from trt_vit.images.limits import NO_FURTHER_LIMITS, DecodeLimits
from trt_vit.sources import faults, remote
from trt_vit.sources.files import RemoteFile
from trt_vit.sources.open import open_shards

if TYPE_CHECKING:
    from tests.sources.pages import Pages

fsspec = pytest.importorskip("fsspec", reason="needs fsspec")


def test_images_archives_and_lists_of_the_web(pages: Pages, tmp_path: Any) -> None:
    pages.content = {
        "/a.png": png(0),
        "/empty.png": b"",
        "/x.tar": tar_of({"m.png": png(1), "large.txt": bytes(11 << 20), "n.png": png(2)}),
        "/y.parquet": table_of([{"bytes": png(3), "path": "p.png"}]),
        "/l.txt": f"{pages.address}/a.png?id=2\n".encode(),
    }
    inputs = [f"{pages.address}/{name}" for name in ("a.png", "empty.png", "x.tar?token=t", "y.parquet", "l.txt")]
    at = pages.address
    expected = [
        *((f"{at}/a.png", png(0)), (f"{at}/empty.png", b""), (f"{at}/x.tar::m.png", png(1))),
        *((f"{at}/x.tar::n.png", png(2)), (f"{at}/y.parquet::0::p.png", png(3)), (f"{at}/a.png?id=2", png(0))),
    ]
    assert rows_of(open_shards(inputs, 9)) == expected
    pages.ranges = False
    assert rows_of(open_shards([inputs[0], inputs[2]], 9)) == [expected[0], *expected[2:4]]


def test_a_page_of_links_is_a_directory(pages: Pages) -> None:
    pages.content = {
        "/d/": b'<a href="b.png">b</a> <a href="a.png">a</a> <a href="c.csv">c</a> <a href="/e.png">e</a>',
        "/d/a.png": png(0),
        "/d/b.png": png(1),
    }
    assert rows_of(open_shards([f"{pages.address}/d/"], 9)) == [
        (f"{pages.address}/d/a.png", png(0)),
        (f"{pages.address}/d/b.png", png(1)),
    ]


def test_a_page_is_asked_about_once_and_then_read(pages: Pages, tmp_path: Any) -> None:
    pages.content = {"/a.png": png(0)}
    (tmp_path / "l.txt").write_text(f"{pages.address}/a.png?n=1\n")
    (shard,) = open_shards([str(tmp_path / "l.txt")], 9)
    assert pages.asked == [("HEAD", "/a.png?n=1")]
    rows_of([shard])
    assert pages.asked[1:] == [("GET", "/a.png?n=1")]


SIGNED = "id=7&X-Amz-Credential=AKIA&X-Amz-Signature=0f0f"


def test_what_cannot_be_read_is_a_row_that_says_why_and_tells_no_secret(pages: Pages, tmp_path: Any) -> None:
    user = pages.address.replace("://", "://user:word@")
    names = [f"{pages.address}/closed.png?{SIGNED}", f"{user}/none.png?{SIGNED}", f"{user}/closed.tar?{SIGNED}"]
    (tmp_path / "l.txt").write_text("\n".join(names))
    shards = open_shards([str(tmp_path / "l.txt")], 9)
    at = pages.address
    assert rows_of(shards) == [
        (f"{at}/closed.png?id=7", "cannot read the file: HTTP 403 Forbidden"),
        (f"{at}/none.png?id=7", "cannot read the file: no such file"),
        (f"{at}/closed.tar?id=7", "cannot read the file: no such file"),
    ]
    told = "".join(shard.describe() for shard in shards)
    assert not any(secret in told for secret in ("word", "AKIA", "0f0f"))


def test_a_url_that_was_signed_again_is_the_same_file(pages: Pages) -> None:
    pages.content = {"/a.png": png(0)}
    first, second, other = (
        open_shards([f"{pages.address}/a.png?{query}"], 9)[0].digest()
        for query in ("id=1&Signature=a&Expires=1", "id=1&Signature=b&Expires=2", "id=2&Signature=a&Expires=1")
    )
    assert first == second
    assert first != other


def test_errors_of_a_listing_tell_no_secret(pages: Pages) -> None:
    at = pages.address
    user = at.replace("://", "://user:word@")
    pages.content = {"/empty/": b"<p>nothing</p>", "/d/": b'<a href="closed/">closed</a>', "/d/closed/": b""}
    for url, said in {
        f"{user}/none.png?{SIGNED}": f"no such file or directory: '{at}/none.png?id=7'",
        f"{user}/empty/?{SIGNED}": f"no image in '{at}/empty/?id=7'",
        f"{user}/closed/?{SIGNED}": f"cannot list '{at}/closed/?id=7': HTTP 403 Forbidden",
        "http://u:word@127.0.0.1:1/d/": "cannot list 'http://127.0.0.1:1/d/': the server cannot be reached: ",
    }.items():
        with pytest.raises((UsageError, InputError, EnvironmentFault)) as caught:
            open_shards([url], 9)
        assert caught.value.message.startswith(said)
        assert [secret for secret in ("word", "AKIA", "0f0f") if secret in str(caught.value)] == []


def test_a_page_without_an_end_is_read_up_to_the_limit(pages: Pages) -> None:
    with pytest.raises(ImageError, match="file has more bytes than the limit of 1048576"):
        RemoteFile(f"{pages.address}/endless.jpg").read(DecodeLimits(file_bytes=1 << 20))
    assert len(remote.read_whole(f"{pages.address}/endless.jpg", 5, 1 << 20)) == (1 << 20) + 1


def test_a_file_beyond_the_limit_is_not_read() -> None:
    limits = DecodeLimits(file_bytes=10)
    fsspec.filesystem("memory").pipe_file("/limit/a.jpg", bytes(11))
    with pytest.raises(ImageError, match="file has 11 bytes, more than the limit of 10"):
        RemoteFile("memory://limit/a.jpg", 11).read(limits)
    with pytest.raises(ImageError, match="file has more bytes than the limit of 10"):
        RemoteFile("memory://limit/a.jpg").read(limits)


def test_many_threads_read_at_once(pages: Pages) -> None:
    pages.content = {f"/{number}.png": png(number) for number in range(40)}
    fsspec.filesystem("memory").pipe({f"/t{name}": data for name, data in pages.content.items()})
    for base in (pages.address, "memory://t"):
        found = [RemoteFile(f"{base}/{number}.png") for number in range(40)]
        with ThreadPoolExecutor(8) as threads:
            read = threads.map(lambda file: file.read(NO_FURTHER_LIMITS), found * 3)
            assert list(read) == [png(number) for number in range(40)] * 3


class OddError(Exception):
    """What some file system raises."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Forbidden", "s3://k:word@b/a"), "permission denied"),
        (TimeoutError(), "timed out"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (OddError("at https://u:word@h/a?Signature=word&id=1\n twice"), "at https://h/a?id=1 twice"),
        (OddError(), "OddError"),
        (ValueError("x" * 1000), "x" * 200),
    ],
)
def test_whatever_a_file_system_raises_becomes_one_line(error: Exception, said: str) -> None:
    with pytest.raises(faults.RemoteError) as caught, faults.failures():
        raise error
    assert str(caught.value) == said


def test_a_stream_of_a_file_system_is_read_as_a_file_is() -> None:
    fsspec.filesystem("memory").pipe_file("/stream/a", b"0123456789")
    with remote.open_reading("memory://stream/a") as stream:
        assert stream.seekable()
        assert stream.readable()
        assert (stream.read(3), stream.tell(), stream.seek(-2, io.SEEK_END), stream.read()) == (b"012", 3, 8, b"89")
    assert remote.read_part("memory://stream/a", 4, 3) == b"456"
    assert remote.read_part("memory://stream/a", 8, 30) == b"89"
