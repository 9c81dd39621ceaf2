"""Graphs run in ONNX Runtime while they are being quantized, each node computing what it stands for."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.onnxruntime import open_session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_MODEL = "model.onnx"


@contextmanager
def opened(model: ir.Model) -> Iterator[Any]:
    """Open a session on a model in which no Q/DQ pair is fused into a product.

    Its weights lie in a file of their own meanwhile, as those of ViT-g are beyond the 2 GB of a protobuf message.

    Raises:
        EnvironmentFault: ONNX Runtime is missing.
        ArtifactError: ONNX Runtime cannot read the graph.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, _MODEL)
        ir.save(model, path, external_data=f"{_MODEL}.data")
        yield open_session(path, threads=usable_cores(), fuse_qdq=False)


def run(model: ir.Model, batches: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the first output of a graph of one input, float32 [images, ...], over all batches.

    Raises:
        EnvironmentFault: As for ``opened``.
        ArtifactError: As there.
    """
    with opened(model) as session:
        given = session.get_inputs()[0].name
        return np.concatenate([np.asarray(session.run(None, {given: batch})[0], np.float32) for batch in batches])
