from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from trt_vit.engine.manifest import BatchProfile, ModelRecord
from trt_vit.serving.model_config import engine_config, ensemble_config, label_lines, preprocess_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from trt_vit.engine.manifest import RuntimeName

MODEL = ModelRecord(input_name="pixel_values", output_name="logits", height=48, width=32, classes=7)
BATCH = BatchProfile(min=1, opt=4, max=8)
RUNTIMES: tuple[RuntimeName, ...] = ("tensorrt", "onnxruntime", "openvino")
HOSTILE = 'x" } evil { \\\n7\té\u2028'

TENSORRT = """\
name: "vit"
platform: "tensorrt_plan"
max_batch_size: 8
input {
  name: "pixel_values"
  data_type: TYPE_FP32
  dims: [3, 48, 32]
}
output {
  name: "logits"
  data_type: TYPE_FP32
  dims: [7]
  label_filename: "labels.txt"
}
instance_group {
  kind: KIND_GPU
}
dynamic_batching {
  preferred_batch_size: [4]
}
"""
ONNXRUNTIME = TENSORRT.replace('platform: "tensorrt_plan"', 'backend: "onnxruntime"').replace(
    "instance_group {\n  kind: KIND_GPU\n}\n", ""
)
OPENVINO = """\
name: "vit"
backend: "openvino"
max_batch_size: 0
input {
  name: "pixel_values"
  data_type: TYPE_FP32
  dims: [-1, 3, 48, 32]
}
output {
  name: "logits"
  data_type: TYPE_FP32
  dims: [-1, 7]
  label_filename: "labels.txt"
}
instance_group {
  kind: KIND_CPU
}
"""
PREPROCESS = """\
name: "vit_preprocess"
backend: "python"
max_batch_size: 8
input {
  name: "image"
  data_type: TYPE_STRING
  dims: [1]
}
output {
  name: "pixels"
  data_type: TYPE_FP32
  dims: [3, 48, 32]
}
instance_group {
  kind: KIND_CPU
}
"""
ENSEMBLE = """\
name: "vit_ensemble"
platform: "ensemble"
max_batch_size: 8
input {
  name: "image"
  data_type: TYPE_STRING
  dims: [1]
}
output {
  name: "logits"
  data_type: TYPE_FP32
  dims: [7]
  label_filename: "labels.txt"
}
ensemble_scheduling {
  step {
    model_name: "vit_preprocess"
    model_version: -1
    input_map {
      key: "image"
      value: "image"
    }
    output_map {
      key: "pixels"
      value: "pixels"
    }
  }
  step {
    model_name: "vit"
    model_version: -1
    input_map {
      key: "pixel_values"
      value: "pixels"
    }
    output_map {
      key: "logits"
      value: "logits"
    }
  }
}
"""


def configs(runtime: RuntimeName, model: ModelRecord = MODEL, batch: BatchProfile = BATCH) -> tuple[str, str, str]:
    """Return the configurations of a preprocessing, an engine and an ensemble."""
    return (
        preprocess_config("vit_preprocess", model, batch),
        engine_config("vit", runtime, "fp32", model, batch),
        ensemble_config("vit_ensemble", "vit_preprocess", "vit", model, batch),
    )


@pytest.mark.parametrize(
    ("runtime", "text"), [("tensorrt", TENSORRT), ("onnxruntime", ONNXRUNTIME), ("openvino", OPENVINO)]
)
def test_what_is_said_of_an_engine(runtime: RuntimeName, text: str) -> None:
    assert configs(runtime) == (PREPROCESS, text, ENSEMBLE)


def test_an_engine_for_single_images_has_nothing_to_batch() -> None:
    single = BatchProfile(min=1, opt=1, max=1)
    text = configs("tensorrt", batch=single)[1]
    assert "max_batch_size: 1\n" in text
    assert "dynamic_batching" not in text


def test_only_openvino_has_to_be_told_of_bf16(parse_config: Callable[[str], Any]) -> None:
    told = parse_config(engine_config("vit", "openvino", "bf16", MODEL, BATCH))
    assert {key: value.string_value for key, value in told.parameters.items()} == {"HINT_BF16": "YES"}
    assert "parameters" not in engine_config("vit", "openvino", "int8", MODEL, BATCH)
    assert "parameters" not in engine_config("vit", "tensorrt", "bf16", MODEL, BATCH)


