"""The model that Triton's Python backend runs: files to pixels, decoded and preprocessed as in every other run."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_vit.engine.bundle import PREPROCESSING
from trt_vit.errors import ImageError
from trt_vit.images.decode import decode
from trt_vit.images.preprocess import Preprocessor
from trt_vit.images.preprocessing import Preprocessing
from trt_vit.serving.model_config import IMAGE, PIXELS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class TritonPythonModel:
    """Decodes and preprocesses the images of a request. Name and methods are those that the Python backend calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the preprocessing that lies beside model.py.

        Args:
            args: What the backend tells of the model: ``model_repository`` is the model's directory, ``model_version``
                names the version's in it, ``model_config`` is the configuration as JSON.
        """
        self._triton = import_module("triton_python_backend_utils")  # there is none but in the backend's own process
        file = Path(args["model_repository"], args["model_version"], PREPROCESSING)
        output = self._triton.get_output_config_by_name(json.loads(args["model_config"]), PIXELS)
        _, height, width = (int(size) for size in output["dims"])
        preprocessing = Preprocessing.model_validate_json(file.read_bytes())
        self._preprocessor = Preprocessor(preprocessing, (height, width))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response for each request: float32 [n, 3, height, width], or what is wrong with an image of it."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        triton = self._triton
        files = triton.get_input_tensor_by_name(request, IMAGE).as_numpy().reshape(-1)
        pixels = np.empty((len(files), 3, *self._preprocessor.output_size), dtype=np.float32)
        for number, file in enumerate(files):
            try:
                self._preprocessor(decode(file), pixels[number])
            except ImageError as error:
                message = f"image {number} of {len(files)}: {error}"
                return triton.InferenceResponse(error=triton.TritonError(message, triton.TritonError.INVALID_ARG))
        return triton.InferenceResponse(output_tensors=[triton.Tensor(PIXELS, pixels)])
