"""From a bundle to a file of rows: with the engine on emulated GPUs, in parts, and in runs that go on from others."""

from __future__ import annotations

import io
import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tests.support.emulated_gpu import EmulatedDecoder, EmulatedRuntime
from tests.support.recording_device import RecordingDevice
from trt_vit.cuda import driver
from trt_vit.cuda.driver import Gpu
from trt_vit.errors import ArtifactError, OutOfDeviceMemory, UsageError
from trt_vit.parts import Part
from trt_vit.pipeline import classify as module
from trt_vit.pipeline import loading
from trt_vit.pipeline.classify import classify_inputs, load_classifier
from trt_vit.runtime.onnxruntime import OnnxRuntimeRuntime
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.settings import ClassifySettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trt_vit.engine.bundle import Bundle
    from trt_vit.pipeline.classify import Outcome
    from trt_vit.pipeline.rows import Row
    from trt_vit.runtime.protocol import EngineFiles

GPU = Gpu("NVIDIA L4", "8.9", 24 << 30)
OTHER = Gpu("NVIDIA T4", "7.5", 16 << 30)


class EmulatedGpus:
    """GPUs on which a bundle's engine is opened: ONNX Runtime on the CPU computes for all of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpus: list[Gpu], room: int = 1 << 30) -> None:
        self.opened: list[RuntimeOptions] = []
        self.room = room
        self.runtimes: list[EmulatedRuntime] = []
        monkeypatch.setattr(module, "open_runtime", self.open_runtime)
        monkeypatch.setattr(driver, "gpus", lambda: gpus)
        monkeypatch.setattr(loading, "open_decoder", lambda index: EmulatedDecoder(self.runtimes[index].device))

    def open_runtime(self, _name: str, engine: EngineFiles, options: RuntimeOptions) -> EmulatedRuntime:
        self.opened.append(options)
        if options.batch_size > self.room:
            raise OutOfDeviceMemory(f"no room for {options.batch_size}", hint="try less")
        reference = OnnxRuntimeRuntime(engine, replace(options, lanes=1)).lanes[0]
        model = engine.model
        device = RecordingDevice(options.gpu)
        shape = (3, model.height, model.width)
        runtime = EmulatedRuntime(reference.infer, shape, model.classes, options.batch_size, device=device)
        self.runtimes.append(runtime)
        return runtime


def settings(images: Path, output: Path, **others: Any) -> ClassifySettings:
    return ClassifySettings(inputs=[str(images)], output=output, **others)


def rows_of(output: Path) -> list[Any]:
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_a_gpu_writes_what_the_cpu_writes(
    onnxruntime_bundle: Bundle, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode: str
) -> None:
    images = shutil.copytree(images, tmp_path / "images")
    (images / "kind 1" / "broken.jpg").write_bytes(b"\xff\xd8\xffnot a picture")
    classify_inputs(onnxruntime_bundle.path, settings(images, tmp_path / "cpu.jsonl"), print)
    emulated = EmulatedGpus(monkeypatch, [GPU])
    notes: list[str] = []
    summary = classify_inputs(
        onnxruntime_bundle.path, settings(images, tmp_path / "gpu.jsonl", decode=decode), notes.append
    )
    cpu, gpu = rows_of(tmp_path / "cpu.jsonl"), rows_of(tmp_path / "gpu.jsonl")
    for expected, found in zip(cpu, gpu, strict=True):
        assert (found["path"], found["error"]) == (expected["path"], expected["error"])
        assert [item["index"] for item in found["topk"]] == [item["index"] for item in expected["topk"]]
        np.testing.assert_allclose(
            [item["probability"] for item in found["topk"]],
            [item["probability"] for item in expected["topk"]],
            atol=2e-5,
        )
    assert emulated.runtimes[0].device.races() == []
    assert (summary.images, summary.failed) == (12, 1)
    assert notes == ([] if decode == "exact" else ["decoded: 3 on the GPU, 9 on the CPU or not at all"])


@pytest.mark.parametrize(
    ("gpus", "limit", "used"),
    [
        ([GPU], None, [0]),
        ([GPU, GPU], None, [0, 1]),
        ([GPU, OTHER, GPU], None, [0, 2]),
        ([GPU, GPU, GPU], 2, [0, 1]),
        ([GPU, GPU], 1, [0]),
        ([GPU], 4, [0]),
    ],
)
def test_all_gpus_like_the_first_are_used(
    onnxruntime_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, gpus: list[Gpu], limit: int | None, used: list[int]
) -> None:
    emulated = EmulatedGpus(monkeypatch, gpus)
    classifier = load_classifier(onnxruntime_bundle, RuntimeOptions(batch_size=4), k=5, gpus=limit)
    assert [options.gpu for options in emulated.opened] == used
    assert len(classifier.runtimes) == len(used)
    assert classifier.on_gpu


def test_an_engine_that_does_not_fit_is_loaded_for_smaller_batches(
    onnxruntime_bundle: Bundle, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulated = EmulatedGpus(monkeypatch, [GPU, GPU], room=3)
    notes: list[str] = []
    classify_inputs(onnxruntime_bundle.path, settings(images, tmp_path / "a.csv", batch_size=8), notes.append)
    assert [options.batch_size for options in emulated.opened] == [8, 4, 2, 2]
    assert notes == ["note: not enough memory for batches of 8, so they are of 2"]


def test_an_engine_that_fits_at_no_size_says_so(onnxruntime_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    emulated = EmulatedGpus(monkeypatch, [GPU], room=0)
    with pytest.raises(OutOfDeviceMemory, match="no room for 1"):
        load_classifier(onnxruntime_bundle, RuntimeOptions(batch_size=4), k=5)
    assert [options.batch_size for options in emulated.opened] == [4, 2, 1]


def test_decoding_on_the_gpu_needs_one(onnxruntime_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    classify_inputs(onnxruntime_bundle.path, settings(images, tmp_path / "a.csv", decode="fast"), notes.append)
    assert notes == ["note: --decode fast needs a GPU, so images are decoded exactly, on the CPU"]


@pytest.fixture
def mixed(images: Path, tmp_path: Path) -> Path:
    """Good images of several formats, and some that cannot be used."""
    directory = shutil.copytree(images, tmp_path / "mixed")
    (directory / "broken.jpg").write_bytes(b"\xff\xd8\xffnot a picture")
    (directory / "empty.png").touch()
    (directory / "large.png").write_bytes(picture(40, 30, "PNG"))
    (directory / "last.gif").write_bytes(picture(5, 4, "GIF"))
    return directory


def picture(width: int, height: int, image_format: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (1, 2, 3)).save(stream, image_format)
    return stream.getvalue()


def test_processes_that_decode_change_no_row(onnxruntime_bundle: Bundle, mixed: Path, tmp_path: Path) -> None:
    for name, others in (("threads", {}), ("processes", {"decode_workers": 2, "decode_seconds": 60})):
        classify_inputs(onnxruntime_bundle.path, settings(mixed, tmp_path / f"{name}.jsonl", **others), print)
    rows = rows_of(tmp_path / "processes.jsonl")
    assert rows == rows_of(tmp_path / "threads.jsonl")
    assert sum(row["status"] == "error" for row in rows) == 2


def test_a_process_that_has_too_little_memory_costs_a_row(onnxruntime_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, side in (("a", 8), ("b", 6000), ("c", 8)):
        (tmp_path / "in" / f"{name}.png").write_bytes(picture(side, side, "PNG"))
    limited = settings(tmp_path / "in", tmp_path / "o.jsonl", decode_workers=1, decode_memory_mib=64)
    classify_inputs(onnxruntime_bundle.path, limited, print)
    assert [row["error"] for row in rows_of(tmp_path / "o.jsonl")] == [
        None,
        "decoding needs more than 64 MiB",
        None,
    ]


@pytest.mark.parametrize(
    ("limits", "failed"),
    [
        ({"formats": ["gif"]}, {"large.png": "not allowed", "last.gif": None}),
        ({"max_pixels": 1199}, {"large.png": "1200 pixels, more than the limit of 1199", "last.gif": None}),
        ({"max_file_bytes": 10}, {"large.png": "more than the limit of 10", "last.gif": "more than the limit of 10"}),
    ],
)
def test_what_is_beyond_a_limit_costs_its_row(
    onnxruntime_bundle: Bundle,
    mixed: Path,
    tmp_path: Path,
    limits: dict[str, Any],
    failed: dict[str, str | None],
) -> None:
    for workers in (0, 1):
        output = tmp_path / f"{workers}.jsonl"
        classify_inputs(onnxruntime_bundle.path, settings(mixed, output, decode_workers=workers, **limits), print)
        errors = {row["path"].rpartition("/")[2]: row["error"] for row in rows_of(output)}
        for name, words in failed.items():
            assert (errors[name] is None) if words is None else (words in errors[name])


def test_limits_are_part_of_the_plan(onnxruntime_bundle: Bundle, mixed: Path, tmp_path: Path) -> None:
    classify_inputs(onnxruntime_bundle.path, settings(mixed, tmp_path / "o.jsonl"), print)
    notes: list[str] = []
    again = settings(mixed, tmp_path / "o.jsonl", max_pixels=100)
    assert classify_inputs(onnxruntime_bundle.path, again, notes.append).resumed == 0
    assert "max_pixels was 178956970, now it is 100" in notes[0]


def test_only_a_process_can_be_stopped() -> None:
    with pytest.raises(ValidationError, match="set decode_workers too"):
        settings(Path("in"), Path("o.jsonl"), decode_seconds=1)


def run_small(bundle: Bundle, images: Path, output: Path, **others: Any) -> tuple[Outcome, list[str]]:
    """Classify in shards of two, and return what was done and the notes."""
    notes: list[str] = []
    small = {"shard_size": 2, "batch_size": 2, **others}
    return classify_inputs(bundle.path, settings(images, output, **small), notes.append), notes


def leave_unfinished(bundle: Bundle, images: Path, output: Path, batches: int, **others: Any) -> None:
    """Classify, and be interrupted after some batches; those under way are still written."""

    @contextmanager
    def report_progress(_total: int | None) -> Iterator[Callable[[Sequence[Row]], None]]:
        seen: list[int] = []

        def on_rows(rows: Sequence[Row]) -> None:
            seen.append(len(rows))
            if len(seen) == batches:
                raise KeyboardInterrupt

        yield on_rows

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "report_progress", report_progress)
        run_small(bundle, images, output, lanes=1, **others)


@pytest.fixture
def own_images(images: Path, tmp_path: Path) -> Path:
    """The images again, to be changed."""
    return shutil.copytree(images, tmp_path / "images")


def test_an_interrupted_run_goes_on_and_ends_as_if_nothing_had_been(
    onnxruntime_bundle: Bundle, images: Path, tmp_path: Path
) -> None:
    run_small(onnxruntime_bundle, images, tmp_path / "whole.jsonl")
    leave_unfinished(onnxruntime_bundle, images, tmp_path / "o.jsonl", 1)
    assert not (tmp_path / "o.jsonl").exists()
    outcome, notes = run_small(onnxruntime_bundle, images, tmp_path / "o.jsonl")
    assert 2 <= outcome.resumed < 11
    assert (outcome.images, outcome.summary.images, outcome.left) == (11, 11 - outcome.resumed, 0)
    assert notes == [f"resuming: {outcome.resumed} images are done already"]
    assert (tmp_path / "o.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    again, notes = run_small(onnxruntime_bundle, images, tmp_path / "o.jsonl")
    assert (again.images, again.resumed, again.summary.images, notes) == (11, 11, 0, [])


def touch(images: Path) -> None:
    os.utime(images / "kind 1" / "image01.PNG", ns=(1, 1))


def add(images: Path) -> None:
    (images / "kind 2" / "late.png").write_bytes(b"")


def remove(images: Path) -> None:
    (images / "kind 2" / "image08.jpg").unlink()


def nothing(_images: Path) -> None:
    pass


CHANGES = [
    ({"top_k": 3}, nothing, "top_k was 5, now it is 3"),
    ({"decode": "fast"}, nothing, "decode was exact, now it is fast"),
    ({"shard_size": 3}, nothing, "shard_size was 2, now it is 3"),
    ({}, touch, "images in 1 of 6 shards are others or were written since"),
    ({}, add, "there were 11 images, now there are 12"),
    ({}, remove, "there were 11 images, now there are 10"),
]


@pytest.mark.parametrize(("others", "change", "difference"), CHANGES)
def test_an_unfinished_run_of_something_else_is_refused(
    onnxruntime_bundle: Bundle,
    own_images: Path,
    tmp_path: Path,
    *,
    others: dict[str, Any],
    change: Callable[[Path], None],
    difference: str,
) -> None:
    output = tmp_path / "o.jsonl"
    leave_unfinished(onnxruntime_bundle, own_images, output, 1)
    change(own_images)
    with pytest.raises(ArtifactError, match="is unfinished, and of another run") as caught:
        run_small(onnxruntime_bundle, own_images, output, **others)
    assert caught.value.exit_code == 5
    assert difference in caught.value.message
    outcome, notes = run_small(onnxruntime_bundle, own_images, output, resume=False, **others)
    assert (outcome.resumed, outcome.images) == (0, sum(1 for _ in own_images.rglob("*.*")))
    assert [text for text in notes if "resum" in text] == []


@pytest.mark.parametrize(("others", "change", "difference"), CHANGES)
def test_a_finished_run_of_something_else_is_replaced_with_a_note(
    onnxruntime_bundle: Bundle,
    own_images: Path,
    tmp_path: Path,
    *,
    others: dict[str, Any],
    change: Callable[[Path], None],
    difference: str,
) -> None:
    output = tmp_path / "o.jsonl"
    run_small(onnxruntime_bundle, own_images, output)
    change(own_images)
    outcome, notes = run_small(onnxruntime_bundle, own_images, output, **others)
    assert outcome.resumed == 0
    assert notes[0].startswith(f"note: {output} is of another run (")
    assert difference in notes[0]
    assert notes[0].endswith(") and will be replaced")
    assert len(rows_of(output)) == outcome.images == sum(1 for _ in own_images.rglob("*.*"))


def test_another_bundle_is_another_run(
    onnxruntime_bundle: Bundle, openvino_bundle: Bundle, images: Path, tmp_path: Path
) -> None:
    leave_unfinished(onnxruntime_bundle, images, tmp_path / "o.csv", 1)
    with pytest.raises(ArtifactError, match="the bundle was another"):
        run_small(openvino_bundle, images, tmp_path / "o.csv")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("count", [2, 8])
def test_parts_make_the_output_of_one_run(
    onnxruntime_bundle: Bundle, images: Path, tmp_path: Path, suffix: str, count: int
) -> None:
    """In any order, also where there are more parts than shards."""
    run_small(onnxruntime_bundle, images, tmp_path / f"whole.{suffix}")
    output, left = tmp_path / f"o.{suffix}", []
    for number in range(count, 0, -1):
        outcome, _ = run_small(onnxruntime_bundle, images, output, shard=Part(number, count))
        left.append(outcome.left)
    assert left == sorted(left, reverse=True)
    assert (left[-1], outcome.images) == (0, 11)
    assert output.read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    outcome, _ = run_small(onnxruntime_bundle, images, output, shard=Part(1, 5))
    assert (outcome.images, outcome.resumed, outcome.left) == (11, 11, 0)


def test_an_output_that_is_an_input_is_refused(onnxruntime_bundle: Bundle, own_images: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    output.write_text("mine")
    (tmp_path / "list.txt").write_text(f"{own_images / 'kind 0' / 'image00.jpg'}\n{output}\n")
    with pytest.raises(UsageError, match="is one of the inputs"):
        run_small(onnxruntime_bundle, tmp_path / "list.txt", output)
    assert output.read_text() == "mine"


@pytest.mark.parametrize("name", ["image00.jpg", "list.txt", "link.prom"])
def test_metrics_do_not_replace_an_input(onnxruntime_bundle: Bundle, images: Path, tmp_path: Path, name: str) -> None:
    """An image, the list that names it, or what a link points to."""
    picture = Path(shutil.copy(images / "kind 0" / "image00.jpg", tmp_path))
    (tmp_path / "list.txt").write_text(f"{picture}\n")
    (tmp_path / "link.prom").symlink_to(picture)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(UsageError, match=rf"{name} is one of the inputs") as caught:
        run_small(onnxruntime_bundle, tmp_path / "list.txt", tmp_path / "o.jsonl", metrics=tmp_path / name)
    assert "--metrics" in caught.value.hint
    by_url = ClassifySettings(
        inputs=[f"file://{tmp_path}/list.txt"], output=tmp_path / "o.jsonl", metrics=tmp_path / name
    )
    with pytest.raises(UsageError, match=rf"{name} is one of the inputs"):
        classify_inputs(onnxruntime_bundle.path, by_url, print)
    assert (tmp_path / name).read_bytes() == before


def test_metrics_and_output_are_two_files(onnxruntime_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="is the output too"):
        run_small(onnxruntime_bundle, images, tmp_path / "o.jsonl", metrics=tmp_path / "link" / "o.jsonl")
    assert not (tmp_path / "o.jsonl").exists()


def test_an_output_that_is_a_link_to_an_input_is_refused(
    onnxruntime_bundle: Bundle, own_images: Path, tmp_path: Path
) -> None:
    (tmp_path / "o.jsonl").symlink_to(own_images / "kind 0" / "image00.jpg")
    with pytest.raises(UsageError, match="is one of the inputs"):
        run_small(onnxruntime_bundle, own_images, tmp_path / "o.jsonl")


def metrics_of(file: Path) -> dict[str, float]:
    """Return the values that have no label."""
    lines = [line.split(" ") for line in file.read_text().splitlines() if line[0] != "#" and "{" not in line]
    return {name.removeprefix("trt_vit_"): float(value) for name, value, *_ in lines}


def test_metrics_tell_of_every_run_and_of_its_end(
    onnxruntime_bundle: Bundle, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that was ended before it made the output, one that only makes it, and one that finds it there."""
    file, output = tmp_path / "run.prom", tmp_path / "o.jsonl"

    def killed(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "assemble", killed)
        run_small(onnxruntime_bundle, images, output, metrics=file)
    found = metrics_of(file)
    assert (found["images_planned"], found["images_resumed_total"], found["ended"]) == (11, 0, 0)
    assert 'trt_vit_images_total{status="ok"} 11' in file.read_text()
    for _ in range(2):
        file.unlink()
        run_small(onnxruntime_bundle, images, output, metrics=file)
        found = metrics_of(file)
        assert (found["images_planned"], found["images_resumed_total"], found["ended"]) == (0, 11, 1)
    run_small(onnxruntime_bundle, images, tmp_path / "p.jsonl", metrics=file, shard=Part(1, 2))
    found = metrics_of(file)
    assert (found["images_resumed_total"], found["ended"]) == (0, 1)
    assert 0 < found["images_planned"] < 11
