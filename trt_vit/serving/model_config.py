"""config.pbtxt: what Triton is told of each model, as its ``ModelConfig`` message in protobuf's text format.

Triton's rules are those of its model configuration, ensemble and backend documentation. Two are not to be seen there:

- Its OpenVINO backend fixes the batch at ``max_batch_size`` and refuses any other, or pads to it, which together with
  the dynamic batcher fails now and then. With ``max_batch_size: 0`` and an open first dimension it takes any batch.
- It compares tensor names with the one name that OpenVINO gives of the several that a tensor may have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trt_vit.engine.manifest import BatchProfile, ModelRecord, Precision, RuntimeName

CONFIG: Final = "config.pbtxt"
LABELS: Final = "labels.txt"
IMAGE: Final = "image"
"""Input of the preprocessing and of the ensemble: the bytes of an image file."""
PIXELS: Final = "pixels"
"""Output of the preprocessing: what the engine reads."""
LOGITS: Final = "logits"
"""Output of the ensemble, whatever the engine calls its own."""

BACKENDS: Final[dict[RuntimeName, str]] = {
    "tensorrt": 'platform: "tensorrt_plan"',
    "onnxruntime": 'backend: "onnxruntime"',
    "openvino": 'backend: "openvino"',
}
"""The line that names Triton's backend for a runtime. TensorRT for RTX has none."""
_KINDS: dict[RuntimeName, str] = {"tensorrt": "KIND_GPU", "openvino": "KIND_CPU"}
"""Where instances run. ONNX Runtime's are left to Triton: on the GPUs where there are any, else on the CPU."""


def engine_config(
    name: str, runtime: RuntimeName, precision: Precision, model: ModelRecord, batch: BatchProfile
) -> str:
    """Return the configuration of a bundle's engine.

    Args:
        name: The model's name.
        runtime: One of ``BACKENDS``.
        precision: Precision that the engine was built for.
        model: The engine's interface, with the tensor names that the backend looks for.
        batch: Batch sizes that the engine was built for.
    """
    batches = runtime != "openvino"
    open_batch = () if batches else (-1,)
    parts = [
        f"name: {_quoted(name)}",
        BACKENDS[runtime],
        f"max_batch_size: {batch.max if batches else 0}",
        _tensor("input", model.input_name, "TYPE_FP32", (*open_batch, 3, model.height, model.width)),
        _tensor("output", model.output_name, "TYPE_FP32", (*open_batch, model.classes), labels=True),
    ]
    if runtime in _KINDS:
        parts.append(_block("instance_group", f"kind: {_KINDS[runtime]}"))
    if batches and batch.max > 1:
        parts.append(_block("dynamic_batching", f"preferred_batch_size: [{batch.opt}]"))
    if runtime == "openvino" and precision == "bf16":
        parts.append(_block("parameters", 'key: "HINT_BF16"', _block("value", 'string_value: "YES"')))
    return _text(parts)


def preprocess_config(name: str, model: ModelRecord, batch: BatchProfile) -> str:
    """Return the configuration of the model that decodes and preprocesses, in Triton's Python backend."""
    return _text(
        [
            f"name: {_quoted(name)}",
            'backend: "python"',
            f"max_batch_size: {batch.max}",
            _tensor("input", IMAGE, "TYPE_STRING", (1,)),
            _tensor("output", PIXELS, "TYPE_FP32", (3, model.height, model.width)),
            _block("instance_group", "kind: KIND_CPU"),
        ]
    )


def ensemble_config(name: str, preprocess: str, engine: str, model: ModelRecord, batch: BatchProfile) -> str:
    """Return the configuration of the ensemble: the latest preprocessing, then the latest engine.

    Args:
        name: The ensemble's name.
        preprocess: Name of the preprocessing.
        engine: Name of the engine.
        model: The engine's interface.
        batch: Batch sizes that the engine was built for.
    """
    steps = (
        _step(preprocess, (IMAGE, IMAGE), (PIXELS, PIXELS)),
        _step(engine, (model.input_name, PIXELS), (model.output_name, LOGITS)),
    )
    return _text(
        [
            f"name: {_quoted(name)}",
            'platform: "ensemble"',
            f"max_batch_size: {batch.max}",
            _tensor("input", IMAGE, "TYPE_STRING", (1,)),
            _tensor("output", LOGITS, "TYPE_FP32", (model.classes,), labels=True),
            _block("ensemble_scheduling", *steps),
        ]
    )


def label_lines(labels: tuple[str, ...]) -> bytes:
    """Return the label file: one line a class, by index. A label that has lines of its own is put on one."""
    return "".join(f"{' '.join(label.splitlines())}\n" for label in labels).encode()


def _step(name: str, taken: tuple[str, str], given: tuple[str, str]) -> str:
    """Return a step of an ensemble: tensors in and out, as the model's name and the ensemble's name for each."""
    maps = [
        _block(field, f"key: {_quoted(own)}", f"value: {_quoted(shared)}")
        for field, (own, shared) in (("input_map", taken), ("output_map", given))
    ]
    return _block("step", f"model_name: {_quoted(name)}", "model_version: -1", *maps)


def _tensor(field: str, name: str, data_type: str, dims: tuple[int, ...], *, labels: bool = False) -> str:
    label_file = [f"label_filename: {_quoted(LABELS)}"] if labels else []
    sizes = ", ".join(map(str, dims))
    return _block(field, f"name: {_quoted(name)}", f"data_type: {data_type}", f"dims: [{sizes}]", *label_file)


def _block(field: str, *parts: str) -> str:
    body = "\n".join(parts).replace("\n", "\n  ")
    return f"{field} {{\n  {body}\n}}"


def _text(parts: list[str]) -> str:
    return "\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    """Return a string literal of the text format, which has C's octal escapes for the bytes of UTF-8."""
    plain = {byte for byte in range(0x20, 0x7F) if chr(byte) not in '"\\'}
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'
