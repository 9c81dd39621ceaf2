"""What TensorRT's compiler made of a graph: the finished engine's layers, as it tells them itself.

A plan cannot be read without a GPU, but the builder ends its verbose log with the same list that the engine inspector
gives, a line a layer. So what was fused, and in which number format each layer computes, is known wherever a plan is
built. With a GPU the inspector's JSON is read from the loaded engine.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trt_vit.errors import EngineError
from trt_vit.runtime.protocol import EngineStatistics

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), (?P<rest>.*)$", re.MULTILINE)
_TENSOR = re.compile(r"Dimensions: \[([^\]]*)\].*?(?:Format/)?Datatype: ([^,}]*)")
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")

_FORMATS: tuple[tuple[str, str], ...] = (
    ("fp8", r"fp8|e4m3"),
    ("int8", r"int8"),
    ("bf16", r"bf16|bfloat16"),
    ("fp16", r"fp16|half"),
    ("fp32", r"fp32|float"),
)
"""Number formats, the narrowest first, and how TensorRT spells each."""
_ATTENTION = re.compile(r"_mha|fmha|fused_attention", re.IGNORECASE)
_REFORMAT = re.compile(r"reformat", re.IGNORECASE)


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a finished engine: a kernel, or what TensorRT runs as one.

    Attributes:
        name: TensorRT's name for it.
        kind: TensorRT's word for what it is, such as ``gemm`` or ``kgen``.
        nodes: Names of the ONNX nodes that it computes, or computes a part of.
        reads: Number formats of the tensors it reads, weights included, single numbers left out.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    reads: tuple[str, ...]

    @property
    def precision(self) -> str:
        """The narrowest number format it reads, or ``none`` where it reads no tensor of numbers."""
        return next((name for name, _ in _FORMATS if name in self.reads), "none")

    @property
    def is_attention(self) -> bool:
        """Whether it is a whole attention: both products and the softmax between them."""
        return _ATTENTION.search(self.name) is not None

    @property
    def is_reformat(self) -> bool:
        """Whether it does nothing but change the layout or format of a tensor."""
        return _REFORMAT.search(f"{self.kind} {self.name}") is not None


def layers_from_log(messages: Iterable[str]) -> list[EngineLayer]:
    """Read the layers from a builder's verbose messages.

    Raises:
        EngineError: No message lists them, or a line is not understood, so that nothing can be said of the engine.
    """
    lists = [message for message in messages if ", LayerType: " in message]
    if not lists:
        raise EngineError("the builder's log lists no layers", hint="report the version of TensorRT")
    lines = sum(line.startswith("Name: ") and ", LayerType: " in line for line in lists[-1].splitlines())
    layers = [_layer_from_line(match) for match in _LAYER.finditer(lists[-1])]
    if len(layers) != lines:
        message = f"{lines - len(layers)} of {lines} layers in the builder's log are not understood"
        raise EngineError(message, hint="report the version of TensorRT")
    return layers


def layers_from_inspector(text: str) -> list[EngineLayer]:
    """Read the layers from the engine inspector's JSON.

    Raises:
        EngineError: It is not the JSON of an engine built with detailed profiling verbosity, or lists no layer.
    """
    hint = "build the engine again with this version of TensorRT"
    try:
        entries = json.loads(text)["Layers"]
        if entries and all(isinstance(entry, str) for entry in entries):
            raise EngineError("the engine tells only its layers' names", hint=hint)
        layers = [_layer_from_entry(entry) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError("the engine inspector gives no list of layers", hint=hint) from error
    if not layers:
        raise EngineError("the engine inspector lists no layer", hint=hint)
    return layers


def first_profile(layers: Sequence[EngineLayer], profiles: int) -> list[EngineLayer]:
    """Return the layers of one batch, where the engine lists those of every optimization profile one after the other.

    The profiles are the same, and so are their layers as a rule. TensorRT chooses kernels by timing them, though: where
    the layers do not fall into equal parts, all of them are returned, more than a batch runs through.
    """
    each, rest = divmod(len(layers), profiles)
    return list(layers if rest else layers[:each])


def weights_bytes_from_log(messages: Iterable[str]) -> int:
    """Read the bytes of weights from a builder's messages: the sum over the engines it lists.

    Raises:
        EngineError: No message tells them.
    """
    found = [int(match[1]) for message in messages for match in _WEIGHTS.finditer(message)]
    if not found:
        raise EngineError("the builder's log tells no size of the weights", hint="report the version of TensorRT")
    return found[-1]


def summarize(layers: Sequence[EngineLayer], weights_bytes: int) -> EngineStatistics:
    """Count an engine's layers by kind and by precision."""
    return EngineStatistics(
        layers=len(layers),
        fused_attention=sum(layer.is_attention for layer in layers),
        weights_bytes=weights_bytes,
        kinds=dict(Counter(layer.kind for layer in layers).most_common()),
        precisions=dict(Counter(layer.precision for layer in layers).most_common()),
        reformats=sum(layer.is_reformat for layer in layers),
    )


def coverage(layers: Iterable[EngineLayer], macs: Mapping[str, int], number: str) -> float:
    """Return the share of the linear layers' multiply-accumulates that the engine does in one number format.

    Args:
        layers: The engine's.
        macs: Multiply-accumulates an image of each linear layer, by the name of its ONNX node.
        number: ``int8`` or ``fp8``.

    Returns:
        0 to 1.
    """
    return share_of(macs, {node for layer in layers if number in layer.reads for node in layer.nodes})


def share_of(macs: Mapping[str, int], nodes: Container[str]) -> float:
    """Return the share of some layers' multiply-accumulates that is that of the layers among ``nodes``, 0 to 1."""
    total = sum(macs.values())
    return sum(count for node, count in macs.items() if node in nodes) / total if total else 0.0


def _layer_from_line(match: re.Match[str]) -> EngineLayer:
    read, _, _ = match["rest"].partition("Outputs: [")
    reads = [_format(datatype) for sizes, datatype in _TENSOR.findall(read) if not _is_one_number(sizes.split(","))]
    return EngineLayer(match["name"], match["kind"], tuple(_ONNX_NODE.findall(match["rest"])), tuple(reads))


def _layer_from_entry(entry: Mapping[str, Any]) -> EngineLayer:
    tensors = [*entry.get("Inputs", []), *entry.get("Constants", [])]
    reads = [
        _format(str(tensor.get("Datatype") or tensor.get("Format/Datatype") or ""))
        for tensor in tensors
        if not _is_one_number([str(size) for size in tensor.get("Dimensions", [])])
    ]
    nodes = _ONNX_NODE.findall(str(entry.get("Metadata", "")))
    return EngineLayer(str(entry.get("Name", "")), str(entry["LayerType"]), tuple(nodes), tuple(reads))


def _is_one_number(sizes: Sequence[str]) -> bool:
    return all(size.strip() in {"", "1"} for size in sizes)


def _format(datatype: str) -> str:
    """Return a number format by our name, or TensorRT's own word in lower case for what is none (an index, say)."""
    word = datatype.strip().lower()
    return next((name for name, spelled in _FORMATS if re.search(spelled, word)), word)
