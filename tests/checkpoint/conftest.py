from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.support.checkpoints import random_checkpoint
from trt_vit.checkpoint.export import Export, export_onnx
from trt_vit.checkpoint.source import resolve

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Exports:
    """One checkpoint and one export of each architecture for the whole session, as each takes seconds."""

    root: Path
    done: dict[str, Export] = field(default_factory=dict)

    def directory(self, architecture: str) -> Path:
        directory = self.root / architecture
        return directory if directory.exists() else random_checkpoint(architecture, directory)

    def export(self, architecture: str) -> Export:
        if architecture not in self.done:
            checkpoint = resolve(str(self.directory(architecture)))
            self.done[architecture] = export_onnx(checkpoint, self.root / "onnx" / f"{architecture}.onnx")
        return self.done[architecture]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("checkpoints"))
