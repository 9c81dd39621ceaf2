"""From a bundle to three models that NVIDIA Triton Inference Server serves: engine, preprocessing, and both as one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_vit.engine.bundle import PREPROCESSING
from trt_vit.errors import UsageError
from trt_vit.serving.engine import served_engine
from trt_vit.serving.model_config import (
    CONFIG,
    LABELS,
    engine_config,
    ensemble_config,
    label_lines,
    preprocess_config,
)
from trt_vit.serving.repository import TritonModel, add_models

if TYPE_CHECKING:
    from pathlib import Path

    from trt_vit.engine.bundle import Bundle

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LONGEST_NAME = 200
"""Characters. A directory's name has 255 bytes, and the names of the other two models are longer."""
_MODEL_PY = b'''"""Where Triton's Python backend begins. The code is trt_vit's, which has to be installed there."""

from trt_vit.serving.preprocess import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class Exported:
    """What was added to a repository.

    Attributes:
        model: Name of the engine's model; ``_preprocess`` and ``_ensemble`` behind it name the other two.
        version: The version that they have got.
        files: What was written, relative to the repository.
    """

    model: str
    version: int
    files: tuple[str, ...]


def export_triton(bundle: Bundle, repository: Path, name: str | None = None) -> Exported:
    """Add a bundle to a model repository.

    Args:
        bundle: The bundle. Every file of it that is used is verified.
        repository: Triton's model repository; made where there is none.
        name: Name of the model, or None for that of the bundle's directory.

    Raises:
        UsageError: The name is none that a model can have, the repository lies in the bundle, or Triton cannot serve
            such an engine.
        ArtifactError: The bundle is not what was built.
        OutputError: Another model has the name, or the repository cannot be written.
        EnvironmentFault: The library that reads the engine is missing.
    """
    name = default_name(bundle.path) if name is None else name
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        message = f"--name {name!r} is not a model's name"
        hint = f"use up to {_LONGEST_NAME} letters, digits, dots, dashes and underscores, a letter or digit first"
        raise UsageError(message, hint=hint)
    place, own = repository.resolve(), bundle.path.resolve()
    if own in (place, *place.parents):
        raise UsageError(f"{repository} lies in the bundle", hint="choose a REPOSITORY outside of it")
    added = add_models(repository, _models(bundle, name))
    return Exported(name, added.version, added.files)


def default_name(path: Path) -> str:
    """Return the name of a bundle's directory with what a model's name cannot have replaced or left out."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", path.resolve().name).lstrip("._-")[:_LONGEST_NAME] or "model"


def _models(bundle: Bundle, name: str) -> list[TritonModel]:
    """Return the three models; the ensemble is last, as it is made of the others."""
    manifest, engine = bundle.manifest, served_engine(bundle)
    model, batch = engine.model, manifest.batch
    bundle.preprocessing()  # refuses what does not fit the engine
    preprocess, labels = f"{name}_preprocess", label_lines(bundle.labels())
    config = engine_config(name, manifest.runtime, manifest.precision, model, batch)
    ensemble = ensemble_config(f"{name}_ensemble", preprocess, name, model, batch)
    return [
        TritonModel(
            preprocess,
            {CONFIG: preprocess_config(preprocess, model, batch).encode()},
            {"model.py": _MODEL_PY, PREPROCESSING: bundle.read(PREPROCESSING)},
        ),
        TritonModel(name, {CONFIG: config.encode(), LABELS: labels}, engine.files),
        TritonModel(f"{name}_ensemble", {CONFIG: ensemble.encode(), LABELS: labels}, {}),
    ]
