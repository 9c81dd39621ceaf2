"""Runs on a Ray cluster of this machine: the rows are those of a run without it, whatever dies."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from trt_vit.config import resolve
from trt_vit.distributed.ray import _portable
from trt_vit.errors import EnvironmentFault, UsageError
from trt_vit.pipeline.classify import classify_inputs
from trt_vit.pipeline.journal import directory_of
from trt_vit.settings import ClassifySettings
from trt_vit.sources.files import RemoteFile
from trt_vit.sources.shard import file_shards, remote_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trt_vit.engine.bundle import Bundle
    from trt_vit.sources.shard import Shard

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs trt-vit[ray]")


def settings(inputs: str, output: Path, **others: Any) -> ClassifySettings:
    return ClassifySettings(inputs=[inputs], output=output, **{"shard_size": 4, **others})


def local(bundle: Bundle, inputs: str, output: Path) -> bytes:
    classify_inputs(bundle.path, settings(inputs, output, shard_size=1000), print)
    return output.read_bytes()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster that the tests of this module share: starting one takes seconds."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def mixed(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Images with bad ones and odd names among them, named from where the test stands."""
    copy = shutil.copytree(images, tmp_path / "images")
    (copy / "kind 0" / "broken.jpg").write_bytes(b"\xff\xd8\xffnot a picture")
    (copy / "kind 1" / "empty.png").touch()
    Path(os.fsdecode(os.fsencode(copy) + b"/\xff.png")).write_bytes((copy / "kind 1" / "image01.PNG").read_bytes())
    monkeypatch.chdir(tmp_path)
    return "images"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many images, by different names, that something can die before they are done; every 50th is broken."""
    directory = tmp_path_factory.mktemp("many")
    pixels = np.random.default_rng(0).integers(0, 256, size=(5, 48, 48, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(directory / f"{number}.png")
    links = directory / "links"
    links.mkdir()
    for number in range(6000):
        target = directory / ("gone.png" if number % 50 == 7 else f"{number % 5}.png")
        (links / f"{number:05}.png").symlink_to(target)
    return links


@needs_ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_output_is_that_of_one_machine(openvino_bundle: Bundle, mixed: str, tmp_path: Path, suffix: str) -> None:
    expected = local(openvino_bundle, mixed, tmp_path / f"local.{suffix}")
    outcome = classify_inputs(
        openvino_bundle.path, settings(mixed, tmp_path / f"ray.{suffix}", distributed="ray"), print
    )
    assert (tmp_path / f"ray.{suffix}").read_bytes() == expected
    assert (outcome.images, outcome.failed, outcome.left) == (14, 2, 0)
    assert (outcome.summary.images, outcome.summary.failed) == (14, 2)
    assert all(outcome.summary.stages[stage] > 0 for stage in ("read", "decode", "preprocess", "infer", "write"))


@needs_ray
@pytest.mark.usefixtures("cluster")
def test_another_runtime_and_batch_size(onnxruntime_bundle: Bundle, mixed: str, tmp_path: Path) -> None:
    expected = local(onnxruntime_bundle, mixed, tmp_path / "local.jsonl")
    chosen = settings(mixed, tmp_path / "ray.jsonl", distributed="ray", batch_size=3, lanes=2, shard_size=5)
    classify_inputs(onnxruntime_bundle.path, chosen, print)
    assert (tmp_path / "ray.jsonl").read_bytes() == expected


@needs_ray
@pytest.mark.usefixtures("cluster")
def test_what_is_wrong_on_a_worker_ends_the_run(openvino_bundle: Bundle, mixed: str, tmp_path: Path) -> None:
    changed = shutil.copytree(openvino_bundle.path, tmp_path / "changed")
    (changed / "engine.bin").write_bytes(b"changed")
    with pytest.raises(Exception, match="is not what the manifest says") as raised:
        classify_inputs(changed, settings(mixed, tmp_path / "ray.jsonl", distributed="ray"), print)
    assert raised.type.__name__ == "ArtifactError"


def processes(title: str) -> list[int]:
    """Return the workers of Ray that do what ``title`` says."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes()
            if words.startswith(b"ray::") and title.encode() in words:
                found.append(int(place.name))
    return found


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.01)
    return pytest.fail("it did not happen")


def committed(output: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in directory_of(output).glob("commits-*"))


@needs_ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("title", ["_Classify", "_decode"])
def test_a_worker_that_is_killed_changes_no_row(
    openvino_bundle: Bundle, many: Path, tmp_path: Path, title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = local(openvino_bundle, str(many), tmp_path / "local.jsonl")
    output = tmp_path / "ray.jsonl"
    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: committed(output) >= 3)
        killed.append(wait_for(lambda: processes(title))[0])
        os.kill(killed[0], signal.SIGKILL)
        killed.append(committed(output))

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = classify_inputs(
        openvino_bundle.path, settings(str(many), output, distributed="ray", shard_size=64), print
    )
    killer.join()
    assert 3 <= killed[1] < 94  # it died in the middle
    assert capsys.readouterr().out == ""  # what Ray has to say of it is no result
    assert output.read_bytes() == expected
    assert (outcome.images, outcome.failed) == (6000, 120)
    assert (outcome.summary.images, outcome.summary.failed) == (6000, 120)


