"""Whole runs over archives and URLs: killed, resumed, refused; against an S3 server where moto and s3fs are there."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from tests.sources.archives import png, table_of, tar_of
from trt_vit.outputs import RemoteOutput
from trt_vit.pipeline.classify import classify_inputs
from trt_vit.settings import ClassifySettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trt_vit.engine.bundle import Bundle

fsspec = pytest.importorskip("fsspec", reason="needs fsspec")

SIZE = 5
"""Images a shard, but for archives."""

KILLED = """
import os, signal, sys
from trt_vit.pipeline.feed import ShardSink
from trt_vit.pipeline.journal import Journal
commit, append, commits = Journal.commit, ShardSink._append, []

def counted(self, *arguments):
    commit(self, *arguments)
    commits.append(arguments)

def killing(self, rows):
    append(self, rows)
    if len(commits) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)  # in the middle of a shard

Journal.commit, ShardSink._append = counted, killing
from trt_vit.cli import run
sys.exit(run(sys.argv[2:]))
"""


def photos(start: int, count: int) -> dict[str, bytes]:
    return {f"{number:03}.png": png(number, 16) for number in range(start, start + count)}


def files_of() -> dict[str, bytes]:
    """Two archives, a table, and files: 40 images, of which one cannot be decoded."""
    first = tar_of({**photos(0, 10), "notes.txt": b"text"})
    second = tar_of({**photos(10, 9), "broken.png": b"no image"})
    rows = [{"bytes": data, "path": name} for name, data in photos(20, 10).items()]
    others = {f"d/{name}": data for name, data in photos(30, 10).items()}
    return {"a.tar": first, "b.tar": second, "t.parquet": table_of(rows, row_group_size=4), **others}


def command(bundle: Bundle, inputs: list[str], output: str) -> list[str]:
    config = Path("config.yaml")
    config.write_text(f"classify:\n  shard_size: {SIZE}\n")
    return ["classify", str(bundle.path), *inputs, "-o", output, "--config", str(config)]


def run(arguments: list[str], kill_after: int | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-m", "trt_vit"] if kill_after is None else ["-c", KILLED, str(kill_after)]
    return subprocess.run([sys.executable, *start, *arguments], check=False, capture_output=True, text=True)


def documents(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    for name, data in files_of().items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.fixture
def expected(onnxruntime_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The rows of all images, by a run over plain files."""
    directory = tmp_path_factory.mktemp("plain")
    for name, data in {**photos(0, 19), "019.png": b"no image", **photos(20, 20)}.items():
        (directory / name).write_bytes(data)
    settings = ClassifySettings(inputs=[str(directory)], output=directory / "rows.jsonl")
    classify_inputs(onnxruntime_bundle.path, settings, print)
    return [{**row, "path": ""} for row in documents((directory / "rows.jsonl").read_bytes())]


INPUTS = ["a.tar", "b.tar", "t.parquet", "d"]
NAMES = [
    *(f"a.tar::{number:03}.png" for number in range(10)),
    *(f"b.tar::{number:03}.png" for number in range(10, 19)),
    "b.tar::broken.png",
    *(f"t.parquet::{number}::{number + 20:03}.png" for number in range(10)),
    *(f"d/{number:03}.png" for number in range(30, 40)),
]


def check(rows: list[Any], expected: list[Any], base: str = "") -> None:
    assert [row["path"] for row in rows] == [base + name for name in NAMES]
    assert [{**row, "path": ""} for row in rows] == expected


@pytest.mark.parametrize(("kill_after", "resumed"), [(0, 0), (1, 10), (3, 25)])
def test_a_run_over_archives_that_was_killed_is_resumed(
    onnxruntime_bundle: Bundle, local: Path, expected: list[Any], kill_after: int, resumed: int
) -> None:
    arguments = command(onnxruntime_bundle, INPUTS, "rows.jsonl")
    assert run(arguments, kill_after).returncode == -9
    assert not (local / "rows.jsonl").exists()
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert (f"resuming: {resumed} images are done already" in done.stderr) == (kill_after > 0)
    check(documents((local / "rows.jsonl").read_bytes()), expected)


@pytest.mark.parametrize(
    ("pattern", "output"), [("pq/**/*.parquet", "pq/out/rows.parquet"), ("pq/*.parquet", "pq/rows.parquet")]
)
def test_a_run_whose_output_lies_among_its_inputs_is_resumed(
    onnxruntime_bundle: Bundle, local: Path, pattern: str, output: str
) -> None:
    (local / "pq").mkdir()
    (local / "t.parquet").rename(local / "pq/t.parquet")
    arguments = command(onnxruntime_bundle, [pattern], output)
    assert run(arguments, 1).returncode == -9
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert "resuming: 5 images are done already" in done.stderr
    written = (local / output).read_bytes()
    assert pq.read_table(io.BytesIO(written)).column("path").to_pylist() == [
        f"pq/{name}" for name in NAMES if name.startswith("t.parquet")
    ]
    again = run(arguments)
    assert again.returncode == 0, again.stderr
    assert f"{output} was written before" in again.stderr
    assert (local / output).read_bytes() == written


