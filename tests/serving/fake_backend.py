"""As much of ``triton_python_backend_utils`` as a model calls, and of the process that calls a model.

Both are as the Python backend's documentation says: arguments are strings, inputs of type TYPE_STRING are arrays of
bytes, there is one response a request, and it has either output tensors or an error.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest
    from numpy.typing import NDArray


class Tensor:
    def __init__(self, name: str, array: NDArray[Any]) -> None:
        assert isinstance(array, np.ndarray)
        self._name = name
        self._array = array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._array


class TritonError:
    INTERNAL, INVALID_ARG = "INTERNAL", "INVALID_ARG"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self._message = message
        self._code = code

    def message(self) -> str:
        return self._message

    def code(self) -> str:
        return self._code


class InferenceRequest:
    def __init__(self, inputs: list[Tensor]) -> None:
        self._inputs = inputs

    def inputs(self) -> list[Tensor]:
        return self._inputs


@dataclass(frozen=True)
class InferenceResponse:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)


def get_output_config_by_name(model_config: dict[str, Any], name: str) -> Any:
    return next((output for output in model_config["output"] if output["name"] == name), None)


class Backend:
    """Serves one version of a model, whose directory is given."""

    def __init__(self, patch: pytest.MonkeyPatch, directory: Path, version: int, output: dict[str, Any]) -> None:
        utils = ModuleType("triton_python_backend_utils")
        utils.__dict__.update(
            Tensor=Tensor,
            TritonError=TritonError,
            InferenceResponse=InferenceResponse,
            get_input_tensor_by_name=get_input_tensor_by_name,
            get_output_config_by_name=get_output_config_by_name,
        )
        patch.setitem(sys.modules, "triton_python_backend_utils", utils)
        patch.syspath_prepend(str(directory / str(version)))
        patch.delitem(sys.modules, "model", raising=False)
        self._output = output
        self._model = importlib.import_module("model").TritonPythonModel()
        patch.delitem(sys.modules, "model")
        arguments = {
            "model_config": json.dumps({"name": directory.name, "output": [output]}),
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
            "model_repository": str(directory),
            "model_version": str(version),
            "model_name": directory.name,
        }
        self._model.initialize(arguments)

    def infer(self, requests: Sequence[Sequence[bytes]]) -> list[NDArray[np.float32] | TritonError]:
        """Run requests, each of some files, and return the output or the error of each."""
        inputs = [np.array([[file] for file in files], dtype=np.object_) for files in requests]
        responses = self._model.execute([InferenceRequest([Tensor("image", array)]) for array in inputs])
        assert [type(response) for response in responses] == [InferenceResponse] * len(requests)
        return [self._outcome(response, len(files)) for response, files in zip(responses, requests, strict=True)]

    def _outcome(self, response: InferenceResponse, images: int) -> NDArray[np.float32] | TritonError:
        if response.error is not None:
            return response.error
        (tensor,) = response.output_tensors
        assert tensor.name() == self._output["name"]
        array = tensor.as_numpy()
        assert array.dtype == np.float32
        assert array.shape == (images, *self._output["dims"])
        return array
