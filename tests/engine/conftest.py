from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.checkpoints import random_checkpoint
from trt_vit.checkpoint.load import to_onnx
from trt_vit.engine.build import build
from trt_vit.engine.manifest import BatchProfile
from trt_vit.engine.progress import Quiet
from trt_vit.runtime.tensorrt_family import Family, load_family, module_name
from trt_vit.settings import BuildSettings

if TYPE_CHECKING:
    from pathlib import Path

    from trt_vit.engine.bundle import Bundle

BATCH = BatchProfile(min=1, opt=4, max=8)


@dataclass
class Listener(Quiet):
    """Keeps what a build says."""

    said: list[str] = field(default_factory=list)

    def phase(self, text: str) -> None:
        self.said.append(text)


@dataclass(frozen=True)
class Workshop:
    """Builds TensorRT for RTX engines of one small ViT, for GPUs of compute capability 8.9, with one cache."""

    onnx: Path
    images: Path
    cache: Path

    def settings(self, output: Path, **changes: Any) -> BuildSettings:
        usual: dict[str, Any] = {
            "source": str(self.onnx),
            "output": output,
            "runtime": "tensorrt-rtx",
            "compute_capability": "8.9",
            "batch": BATCH,
            "lanes": 1,
            "calibration": self.images,
            "calibration_images": 8,
            "min_agreement": 0,  # random weights have no margins
            "cache": self.cache,
        }
        return BuildSettings(**(usual | changes))

    def build(self, output: Path, listener: Quiet | None = None, **changes: Any) -> Bundle:
        return build(self.settings(output, **changes), listener or Quiet())


@pytest.fixture(scope="session")
def vit_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of two layers with heads of 32 and random weights, 32 x 32 pixels, as an .onnx file."""
    root = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 128}
    checkpoint = random_checkpoint("vit", root / "vit", **sizes)
    to_onnx(str(checkpoint), root / "vit.onnx")
    return root / "vit.onnx"


@pytest.fixture(scope="session")
def rtx() -> Family:
    """TensorRT for RTX, which builds without a GPU."""
    if module_name("tensorrt-rtx") is None:
        pytest.skip("needs TensorRT for RTX: pip install 'trt-vit[rtx]'")
    return load_family("tensorrt-rtx")


@pytest.fixture(scope="session")
def workshop(rtx: Family, vit_onnx: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(vit_onnx, images, tmp_path_factory.mktemp("cache"))
