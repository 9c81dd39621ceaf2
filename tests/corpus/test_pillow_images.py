"""Pillow's own test images, a thousand of every format, many of them broken on purpose.

They are looked for below the directory that VIT_TEST_CORPUS names, or in build/corpus, where `make corpus` puts them.
"""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageOps

from trt_vit.cli import run
from trt_vit.errors import ImageError
from trt_vit.images.decode import decode
from trt_vit.images.limits import DecodeLimits
from trt_vit.images.workers import DecodeWorkers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trt_vit.engine.bundle import Bundle
    from trt_vit.images.workers import Decoder

DIRECTORY = Path(os.environ.get("VIT_TEST_CORPUS") or Path(__file__).parents[2] / "build" / "corpus")
FILES = sorted(path for path in DIRECTORY.rglob("*") if path.is_file() and path.name[0] != ".")

# What Pillow warns of is silenced for the process when trt_vit.images.decode is imported; pytest undoes that.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.skipif(not FILES, reason="needs Pillow's test images: make corpus, or VIT_TEST_CORPUS=DIR"),
]

ON_THE_LIST = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP")
THIRTY_TWO_BITS = "samples are not of 8 or 16 unsigned bits, so nothing says which value is white"
MEMORY = 192 * 2**20  # the largest of them, of 15 million pixels, takes 163 MiB


def outcome(decoder: Decoder, data: bytes) -> NDArray[np.uint8] | str:
    try:
        return decoder(data)
    except ImageError as error:
        return str(error)


def same(one: NDArray[np.uint8] | str, other: NDArray[np.uint8] | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return isinstance(one, str) and isinstance(other, str) and one == other
    return one.dtype == other.dtype and np.array_equal(one, other)


def with_pillow(data: bytes) -> NDArray[np.uint8] | None:
    """What Pillow makes of a file, upright and on white; 16 bits keep their high byte, as decode.py says.

    None where Pillow refuses it or its format is not on the list, and for samples of 32 bits.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data), formats=ON_THE_LIST))
        if image.mode in ("I", "F"):
            return None
        transparency = image.info.get("transparency")
        if image.mode.startswith("I;16"):
            samples = np.asarray(image)
            grey = np.where(samples == transparency, 255, samples >> 8).astype(np.uint8)
            return np.stack([grey] * 3, axis=2)
        if "A" in image.getbands() or transparency is not None:
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return np.asarray(image.convert("RGB"))
    except Exception:  # noqa: BLE001 - broken on purpose
        return None


def test_they_are_all_here() -> None:
    assert len(FILES) > 1000
    assert sum(not isinstance(outcome(decode, path.read_bytes()), str) for path in FILES) > 600


def test_a_worker_gives_the_same_pixels_or_error_within_bounded_memory() -> None:
    different: dict[str, object] = {}
    with DecodeWorkers(1, DecodeLimits(seconds=120), MEMORY) as workers:
        (process,) = (worker._process.pid for worker in workers._workers)
        for path in FILES:
            data = path.read_bytes()
            here, there = outcome(decode, data), outcome(workers.decode, data)
            if not same(here, there):
                different[path.name] = (here, there)
        assert [worker._process.pid for worker in workers._workers] == [process]  # none was lost
    assert different == {}


def test_an_error_is_one_line_without_paths_or_addresses() -> None:
    outcomes = [outcome(decode, path.read_bytes()) for path in FILES]
    errors = {error for error in outcomes if isinstance(error, str)}
    assert len(errors) > 10
    assert [error for error in errors if not re.fullmatch(r"[ -~]{5,250}", error)] == []
    assert [error for error in errors if re.search(r"0x[0-9a-f]{6}|\.py|/|<_?[a-z]", error)] == []


def test_what_pillow_opens_without_complaint_is_equal_to_the_bit() -> None:
    wrong: dict[str, object] = {}
    compared = 0
    for path in FILES:
        data = path.read_bytes()
        ours, expected = outcome(decode, data), with_pillow(data)
        if expected is not None:
            compared += 1
            if not same(ours, expected):
                wrong[path.name] = ours
        elif not isinstance(ours, str):
            wrong[path.name] = "decoded, though Pillow does not"
    assert wrong == {}
    assert compared > 600


def test_only_samples_of_32_bits_are_refused_that_pillow_would_take() -> None:
    refused = []
    for path in FILES:
        try:
            image = Image.open(path, formats=ON_THE_LIST)
            image.load()
        except Exception:  # noqa: BLE001, S112 - broken on purpose
            continue
        if isinstance(message := outcome(decode, path.read_bytes()), str):
            refused.append((message, image.mode))
    assert set(refused) == {(THIRTY_TWO_BITS, "I"), (THIRTY_TWO_BITS, "F")}


def test_the_whole_command_has_a_row_for_every_one(openvino_bundle: Bundle, tmp_path: Path) -> None:
    paths = [str(path) for path in FILES if path.suffix != ".tar"]  # which is many images, not one
    (tmp_path / "all.txt").write_text("\n".join(paths), encoding="utf-8")
    found = []
    for name, options in (("threads", []), ("processes", ["--decode-workers", "2", "--decode-seconds", "60"])):
        output = tmp_path / f"{name}.jsonl"
        inputs = [str(openvino_bundle.path), str(tmp_path / "all.txt")]
        assert run(["classify", *inputs, "-o", str(output), *options]) == 0
        found.append([json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()])
    threads, processes = found
    assert [row["path"] for row in threads] == paths
    assert processes == threads
    assert 100 < sum(row["status"] == "ok" for row in threads) < len(paths)
    assert all((row["error"] is None) == (row["status"] == "ok") == bool(row["topk"]) for row in threads)
