from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.graphs import EXPORTERS, parse
from trt_vit.graph.attentions import count_attentions
from trt_vit.graph.rewrite import rewrite

if TYPE_CHECKING:
    from tests.graph.conftest import Graphs

ARCHITECTURES = {"vit": 2, "deit-distilled": 2, "beit": 2, "dinov2": 2, "swin": 3, "siglip": 2}
QUICK = ("legacy14", "own")


@pytest.mark.parametrize(
    ("architecture", "exporter"),
    [
        pytest.param(architecture, exporter, marks=() if exporter in QUICK else pytest.mark.slow)
        for architecture in ARCHITECTURES
        for exporter in EXPORTERS
    ],
)
def test_every_layer_has_one_before_and_after_the_passes(graphs: Graphs, architecture: str, exporter: str) -> None:
    model = graphs.model(architecture, exporter)
    assert count_attentions(model) == ARCHITECTURES[architecture]
    model, _ = rewrite(model)
    assert count_attentions(model) == ARCHITECTURES[architecture]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = Softmax(x) b = Transpose<perm=[0, 2, 1]>(x) c = MatMul(x, b) y = MatMul(c, x)", 0),
        ("a = Transpose<perm=[0, 2, 1]>(x) b = MatMul(x, a) c = Softmax(b) y = MatMul(c, x)", 1),
        ("a = Transpose<perm=[0, 2, 1]>(x) b = MatMul(x, a) c = Softmax(b) d = Identity(c) y = MatMul(d, x)", 1),
        ("y = Softmax(x)", 0),
        ("a = Softmax(x) y = Relu(a)", 0),
    ],
)
def test_a_softmax_counts_if_a_product_reads_it(text: str, expected: int) -> None:
    assert count_attentions(parse(text)) == expected


def test_attention_as_one_node_counts() -> None:
    assert count_attentions(parse("y = Attention<q_num_heads=2, kv_num_heads=2>(x, x, x)", opset=23)) == 1
