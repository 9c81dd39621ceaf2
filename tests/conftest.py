from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.support.checkpoints import random_checkpoint
from trt_vit.engine.build import build
from trt_vit.engine.manifest import BatchProfile
from trt_vit.engine.progress import Quiet
from trt_vit.settings import BuildSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trt_vit.engine.bundle import Bundle
    from trt_vit.engine.manifest import RuntimeName


# A job in the background ignores it, and so would all that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the tests build out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT with random weights, 32 x 32 pixels."""
    return random_checkpoint("vit", tmp_path_factory.mktemp("checkpoint") / "tiny-vit")


def _build(checkpoint: Path, output: Path, runtime: RuntimeName) -> Bundle:
    profile = BatchProfile(min=1, opt=4, max=8)
    settings = BuildSettings(source=str(checkpoint), output=output, runtime=runtime, batch=profile)
    return build(settings, Quiet())


@pytest.fixture(scope="session")
def openvino_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return _build(checkpoint, tmp_path_factory.mktemp("bundles") / "openvino", "openvino")


@pytest.fixture(scope="session")
def onnxruntime_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return _build(checkpoint, tmp_path_factory.mktemp("bundles") / "onnxruntime", "onnxruntime")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of 11 images of different sizes and formats in class folders."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(7)
    for number in range(11):
        folder = root / f"kind {number % 3}"
        folder.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, size=(20 + 3 * number, 50 - 2 * number, 3), dtype=np.uint8)
        suffix = ("jpg", "PNG", "webp", "bmp")[number % 4]
        Image.fromarray(pixels).save(folder / f"image{number:02}.{suffix}")
    return root
