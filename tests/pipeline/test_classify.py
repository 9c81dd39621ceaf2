"""From a bundle to a file of rows, with the engine on emulated GPUs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.emulated_gpu import EmulatedDecoder, EmulatedRuntime
from tests.support.recording_device import RecordingDevice
from trt_vit.config import ClassifySettings
from trt_vit.cuda import driver
from trt_vit.cuda.driver import Gpu
from trt_vit.errors import OutOfDeviceMemory
from trt_vit.pipeline import classify as module
from trt_vit.pipeline import loading
from trt_vit.pipeline.classify import classify_inputs, load_classifier
from trt_vit.runtime.onnxruntime import OnnxRuntimeRuntime
from trt_vit.runtime.protocol import RuntimeOptions

if TYPE_CHECKING:
    from pathlib import Path

    from trt_vit.engine.bundle import Bundle
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
