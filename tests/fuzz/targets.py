"""What reads files of strangers, each as a function of the file's bytes that only the reader's own errors leave.

``make test`` runs them on seeds and on what hypothesis makes of those; ``python -m tests.fuzz.run`` searches further.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fuzz.models import CLASSES, EDGE, edited, needs_files, weights
from trt_vit.checkpoint.files import read_json_object
from trt_vit.checkpoint.labels import labels_from_config, labels_from_file
from trt_vit.checkpoint.preprocessing import read_preprocessing
from trt_vit.checkpoint.source import Checkpoint
from trt_vit.config import resolve
from trt_vit.engine.bundle import Bundle
from trt_vit.errors import TrtVitError
from trt_vit.evaluate.labelled import find_labelled
from trt_vit.reading import is_plain, parse_json
from trt_vit.settings import BuildSettings, ClassifySettings

if TYPE_CHECKING:
    from collections.abc import Callable

    Target = Callable[[bytes], None]

LONGEST_MESSAGE = 3000
"""Letters of an error that are still a line for a person; the path of the scratch directory is among them."""
NAMES = ["tench, Tinca tinca", "goldfish", "crane", "crane"]
SYNSETS = ["n01440764", "n01443537", "n02012849", "n03126707"]
PREPROCESSING = b'{"resize": {"kind": "squash", "size": [8, 8]}}'
PREPROCESSOR = b'{"image_processor_type": "ViTImageProcessor", "size": 8}'

MANIFEST: dict[str, Any] = {
    "format": 3,
    "created": "2026-01-01T00:00:00+00:00",
    "runtime": "onnxruntime",
    "precision": "int8",
    "batch": {"min": 1, "opt": 2, "max": 4},
    "checkpoint": {
        "source": "./vit",
        "kind": "directory",
        "revision": None,
        "architecture": "ViTForImageClassification",
        "weights_sha256": "0" * 64,
        "parameters": 12,
    },
    "model": {"input_name": "images", "output_name": "logits", "height": 8, "width": 8, "classes": 4},
    "export": {"opset": 18, "max_abs_difference": 1e-6},
    "target": {"lanes": 2, "compute_capability": "8.9"},
    "quantization": {
        "calibration": "images",
        "images": 8,
        "images_sha256": "0" * 64,
        "ranges": "error",
        "min_agreement": 0.98,
        "reached": True,
        "held_back": 4,
        "agreement": 1.0,
        "expected_agreement": 0.9,
        "plan": [
            {
                "layer": "fc1",
                "precision": "int8",
                "macs": 12,
                "amax": 1.5,
                "equalized": False,
                "attention": False,
                "cost": None,
                "reason": None,
            }
        ],
    },
    "engine": {
        "layers": 2,
        "kinds": {"MatMul": 2},
        "precisions": {"int8": 2},
        "fused_attention": 0,
        "attentions": 1,
        "reformats": 0,
        "weights_bytes": 12,
        "int8_coverage": 1.0,
        "against_fp32": {
            "measured_on": "engine",
            "measured_in": "int8",
            "images": 8,
            "agreement": 1.0,
            "cosine": 0.999,
            "max_abs_difference": 0.1,
        },
    },
    "files": {"engine.onnx": {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}},
    "versions": {"python": "3.11.7"},
}
"""A manifest with something in each of its places."""


@functools.cache
def scratch() -> Path:
    """A directory for this process."""
    directory = Path(tempfile.mkdtemp(prefix="trt-vit-fuzz-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def only_own_errors(read: Target) -> Target:
    """Let an error of ours pass where a person can be shown it; everything else is a finding."""

    @functools.wraps(read)
    def target(data: bytes) -> None:
        try:
            read(data)
        except TrtVitError as error:
            check(error)

    return target


def check(error: Exception) -> None:
    """Refuse the text of an error that a terminal should not be shown."""
    text = str(error)
    assert is_plain(text), f"an error with control characters: {text!r}"
    assert len(text) <= LONGEST_MESSAGE, f"an error of {len(text)} letters: {text[:200]!r}"


def written(name: str, data: bytes) -> Path:
    """Write a file, in a directory of its own that is made once."""
    path = scratch() / Path(name).stem / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


@only_own_errors
def manifest(data: bytes) -> None:
    """A manifest, and what it says of a file that is there."""
    path = written("manifest.json", data)
    (path.parent / "engine.onnx").touch()
    opened = Bundle.open(path.parent)
    assert all("/" not in name and not name.startswith(".") for name in opened.manifest.files)
    opened.verify()


@only_own_errors
def bundle(data: bytes) -> None:
    """The labels or the preprocessing of a bundle whose manifest agrees with them."""
    name, content = ("labels.json", data[1:]) if data[:1] < b"\x80" else ("preprocessing.json", data[1:])
    directory = scratch() / "bundle"
    directory.mkdir(exist_ok=True)
    listed = {name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}}
    (directory / name).write_bytes(content)
    (directory / "manifest.json").write_text(json.dumps(MANIFEST | {"files": listed}), encoding="utf-8")
    opened = Bundle.open(directory)
    opened.verify()
    if name == "labels.json":
        assert all(map(is_plain, opened.labels()))
    else:
        assert opened.preprocessing().output_size == (8, 8)


@only_own_errors
def config(data: bytes) -> None:
    """config.yaml, read for a command whose flags say the rest."""
    flags = {"inputs": ["a.jpg"], "output": Path("o.csv")}
    resolve(ClassifySettings, flags, config=written("config.yaml", data), environment={})


@only_own_errors
def engine_recipe(data: bytes) -> None:
    """A recipe of an engine."""
    settings = resolve(BuildSettings, {}, recipe=written("engine.yaml", data), config=empty(), environment={})
    assert is_plain(settings.source)


@only_own_errors
def pipeline_recipe(data: bytes) -> None:
    """A recipe of a pipeline."""
    settings = resolve(ClassifySettings, {}, recipe=written("pipeline.yaml", data), config=empty(), environment={})
    assert all(map(is_plain, settings.inputs))


def empty() -> Path:
    """A config file with nothing in it, so that none of the working directory is read."""
    return written("empty.yaml", b"")


@only_own_errors
def labels_file(data: bytes) -> None:
    """The labels of a build: one a line."""
    assert all(map(is_plain, labels_from_file(written("labels.txt", data), classes=2)))


@only_own_errors
def model_config(data: bytes) -> None:
    """The labels in a checkpoint's config.json."""
    path = written("model_config.json", data)
    assert all(map(is_plain, labels_from_config(read_json_object(path), classes=2, path=path)))


