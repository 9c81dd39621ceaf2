from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.quantize.graphs import graph_of, kinds
from trt_vit.quantize import search as searching
from trt_vit.quantize.agreement import agreement, expected_agreement
from trt_vit.quantize.equalize import Methods, Numbers
from trt_vit.quantize.linear import groups, linear_layers
from trt_vit.quantize.qdq import place
from trt_vit.quantize.search import Plan, Score, search
from trt_vit.quantize.session import run
from trt_vit.quantize.solve import GroupCodes, solve
from trt_vit.quantize.statistics import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    import onnx_ir as ir
    from numpy.typing import NDArray

IMAGES = 40
CLASSES = 5


def reference(images: int = IMAGES) -> NDArray[np.float32]:
    """Logits that are 4 for the right class and 0 for the others."""
    return 4 * np.eye(CLASSES, dtype=np.float32)[np.arange(images) % CLASSES]


def wrong(count: int, images: int = IMAGES) -> NDArray[np.float32]:
    """The reference, but for the first images, which have another top-1 by far."""
    logits = reference(images)
    logits[:count] = np.roll(logits[:count], 1, axis=1) * 100
    return logits


@dataclass
class Fake:
    """A graph that can be cloned and remembers what was quantized; the plans that were tried; what they give."""

    answer: Callable[[Collection[str]], NDArray[np.float32]]
    tried: list[tuple[str, ...]] = field(default_factory=list)
    told: list[tuple[int, Score]] = field(default_factory=list)
    given: list[NDArray[np.float32]] = field(default_factory=list)

    def clone(self) -> Fake:
        return Fake(self.answer)

    def search(self, costs: dict[str, float], macs: dict[str, int] | None = None, **changes: Any) -> Plan:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(searching, "place", self._place)
            patch.setattr(searching, "run", self._run)
            usual: dict[str, Any] = {"least": 0.98, "reference": reference(), "batches": [np.zeros((IMAGES, 3, 1, 1))]}
            return search(
                cast("ir.Model", self),
                cast("dict[str, GroupCodes]", {name: name for name in costs}),
                costs=costs,
                macs=macs or dict.fromkeys(costs, 1),
                tell=lambda left_out, score: self.told.append((left_out, score)),
                **(usual | changes),
            )

    def _place(self, model: object, groups: Iterable[object]) -> None:
        assert model is not self  # the graph itself stays as it is
        self.tried.append(tuple(cast("Iterable[str]", groups)))

    def _run(self, _model: object, batches: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        self.given = batches
        return self.answer(self.tried[-1])


@pytest.mark.parametrize(
    ("images", "least", "allowed"),
    [
        (128, 0.98, 3),  # 2.56 images
        (100, 0.98, 2),
        (50, 0.98, 1),
        (49, 0.98, 1),
        (8, 0.98, 1),
        (10, 0.9, 1),
        (200, 0.995, 1),
        (201, 0.995, 2),
        (128, 1.0, 0),
        (7, 0.0, 7),
    ],
)
def test_the_target_is_met_to_the_image(images: int, least: float, allowed: int) -> None:
    for disagreeing in range(images + 1):
        assert Score(images, disagreeing, 1.0).reaches(least) == (disagreeing <= allowed)


@settings(max_examples=100)
@given(st.integers(1, 300), st.integers(0, 1000))
def test_allowed_disagreements_are_rounded_up(images: int, thousandths: int) -> None:
    allowed = -(-(1000 - thousandths) * images // 1000)  # in whole numbers, where nothing is rounded
    least = thousandths / 1000
    assert Score(images, allowed, 1.0).reaches(least)
    assert allowed == images or not Score(images, allowed + 1, 1.0).reaches(least)


@pytest.mark.parametrize(
    ("least", "expected", "reached"),
    [(0.98, 0.98, True), (0.98, 0.979, False), (1.0, 0.995, True), (1.0, 0.994, False), (0.0, 0.0, True)],
)
def test_images_that_were_not_seen_have_to_be_expected_to_agree(least: float, expected: float, reached: bool) -> None:  # noqa: FBT001
    assert Score(100, 0, expected).reaches(least) == reached


def test_a_score_is_counted() -> None:
    score = Score.of(wrong(3), reference())
    assert (score.images, score.disagreeing) == (IMAGES, 3)
    assert score.agreement == pytest.approx(37 / 40)
    assert score.expected == expected_agreement(wrong(3), reference())


def test_everything_is_quantized_where_that_is_good_enough() -> None:
    fake = Fake(lambda _: reference())
    plan = fake.search({"b": 3.0, "a": 1.0, "c": 2.0})
    assert plan == Plan(("b", "a", "c"), Score(IMAGES, 0, 1.0), reached=True)
    assert fake.tried == [("b", "a", "c")]
    assert fake.told == [(0, Score(IMAGES, 0, 1.0))]


def test_groups_are_left_out_by_cost_per_mac() -> None:
    """The most expensive group is the largest too, and worth it."""
    costs = {"large": 100.0, "middle": 40.0, "small": 30.0, "cheap": 1.0}
    macs = {"large": 1000, "middle": 100, "small": 50, "cheap": 100}
    plan = Fake(lambda kept: wrong(20 if "small" in kept else 0)).search(costs, macs)
    assert plan.quantized == ("large", "middle", "cheap")
    plan = Fake(lambda kept: wrong(20 if "middle" in kept else 0)).search(costs, macs)
    assert plan.quantized == ("large", "cheap")
    plan = Fake(lambda kept: wrong(20 if "large" in kept else 0)).search(costs, macs)
    assert plan.quantized == ("cheap",)
    assert plan.reached


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.data())
def test_where_fewer_groups_do_better_the_first_that_is_good_enough_is_found(count: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, count - 1))
    costs = {str(index): float(count - index) ** data.draw(st.sampled_from([1, 4])) for index in range(count)}
    order = sorted(costs, key=lambda name: -costs[name])

    def answer(kept: Collection[str]) -> NDArray[np.float32]:
        return wrong(20 if count - len(kept) < first else 0)

    fake = Fake(answer)
    plan = fake.search(costs)
    assert plan.reached
    assert set(plan.quantized) == set(order[first:])
    assert len(set(fake.tried)) == len(fake.tried)  # no plan is run twice
    assert [left_out for left_out, _ in fake.told] == [count - len(kept) for kept in fake.tried]


