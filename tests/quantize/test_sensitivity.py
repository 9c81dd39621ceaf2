from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from tests.quantize.graphs import evaluate
from trt_vit.graph.rewrite import rewrite
from trt_vit.quantize.equalize import Methods, Numbers
from trt_vit.quantize.linear import groups, linear_layers
from trt_vit.quantize.qdq import place
from trt_vit.quantize.sensitivity import sensitivities
from trt_vit.quantize.solve import GroupCodes, solve
from trt_vit.quantize.statistics import measure

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

COARSE = Methods(equalize=False, ranges="max", round_together=False, correct_biases=False)


def solved(model: ir.Model, batches: list[NDArray[np.float32]]) -> dict[str, GroupCodes]:
    statistics = measure(model, batches, images=sum(map(len, batches)))
    numbers = Numbers("int8", "int8")
    return {group.name: solve(group, statistics, numbers, COARSE) for group in groups(linear_layers(model))}


@pytest.mark.parametrize("rewritten", [True, False])
@pytest.mark.parametrize("architecture", ["vit", "dinov2", "swin"])
def test_a_group_costs_what_quantizing_it_alone_does_to_the_whole_graph(
    export: Callable[[str], ir.Model],
    pixels: NDArray[np.float32],
    architecture: str,
    rewritten: bool,  # noqa: FBT001
) -> None:
    model = export(architecture)
    if rewritten:
        model, _ = rewrite(model)
    before = ir.to_proto(model).SerializeToString()
    batches = [pixels[:2], pixels[2:]]
    codes = solved(model, batches)
    told: list[tuple[int, int]] = []
    costs = sensitivities(model, codes, batches, lambda done, of: told.append((done, of)))
    assert ir.to_proto(model).SerializeToString() == before
    assert costs.keys() == codes.keys()
    assert told == [(done, len(codes)) for done in range(1, len(codes) + 1)]
    exact = evaluate(model, pixels).astype(np.float64)
    for name, group in codes.items():
        alone = model.clone()
        place(alone, [group])
        errors = evaluate(alone, pixels).astype(np.float64) - exact
        errors -= errors.mean(axis=1, keepdims=True)
        assert costs[name] == pytest.approx(np.mean(np.sum(errors**2, axis=1)), rel=1e-3)
    assert min(costs.values()) > 0


def test_only_groups_that_are_asked_for_are_measured(
    export: Callable[[str], ir.Model], pixels: NDArray[np.float32]
) -> None:
    model, _ = rewrite(export("vit"))
    codes = solved(model, [pixels])
    every = sensitivities(model, codes, [pixels], lambda *_: None)
    some = {name: codes[name] for name in list(codes)[1::2]}
    costs = sensitivities(model, some, [pixels], lambda *_: None)
    assert costs.keys() == some.keys()
    assert costs == pytest.approx({name: every[name] for name in some}, rel=1e-3)
