from __future__ import annotations

import pytest

from trt_vit.checkpoint.metadata import stored_checkpoint, stored_labels, stored_preprocessing
from trt_vit.errors import CheckpointError


def test_a_file_without_metadata() -> None:
    assert stored_preprocessing({}, where="m.onnx") is None
    assert stored_labels({}, classes=2, where="m.onnx") is None
    assert stored_checkpoint({}, where="m.onnx") == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"resize": null, "unknown": 1}', '{"resize": {"kind": "tilt"}}'])
def test_preprocessing_that_this_package_did_not_write(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"m.onnx: its metadata trt_vit.preprocessing") as caught:
        stored_preprocessing({"trt_vit.preprocessing": text}, where="m.onnx")
    assert "--preprocessor FILE" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{}", '["a"]', '["a", 2]', '"ab"'])
def test_labels_that_this_package_did_not_write(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"m.onnx: its metadata trt_vit.labels") as caught:
        stored_labels({"trt_vit.labels": text}, classes=2, where="m.onnx")
    assert "--labels FILE" in caught.value.hint


@pytest.mark.parametrize("text", ["", "[]", "1"])
def test_origin_that_this_package_did_not_write(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"trt_vit.checkpoint"):
        stored_checkpoint({"trt_vit.checkpoint": text}, where="m.onnx")