@only_own_errors
def preprocessor_config(data: bytes) -> None:
    """How a checkpoint wants its images."""
    preprocessing = read_preprocessing(written("preprocessor_config.json", data), model_type="vit")
    assert preprocessing.model_validate_json(preprocessing.model_dump_json()) == preprocessing


def evaluated(folder: str, name: str, data: bytes) -> Path:
    """Put a file of labels beside two images, or what goes for such: they are only listed."""
    directory = scratch() / folder
    directory.mkdir(exist_ok=True)
    for number in (1, 2):
        (directory / f"ILSVRC2012_val_{number:08}.JPEG").touch()
    (directory / name).write_bytes(data)
    return directory


def score(directory: Path, name: str) -> None:
    found = find_labelled(directory, directory / name, NAMES)
    assert len(found.paths) == len(found.targets) > 0
    assert all(0 <= index < len(NAMES) for target in found.targets for index in target)


@only_own_errors
def label_lines(data: bytes) -> None:
    """Lines of file and class, or of the development kit's numbers."""
    directory = evaluated("lines", "labels.txt", data)
    rows = [f"{name} {number} word" for number, name in enumerate(SYNSETS, start=1)]
    (directory / "map_clsloc.txt").write_text("\n".join(rows), encoding="utf-8")
    score(directory, "labels.txt")


@only_own_errors
def label_table(data: bytes) -> None:
    """A table of file and class."""
    score(evaluated("table", "labels.csv", data), "labels.csv")


@only_own_errors
def devkit(data: bytes) -> None:
    """The development kit's own table of classes."""
    directory = evaluated("devkit", "map_clsloc.txt", data)
    (directory / "labels.txt").write_text("1\n2\n", encoding="utf-8")
    score(directory, "labels.txt")


@only_own_errors
def real_labels(data: bytes) -> None:
    """ReaL's labels: several classes an image."""
    score(evaluated("real", "real.json", data), "real.json")


def strict_json(data: bytes) -> None:
    """Any JSON document: what is read is what was written, and can be written and read again."""
    try:
        document = parse_json(data)
    except ValueError as error:
        check(error)
    else:
        assert parse_json(json.dumps(document, allow_nan=False).encode()) == document


def _convert(directory: Path, data: bytes) -> None:
    from trt_vit.checkpoint.onnx_source import copy_onnx

    directory.mkdir(exist_ok=True)
    (directory / "model.onnx").write_bytes(data)
    (directory / "weights.bin").write_bytes(weights())
    (directory / "preprocessor_config.json").write_bytes(PREPROCESSOR)
    (directory / "config.json").write_text(
        json.dumps({"id2label": {str(index): f"kind {index}" for index in range(CLASSES)}}), encoding="utf-8"
    )
    source = Checkpoint("onnx", "model.onnx", directory / "model.onnx")
    export = copy_onnx(source, scratch() / "copies" / "copy.onnx", preprocessor=None, labels=None)
    assert export.image_size == (EDGE, EDGE)
    assert all(map(is_plain, (*export.labels, export.input_name, export.output_name)))
    assert not needs_files(export.path.read_bytes())


@only_own_errors
def onnx_bytes(data: bytes) -> None:
    """An .onnx file as it is."""
    _convert(scratch() / "bytes", data)


@only_own_errors
def onnx_edits(data: bytes) -> None:
    """A small model, with external weights, that the data say how to change: what a parser lets pass."""
    _convert(scratch() / "edits", edited(data))


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        manifest,
        bundle,
        config,
        engine_recipe,
        pipeline_recipe,
        labels_file,
        model_config,
        preprocessor_config,
        label_lines,
        label_table,
        devkit,
        real_labels,
        strict_json,
        onnx_bytes,
        onnx_edits,
    )
}