@needs_ray
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_driver_that_dies_leaves_a_journal(
    openvino_bundle: Bundle, many: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    output = tmp_path / "o.jsonl"
    command = [sys.executable, "-m", "trt_vit", "classify", str(openvino_bundle.path), str(many), "-o", str(output)]
    environment = {**os.environ, "TRT_VIT_SHARD_SIZE": "64"}
    process = subprocess.Popen([*command, "--distributed", "ray"], stderr=subprocess.PIPE, text=True, env=environment)
    wait_for(lambda: committed(output) >= 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert not output.exists()
    done = committed(output)
    assert 3 <= done < 94
    outcome = classify_inputs(openvino_bundle.path, settings(str(many), output, shard_size=64), print)
    assert outcome.resumed == 64 * done
    assert (outcome.images, outcome.failed) == (6000, 120)
    assert output.read_bytes() == local(openvino_bundle, str(many), tmp_path / "local.jsonl")


@needs_ray
@pytest.mark.usefixtures("cluster")
def test_a_run_goes_on_with_ray(openvino_bundle: Bundle, mixed: str, tmp_path: Path) -> None:
    expected = local(openvino_bundle, mixed, tmp_path / "local.jsonl")
    output = tmp_path / "ray.jsonl"
    part = settings(mixed, output, shard=None)
    classify_inputs(openvino_bundle.path, part, print)
    journal = directory_of(output)
    assert (journal / "_SUCCESS").exists()
    output.unlink()
    outcome = classify_inputs(openvino_bundle.path, settings(mixed, output, distributed="ray"), print)
    assert outcome.resumed == 0  # the shards' files have gone with the journal's end
    assert output.read_bytes() == expected
    again = classify_inputs(openvino_bundle.path, settings(mixed, output, distributed="ray"), print)
    assert (again.resumed, again.summary.images) == (14, 0)


@needs_ray
def test_an_address_without_a_cluster(openvino_bundle: Bundle, mixed: str) -> None:
    command = [sys.executable, "-m", "trt_vit", "classify", str(openvino_bundle.path), mixed, "-o", "o.jsonl"]
    command += ["--distributed", "ray", "--ray-address", "127.0.0.1:9"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 4
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: cannot connect to Ray at 127.0.0.1:9: ")
    assert last.endswith(
        "(check --ray-address and RAY_ADDRESS, that the cluster is up, and that RAY_AUTH_TOKEN is its token)"
    )


def test_a_shard_travels_without_the_files_of_others() -> None:
    paths = [f"{number:0100}" for number in range(1000)]
    shards: list[Shard] = [*file_shards(paths, 10), *remote_shards([RemoteFile(f"s3://{path}") for path in paths], 10)]
    for shard in shards:
        carried = pickle.loads(pickle.dumps(_portable(shard)))  # noqa: S301 - written here
        assert list(carried.items()) == list(shard.items())
        assert len(pickle.dumps(carried)) < 10 * 300


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"shard": "1/2"}, r"--shard and --distributed do not go together \(leave --shard out"),
        ({"decode": "fast"}, r"--decode fast and --distributed do not go together \(leave --decode out"),
    ],
)
def test_what_does_not_go_with_ray_is_refused(tmp_path: Path, others: dict[str, str], message: str) -> None:
    chosen = settings("images", tmp_path / "o.jsonl", distributed="ray", **others)
    with pytest.raises(UsageError, match=message):
        classify_inputs(tmp_path / "no.bundle", chosen, print)
    assert list(tmp_path.iterdir()) == []


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentFault, match=r"Ray cannot be imported: .* \(pip install 'trt-vit\[ray\]'\)"):
        classify_inputs(tmp_path / "no.bundle", settings("images", tmp_path / "o.jsonl", distributed="ray"), print)


def test_the_settings_come_from_flags_and_variables(tmp_path: Path) -> None:
    flags = {"inputs": ["a.jpg"], "output": tmp_path / "o.csv", "distributed": "ray"}
    found = resolve(ClassifySettings, flags, environment={"TRT_VIT_RAY_ADDRESS": "10.0.0.1:6379"})
    assert (found.distributed, found.ray_address) == ("ray", "10.0.0.1:6379")
    with pytest.raises(UsageError, match="--distributed"):
        resolve(ClassifySettings, {**flags, "distributed": "dask"}, environment={})
