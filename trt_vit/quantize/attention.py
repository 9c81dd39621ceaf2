"""Attention in INT8: which attentions TensorRT can compute so, and the Q/DQ pairs that make it do it.

TensorRT fuses an attention in INT8 when queries, keys, probabilities and values are quantized, and what it gives too;
for 16, 32 or 64 numbers a head and up to 512 tokens. TensorRT for RTX 1.7 makes nine kernels of a ViT's layer then, as
it does where the attention and the projection behind it stay in fp16. A projection alone in INT8 makes it ten: the
attention then writes its codes head by head, and one more kernel puts them in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_vit.graph.attentions import product_before
from trt_vit.graph.edit import constant, producer
from trt_vit.quantize.codes import LARGEST, activation_scale
from trt_vit.quantize.tensors import quantize_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

_VIEWS = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "Gather"})
_HEAD_SIZES = (16, 32, 64)
_TOKENS = 512


@dataclass(frozen=True)
class Attention:
    """The two products of an attention and the softmax between them.

    Attributes:
        scores: Node of the product of queries and keys.
        softmax: Node of the softmax.
        values: Node of the product of probabilities and values.
    """

    scores: ir.Node
    softmax: ir.Node
    values: ir.Node

    @property
    def tensors(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Queries, keys as they are multiplied, and values."""
        found = (self.scores.inputs[0], self.scores.inputs[1], self.values.inputs[1])
        return tuple(value for value in found if value is not None)  # type: ignore[return-value]  # products have both

    @property
    def fuses_in_int8(self) -> bool:
        """Whether TensorRT has an INT8 kernel for it, as far as sizes tell; where they are not known, it has none."""
        if self.softmax.inputs[0] is not self.scores.outputs[0]:
            return False  # a bias or a mask between them: not tried
        probabilities, weighted = self.softmax.outputs[0].shape, self.values.inputs[1]
        tokens = None if probabilities is None else probabilities[-1]
        size = None if weighted is None or weighted.shape is None else weighted.shape[-1]
        return isinstance(tokens, int) and tokens <= _TOKENS and size in _HEAD_SIZES


def attention_behind(value: ir.Value) -> Attention | None:
    """Return the attention whose output a tensor is, heads put together again, or None."""
    node = value.producer()
    while node is not None and node.domain == "" and node.op_type in _VIEWS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "MatMul" or any(constant(given) is not None for given in node.inputs):
        return None
    softmax = producer(node.inputs[0], "Softmax")
    scores = None if softmax is None else product_before(softmax.inputs[0])
    if softmax is None or scores is None or len(softmax.outputs[0].uses()) != 1:
        return None
    return Attention(scores, softmax, node)


def quantize_attention(graph: ir.Graph, attention: Attention, largest: Mapping[str, float]) -> None:
    """Put Q/DQ pairs before both products of an attention.

    Args:
        graph: The graph it is in.
        attention: The attention.
        largest: Largest absolute value of queries, keys and values, by the name of the tensor. Probabilities end at 1.
    """
    places = ((attention.scores, 0), (attention.scores, 1), (attention.values, 1))
    for (node, index), value in zip(places, attention.tensors, strict=True):
        scale = float(activation_scale(largest[str(value.name)], "int8"))
        node.replace_input_with(index, quantize_tensor(graph, value, scale, "int8"))
    probabilities = attention.softmax.outputs[0]
    attention.values.replace_input_with(0, quantize_tensor(graph, probabilities, 1 / LARGEST["int8"], "int8"))