@pytest.mark.parametrize("name", ["a.tar", "b.tar", "t.parquet"])
def test_an_archive_that_changed_meanwhile_is_refused(onnxruntime_bundle: Bundle, local: Path, name: str) -> None:
    arguments = command(onnxruntime_bundle, INPUTS, "rows.jsonl")
    assert run(arguments, 1).returncode == -9
    (local / name).write_bytes(tar_of(photos(50, 10)) if name.endswith("tar") else table_of([b"x"] * 10, kind=None))
    done = run(arguments)
    assert done.returncode == 5, done.stderr
    assert "rows.jsonl is unfinished, and of another run: images in " in done.stderr
    assert f"first among '{name}" in done.stderr


def test_standard_input_names_the_images(onnxruntime_bundle: Bundle, local: Path, expected: list[Any]) -> None:
    arguments = command(onnxruntime_bundle, ["a.tar", "-"], "rows.jsonl")
    text = "b.tar\0t.parquet\0" + "\0".join(NAMES[30:])
    done = subprocess.run(
        [sys.executable, "-m", "trt_vit", *arguments], check=False, capture_output=True, text=True, input=text
    )
    assert done.returncode == 0, done.stderr
    check(documents((local / "rows.jsonl").read_bytes()), expected)


def test_a_recipe_holds_urls_and_standard_input_as_they_are(tmp_path: Path) -> None:
    from trt_vit.config import resolve

    recipe = tmp_path / "p.yaml"
    recipe.write_text('inputs: ["s3://b//a", "-", "c", "d-*"]\noutput: s3://b//rows.csv\n')
    settings = resolve(ClassifySettings, {}, recipe=recipe, environment={})
    assert settings.inputs == ["s3://b//a", "-", f"{tmp_path}/c", f"{tmp_path}/d-*"]
    assert settings.output == RemoteOutput("s3://b//rows.csv")
    settings = resolve(ClassifySettings, {"inputs": ["a"], "output": "b.csv"}, environment={})
    assert settings.output == Path("b.csv")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_run_from_urls_to_a_url(onnxruntime_bundle: Bundle, expected: list[Any], suffix: str) -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pipe({f"/run/{name}": data for name, data in files_of().items()})
    settings = ClassifySettings(
        inputs=[f"memory://run/{name}" for name in INPUTS],
        output=RemoteOutput(f"memory://out/rows{suffix}"),
        shard_size=SIZE,
    )
    outcome = classify_inputs(onnxruntime_bundle.path, settings, print)
    assert (outcome.images, outcome.failed, outcome.resumed) == (40, 1, 0)
    written = filesystem.cat_file(f"/out/rows{suffix}")
    if suffix == ".jsonl":
        check(documents(written), expected, "memory://run/")
    else:
        table = pq.read_table(io.BytesIO(written)).to_pydict()
        assert table["path"] == [f"memory://run/{name}" for name in NAMES]
        assert table["top1_index"] == [row["topk"][0]["index"] if row["topk"] else None for row in expected]
    # A second time there is nothing to do; and if somebody has removed it, all.
    assert classify_inputs(onnxruntime_bundle.path, settings, print).resumed == 40
    filesystem.rm(f"/out/rows{suffix}")
    assert classify_inputs(onnxruntime_bundle.path, settings, print).resumed == 0
    assert filesystem.cat_file(f"/out/rows{suffix}") == written


def test_an_output_behind_a_url_may_not_be_an_input(onnxruntime_bundle: Bundle) -> None:
    from trt_vit.errors import UsageError

    fsspec.filesystem("memory").pipe_file("/in/a.csv", b"")
    settings = ClassifySettings(inputs=["memory://in/a.csv"], output=RemoteOutput("memory://in/a.csv"))
    with pytest.raises(UsageError, match=r"memory://in/a\.csv is one of the inputs"):
        classify_inputs(onnxruntime_bundle.path, settings, print)
    settings = ClassifySettings(inputs=["memory://in/a.csv"], output=RemoteOutput("https://host/a.csv?token=word"))
    with pytest.raises(UsageError, match=r"cannot write https://host/a\.csv: web servers take no files"):
        classify_inputs(onnxruntime_bundle.path, settings, print)


class Bucket:
    """A bucket of an S3 server, which processes find by their environment."""

    def __init__(self, filesystem: Any) -> None:
        self.filesystem = filesystem

    def fill(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            self.filesystem.pipe_file(f"bucket/{name}", data)

    def read(self, name: str) -> bytes:
        data: bytes = self.filesystem.cat_file(f"bucket/{name}")
        return data

    def names(self) -> set[str]:
        self.filesystem.invalidate_cache()
        return {path.removeprefix("bucket/") for path in self.filesystem.find("bucket")}

    def uploads(self) -> list[Any]:
        return self.filesystem.call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads", [])  # type: ignore[no-any-return]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server_module = pytest.importorskip("moto.server", reason="needs moto[server]")
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "*",
    }.items():
        monkeypatch.setenv(name, value)
    # What a server of an earlier test had is still there.
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem()
    filesystem.mkdir("bucket")
    yield Bucket(filesystem)
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