def test_triton_reads_what_was_meant(parse_config: Callable[[str], Any]) -> None:
    config = parse_config(TENSORRT)
    assert (config.name, config.platform, config.backend, config.max_batch_size) == ("vit", "tensorrt_plan", "", 8)
    (taken,), (given,) = config.input, config.output
    assert (taken.name, list(taken.dims)) == ("pixel_values", [3, 48, 32])
    assert (given.name, list(given.dims), given.label_filename) == ("logits", [7], "labels.txt")
    fp32 = taken.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name["TYPE_FP32"].number
    assert {taken.data_type, given.data_type} == {fp32}
    (group,) = config.instance_group
    assert (group.kind, list(group.gpus)) == (group.KIND_GPU, [])
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert not config.HasField("version_policy")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_triton_can_read_every_configuration(runtime: RuntimeName, parse_config: Callable[[str], Any]) -> None:
    names = [parse_config(text).name for text in configs(runtime)]
    assert names == ["vit_preprocess", "vit", "vit_ensemble"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_tensors_of_the_ensemble_fit_together(runtime: RuntimeName, parse_config: Callable[[str], Any]) -> None:
    """As Triton's ensemble scheduler checks: names, data types, shapes with the batch, and the largest batch."""
    preprocess, engine, ensemble = (parse_config(text) for text in configs(runtime))
    models = {config.name: config for config in (preprocess, engine)}
    tensors = {tensor.name: full(ensemble, tensor) for tensor in (*ensemble.input, *ensemble.output)}
    made = {tensor.name for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        model = models[step.model_name]
        assert model.max_batch_size in {0, ensemble.max_batch_size}
        for ports, mapping in ((model.input, step.input_map), (model.output, step.output_map)):
            assert {port.name for port in ports} == set(mapping)
            for port in ports:
                assert tensors.setdefault(mapping[port.name], full(model, port)) == full(model, port)
        assert set(step.input_map.values()) <= made
        made |= set(step.output_map.values())
    assert {tensor.name for tensor in ensemble.output} <= made
    assert len(tensors) == 3
    assert len(ensemble.instance_group) == 0


def full(config: Any, tensor: Any) -> tuple[int, tuple[int, ...]]:
    """Return the data type of a tensor and its shape with the batch."""
    return tensor.data_type, (*((-1,) if config.max_batch_size else ()), *tensor.dims)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_name_cannot_end_its_own_string(runtime: RuntimeName, parse_config: Callable[[str], Any]) -> None:
    model = MODEL.model_copy(update={"input_name": HOSTILE, "output_name": HOSTILE[::-1]})
    preprocess, engine, ensemble = (parse_config(text) for text in configs(runtime, model))
    assert [tensor.name for tensor in (*engine.input, *engine.output)] == [HOSTILE, HOSTILE[::-1]]
    assert dict(ensemble.ensemble_scheduling.step[1].input_map) == {HOSTILE: "pixels"}
    assert dict(ensemble.ensemble_scheduling.step[1].output_map) == {HOSTILE[::-1]: "logits"}
    assert [tensor.name for tensor in (*preprocess.input, *preprocess.output)] == ["image", "pixels"]


def test_engine_tensors_may_have_the_names_of_the_ensemble(parse_config: Callable[[str], Any]) -> None:
    model = MODEL.model_copy(update={"input_name": "logits", "output_name": "image"})
    step = parse_config(configs("tensorrt", model)[2]).ensemble_scheduling.step[1]
    assert (dict(step.input_map), dict(step.output_map)) == ({"logits": "pixels"}, {"image": "logits"})


def test_a_label_is_one_line_whatever_is_in_it() -> None:
    labels = ("cat", "", "two\r\nlines", "näive \u2028 café", "end\n")
    assert label_lines(labels).decode().split("\n") == ["cat", "", "two lines", "näive   café", "end", ""]
