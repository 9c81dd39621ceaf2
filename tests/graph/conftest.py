from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import pytest

from tests.support.checkpoints import random_checkpoint
from tests.support.graphs import export, logits
from trt_vit.graph.opset import upgrade

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass
class Graphs:
    """Each architecture by each exporter, exported once for the whole session, as that takes seconds."""

    root: Path
    done: dict[tuple[str, str], Path] = field(default_factory=dict)
    answers: dict[tuple[str, str], list[NDArray[Any]]] = field(default_factory=dict)

    def path(self, architecture: str, exporter: str) -> Path:
        key = (architecture, exporter)
        if key not in self.done:
            checkpoint = self.root / architecture
            if not checkpoint.exists():
                random_checkpoint(architecture, checkpoint)
            self.done[key] = export(architecture, checkpoint, exporter, self.root / f"{architecture}.{exporter}.onnx")
        return self.done[key]

    def logits(self, architecture: str, exporter: str) -> list[NDArray[Any]]:
        key = (architecture, exporter)
        if key not in self.answers:
            self.answers[key] = logits(ir.load(self.path(architecture, exporter)))
        return self.answers[key]

    def model(self, architecture: str, exporter: str, opset: int = 20) -> ir.Model:
        return upgrade(ir.load(self.path(architecture, exporter)), opset)


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return Graphs(tmp_path_factory.mktemp("graphs"))