def test_the_first_guess_is_where_squared_errors_add_up_to_what_is_allowed() -> None:
    """Errors whose squares are the sums of the groups' costs: the plan is found by the second trial."""
    costs = {str(index): 2.0 ** -(index / 4) for index in range(100)}
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((IMAGES, CLASSES)).astype(np.float32)

    def answer(kept: Collection[str]) -> NDArray[np.float32]:
        return reference() + noise * np.float32(sum(costs[name] for name in kept) ** 0.5)

    fake = Fake(answer)
    plan = fake.search(costs)
    assert plan.reached
    first = next(count for count in range(100) if Score.of(answer(list(costs)[count:]), reference()).reaches(0.98))
    assert plan.quantized == tuple(list(costs)[first:])
    assert 0 < first < 99
    assert [left_out for left_out, _ in fake.told][:2] == [0, first]
    assert len(fake.tried) <= 5


def test_an_impossible_target_falls_short_with_the_best_that_was_tried() -> None:
    costs = {name: float(4 - index) for index, name in enumerate("abcd")}
    fake = Fake(lambda kept: wrong(10 + len(kept)))
    plan = fake.search(costs)
    assert not plan.reached
    assert plan.quantized == ("d",)
    assert plan.score == Score.of(wrong(11), reference())


def test_of_plans_that_fall_short_alike_the_one_with_most_quantized_is_taken() -> None:
    fake = Fake(lambda _: wrong(20))
    plan = fake.search({name: float(4 - index) for index, name in enumerate("abcd")})
    assert (plan.quantized, plan.reached) == (tuple("abcd"), False)
    assert plan.score == Score.of(wrong(20), reference())