S3_INPUTS = ["s3://bucket/*.tar", "s3://bucket/t.parquet", "s3://bucket/d"]


@pytest.mark.parametrize(("kill_after", "resumed"), [(1, 10), (3, 25)])
def test_a_run_from_s3_to_s3_that_was_killed_is_resumed(
    onnxruntime_bundle: Bundle, bucket: Bucket, expected: list[Any], *, kill_after: int, resumed: int
) -> None:
    files = files_of()
    bucket.fill(files)
    arguments = command(onnxruntime_bundle, S3_INPUTS, "s3://bucket/out/rows.jsonl")
    assert run(arguments, kill_after).returncode == -9
    assert bucket.names() == set(files)
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert f"resuming: {resumed} images are done already" in done.stderr
    assert "wrote s3://bucket/out/rows.jsonl: 40 images, 1 failed" in done.stderr
    check(documents(bucket.read("out/rows.jsonl")), expected, "s3://bucket/")
    assert bucket.names() == {*files, "out/rows.jsonl"}
    assert bucket.uploads() == []
    again = run(arguments)
    assert "s3://bucket/out/rows.jsonl was written before" in again.stderr


def test_what_changed_in_s3_is_refused(onnxruntime_bundle: Bundle, bucket: Bucket) -> None:
    bucket.fill(files_of())
    arguments = command(onnxruntime_bundle, S3_INPUTS, "rows.csv")
    assert run(arguments, 1).returncode == -9
    bucket.fill({"a.tar": tar_of(photos(50, 10))})
    done = run(arguments)
    assert done.returncode == 5, done.stderr
    assert "first among 's3://bucket/a.tar'" in done.stderr


def test_a_signed_url_is_read_and_its_signature_told_to_nobody(
    onnxruntime_bundle: Bundle, bucket: Bucket, expected: list[Any], tmp_path: Path
) -> None:
    files = files_of()
    bucket.fill(files)

    def signed(seconds: int) -> list[str]:
        return [bucket.filesystem.sign(f"bucket/{name}", seconds) for name in files]

    first, second = signed(3600), signed(7200)
    assert all("Signature=" in url for url in first)
    assert set(first).isdisjoint(second)
    killed = run(command(onnxruntime_bundle, first, "rows.jsonl"), 1)
    assert killed.returncode == -9
    done = run(command(onnxruntime_bundle, second, "rows.jsonl"))
    assert done.returncode == 0, done.stderr
    assert "resuming: 10 images are done already" in done.stderr
    check(documents((tmp_path / "rows.jsonl").read_bytes()), expected, f"{os.environ['AWS_ENDPOINT_URL']}/bucket/")
    told = [done.stderr, *(path.read_text() for path in tmp_path.glob(".rows.jsonl.journal/*")), killed.stderr]
    assert not any("Signature" in text or "AccessKey" in text for text in told)


def test_a_bucket_that_is_not_there_and_one_that_is_closed(
    onnxruntime_bundle: Bundle, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.fill({"a.png": png(0)})
    done = run(command(onnxruntime_bundle, ["s3://none/d"], "rows.csv"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no such file or directory: 's3://none/d'" in done.stderr
    done = run(command(onnxruntime_bundle, ["s3://bucket/a.png"], "s3://none/rows.csv"))
    assert done.returncode == 1
    assert "cannot write s3://none/rows.csv: no such file" in done.stderr
    # The rows are in the journal: they are not computed again when there is a bucket.
    bucket.filesystem.mkdir("none")
    done = run(command(onnxruntime_bundle, ["s3://bucket/a.png"], "s3://none/rows.csv"))
    assert "resuming: 1 images are done already" in done.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    done = run(command(onnxruntime_bundle, ["s3://bucket/a.png"], "rows.csv"))
    assert done.returncode == 4
    assert "cannot list 's3://bucket/a.png': the server cannot be reached: " in done.stderr


def test_large_outputs_are_sent_in_parts_and_complete_at_the_end(bucket: Bucket) -> None:
    from trt_vit.outputs import open_whole, size_of

    output = RemoteOutput("s3://bucket/large.jsonl")
    piece = os.urandom(1 << 20)
    with open_whole(output) as stream:
        for _ in range(60):
            stream.write(piece)
        assert len(bucket.uploads()) == 1  # a part is on its way, and nothing is to be seen
        assert size_of(output) is None
    assert size_of(output) == 60 << 20
    with pytest.raises(KeyboardInterrupt), open_whole(output) as stream:
        for _ in range(60):
            stream.write(piece[:-1])
        raise KeyboardInterrupt
    assert (bucket.uploads(), size_of(output)) == ([], 60 << 20)
