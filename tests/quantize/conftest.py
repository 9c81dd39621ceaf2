from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.checkpoints import random_checkpoint
from trt_vit.checkpoint.load import to_onnx

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ir.Model]:
    """Gives the tiny checkpoint of an architecture as a graph of opset 22, exported once."""
    root = tmp_path_factory.mktemp("exports")

    @cache
    def path(architecture: str) -> Path:
        layers = {"depths": [1, 1]} if architecture == "swin" else {"num_hidden_layers": 1}
        checkpoint = random_checkpoint(architecture, root / architecture, **layers)
        return to_onnx(str(checkpoint), root / f"{architecture}.onnx", opset=22).path

    return lambda architecture: ir.load(path(architecture))


@pytest.fixture
def vit(export: Callable[[str], ir.Model]) -> ir.Model:
    """A tiny ViT: a layer of width 32, 16 patches and a class token, 7 classes."""
    return export("vit")


@pytest.fixture(scope="session")
def pixels() -> NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal((4, 3, 32, 32), dtype=np.float32)