def test_what_costs_much_and_is_worth_nothing_is_left_out_in_any_case() -> None:
    """A classifier of a thousandth of the arithmetic that has a third of the cost."""
    costs = {"layer": 2.0, "classifier": 1.0}
    fake = Fake(lambda _: reference())
    assert fake.search(costs, {"layer": 999, "classifier": 1}).quantized == ("layer",)
    assert fake.tried == [("layer",)]
    # Worth three thousandths, or costing no more than nine times its share of the arithmetic, it is quantized.
    assert Fake(lambda _: reference()).search(costs, {"layer": 997, "classifier": 3}).quantized == tuple(costs)
    cheap = {"layer": 991.0, "classifier": 9.0}
    assert Fake(lambda _: reference()).search(cheap, {"layer": 999, "classifier": 1}).quantized == tuple(costs)


def test_all_that_are_left_out_in_any_case_are_worth_next_to_nothing_together() -> None:
    costs = {"a": 30.0, "b": 20.0, "c": 10.0, "d": 1.0}
    macs = {"a": 1, "b": 1, "c": 1, "d": 997}
    assert Fake(lambda _: reference()).search(costs, macs).quantized == ("c", "d")
    fake = Fake(lambda kept: wrong(20 if "c" in kept else 0))
    assert fake.search(costs, macs).quantized == ("d",)
    assert fake.tried == [("c", "d"), ("d",)]


def test_a_single_group_is_all_or_short() -> None:
    plan = Fake(lambda _: wrong(20)).search({"only": 1.0})
    assert (plan.quantized, plan.reached) == (("only",), False)


def test_costs_of_zero_divide_nothing() -> None:
    plan = Fake(lambda kept: wrong(20 if len(kept) > 1 else 0)).search({"a": 0.0, "b": 0.0})
    assert plan.reached
    assert len(plan.quantized) == 1


def test_what_a_batch_is_filled_with_is_not_counted() -> None:
    """A fixed batch of 4 makes 8 of 6 images; the last 2 are the first ones again."""

    def answer(_: Collection[str]) -> NDArray[np.float32]:
        logits = reference(8)
        logits[6:] = -logits[6:]
        return logits

    batches = [np.zeros((4, 3, 1, 1), np.float32)] * 2
    fake = Fake(answer)
    plan = fake.search({"a": 1.0}, reference=reference(6), batches=tuple(batches))
    assert plan.score == Score(6, 0, 1.0)
    assert fake.given == batches


def small_graph() -> ir.Model:
    """Two layers behind one another, random, with 6 classes."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((12, 32), dtype=np.float32),
        "w2": rng.standard_normal((32, 6), dtype=np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Tanh", ["h"], ["t"], name="tanh"),
        helper.make_node("MatMul", ["t", "w2"], ["y"], name="second"),
    ]
    return graph_of(nodes, weights, given={"x": ("batch", 12)}, outputs={"y": ("batch", 6)})


def test_a_real_graph_reaches_its_target_at_once() -> None:
    model = small_graph()
    rng = np.random.default_rng(1)
    seen = [rng.standard_normal((50, 12), dtype=np.float32) for _ in range(4)]
    held_back = [rng.standard_normal((32, 12), dtype=np.float32) for _ in range(3)]
    statistics = measure(model, seen, images=200)
    codes = {
        group.name: solve(group, statistics, Numbers("int8", "int8"), Methods())
        for group in groups(linear_layers(model))
    }
    exact = run(model, held_back)
    before = kinds(model)
    told: list[int] = []
    plan = search(
        model,
        codes,
        costs={"first": 2.0, "second": 1.0},
        macs={"first": 12 * 32, "second": 32 * 6},
        batches=held_back,
        reference=exact,
        least=0.98,
        tell=lambda left_out, _: told.append(left_out),
    )
    assert plan.quantized == ("first", "second")
    assert plan.reached
    assert told == [0]
    assert kinds(model) == before
    assert plan.score is not None
    quantized = model.clone()
    place(quantized, codes.values())
    logits = run(quantized, held_back)
    assert plan.score.disagreeing == round((1 - agreement(logits, exact)) * 96) <= math.ceil(0.02 * 96)
    assert plan.score.expected == expected_agreement(logits, exact) >= 0.98
    assert not np.array_equal(logits, exact)


def test_a_wrong_guess_costs_no_more_than_a_bisection() -> None:
    groups = {str(number): 1.0 for number in range(48)}
    fake = Fake(lambda kept: wrong(20) if len(kept) == 48 else reference())
    plan = fake.search(groups)
    assert len(plan.quantized) == 47
    assert len(fake.tried) <= 8
