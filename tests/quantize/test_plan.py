from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.quantize.graphs import array, check, evaluate, kinds, node
from tests.support.checkpoints import random_checkpoint
from trt_vit.caches import FileCache
from trt_vit.checkpoint.load import to_onnx
from trt_vit.graph.rewrite import rewrite
from trt_vit.quantize import plan as planning
from trt_vit.quantize.agreement import agreement
from trt_vit.quantize.calibrate import Calibration, calibrate
from trt_vit.quantize.calibration import choose_images, read_batches
from trt_vit.quantize.codes import activation_scale
from trt_vit.quantize.equalize import Methods, Numbers
from trt_vit.quantize.linear import int8_coverage, linear_layers
from trt_vit.quantize.plan import Placement, Quantization, Wish, quantize
from trt_vit.quantize.search import Plan, Score
from trt_vit.quantize.session import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from trt_vit.quantize.codes import Code

CIFAR = Path(__file__).parents[2] / "examples" / "vit-cifar10"
PLAIN = Methods(equalize=False, ranges="max", round_together=False, correct_biases=False)
LOUD = np.float32(50)

Tell = list[tuple[str, int, int]]


def wish(
    number: Code = "int8",
    *,
    least: float = 0.0,
    tensorrt: bool = True,
    attention: bool = False,
    methods: Methods = PLAIN,
) -> Wish:
    return Wish(Numbers(number, number), least, tensorrt, attention, methods)


def noise(paths: Sequence[str]) -> Iterator[NDArray[np.float32]]:
    for path in paths:
        yield np.random.default_rng(int(path)).standard_normal((2, 3, 32, 32), dtype=np.float32)


def calibrated(model: ir.Model, directory: Path) -> Calibration:
    paths = [str(number) for number in range(8)]
    cache = FileCache(directory, 10**9)
    return calibrate(model, paths, noise, cache=cache, facts={}, tell=lambda *_: None)


@pytest.fixture
def model(export: Callable[[str], ir.Model]) -> ir.Model:
    """A rewritten ViT of one layer: the patches, q, k and v in one, the projection, fc1, fc2, the classifier."""
    return rewrite(export("vit"))[0]


@pytest.fixture
def calibration(model: ir.Model, tmp_path: Path) -> Calibration:
    return calibrated(model, tmp_path)


def quiet(*_: object) -> None:
    pass


def projection(model: ir.Model) -> str:
    """The name of the layer that reads what the attention's heads give."""
    user = node(model, "Softmax").outputs[0].consumers()[0]
    while user.name not in {layer.name for layer in linear_layers(model)}:
        user = user.outputs[0].consumers()[0]
    return str(user.name)


def of(result: Quantization, layer: str) -> Placement:
    (placement,) = (placement for placement in result.placements if placement.layer == layer)
    return placement


@pytest.mark.parametrize("number", ["int8", "fp8"])
@pytest.mark.parametrize("tensorrt", [True, False])
def test_placements_are_of_every_linear_layer_and_say_what_the_graph_has(
    model: ir.Model,
    calibration: Calibration,
    number: Code,
    tensorrt: bool,  # noqa: FBT001
) -> None:
    before = linear_layers(model)
    result = quantize(model, calibration, wish(number, tensorrt=tensorrt), quiet)
    check(model)
    assert [(row.layer, row.macs) for row in result.placements] == [(layer.name, layer.macs) for layer in before]
    after = {layer.name: layer.number for layer in linear_layers(model)}
    assert after == {row.layer: number if row.left_out is None else "fp32" for row in result.placements}
    assert (result.score, result.reached) == (None, True)
    for row in result.placements:
        assert (row.amax is None) == (row.left_out is not None)
        assert (row.cost, row.equalized, row.attention) == (None, False, False)
    kept = sum(row.macs for row in result.placements if row.left_out is None)
    if number == "int8":
        assert int8_coverage(model) == pytest.approx(kept / sum(row.macs for row in result.placements))
    else:
        convolution = next(layer.name for layer in before if layer.kind == "Conv")
        assert of(result, convolution).left_out == "FP8 is for matrix products"


def test_an_exports_own_graph_is_quantized_too(export: Callable[[str], ir.Model], tmp_path: Path) -> None:
    """Queries, keys and values are layers of their own there, and one group: they read the same tensor."""
    model = export("vit")
    result = quantize(model, calibrated(model, tmp_path), wish(tensorrt=False), quiet)
    assert len(result.placements) == 8
    assert int8_coverage(model) == 1
    assert kinds(model).count("QuantizeLinear") == 6


@pytest.mark.parametrize(
    ("number", "tensorrt", "left_out"),
    [("int8", True, True), ("int8", False, False), ("fp8", True, False), ("fp8", False, False)],
)
def test_tensorrt_leaves_an_attentions_output_alone_in_int8(
    model: ir.Model,
    calibration: Calibration,
    number: Code,
    tensorrt: bool,  # noqa: FBT001
    left_out: bool,  # noqa: FBT001
) -> None:
    name = projection(model)
    result = quantize(model, calibration, wish(number, tensorrt=tensorrt), quiet)
    reason = of(result, name).left_out
    if left_out:
        assert reason is not None
        assert reason.startswith("an attention's output: ")
    else:
        assert reason is None
    others = [row.left_out for row in result.placements if row.layer != name and row.left_out is not None]
    assert others == (["FP8 is for matrix products"] if number == "fp8" else [])


def test_an_attention_is_quantized_with_its_projection(model: ir.Model, calibration: Calibration) -> None:
    name, softmax = projection(model), node(model, "Softmax")
    scores, values = softmax.inputs[0], softmax.outputs[0].consumers()[0]
    assert scores is not None
    products = [scores.producer(), values]
    tensors = [value for product in products if product is not None for value in product.inputs]
    result = quantize(model, calibration, wish(attention=True, methods=Methods()), quiet)
    check(model)
    row = of(result, name)
    assert (row.left_out, row.attention, row.equalized) == (None, True, False)
    assert [other.layer for other in result.placements if other.attention] == [name]
    scales = {}
    for tensor in tensors:
        assert tensor is not None
        (pair,) = (user for user in tensor.consumers() if user.op_type == "QuantizeLinear")
        scales[tensor.name] = float(array(pair.inputs[1]))
    probabilities = scales.pop(softmax.outputs[0].name)
    assert probabilities == float(np.float32(1 / 127))
    largest = calibration.statistics.largest
    assert scales == {key: float(activation_scale(largest[str(key)], "int8")) for key in scales}
    assert len(scales) == 3
    for product in products:
        assert product is not None
        makers = [value.producer() for value in product.inputs if value is not None]
        assert [maker and maker.op_type for maker in makers] == ["DequantizeLinear"] * 2
    assert int8_coverage(model) == 1


@pytest.mark.parametrize(("number", "tensorrt"), [("int8", False), ("fp8", True)])
def test_only_tensorrt_has_attention_in_int8(
    model: ir.Model,
    calibration: Calibration,
    number: Code,
    tensorrt: bool,  # noqa: FBT001
) -> None:
    result = quantize(model, calibration, wish(number, tensorrt=tensorrt, attention=True), quiet)
    assert not any(row.attention for row in result.placements)
    (pair,) = (user for user in node(model, "Softmax").outputs[0].consumers())
    assert pair.op_type == "MatMul"


def test_an_attention_that_does_not_fuse_stays_as_it_is(tmp_path: Path) -> None:
    """Heads of 8 numbers: TensorRT has no INT8 kernel for these."""
    checkpoint = random_checkpoint("vit", tmp_path / "vit", num_hidden_layers=1, num_attention_heads=4)
    model, _ = rewrite(ir.load(to_onnx(str(checkpoint), tmp_path / "m.onnx").path))
    name = projection(model)
    result = quantize(model, calibrated(model, tmp_path / "cache"), wish(attention=True), quiet)
    assert str(of(result, name).left_out).startswith("an attention's output")
    assert not any(row.attention for row in result.placements)
    assert "QuantizeLinear" not in [user.op_type for user in node(model, "Softmax").outputs[0].consumers()]


def test_no_agreement_asked_for_searches_nothing(
    model: ir.Model, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(planning, "search", refuse)
    monkeypatch.setattr(planning, "sensitivities", refuse)
    told: Tell = []
    result = quantize(model, calibration, wish(least=0), lambda *step: told.append(step))
    assert told == [("quantizing layer by layer", done, 5) for done in range(1, 6)]
    assert (result.score, result.reached) == (None, True)


def test_what_the_search_leaves_out_stays_in_floating_point(
    model: ir.Model, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    score = Score(4, 1, 0.9)

    def fake_search(_model: ir.Model, codes: Mapping[str, Any], **arguments: Any) -> Plan:
        given.update(arguments)
        arguments["tell"](2, score)
        return Plan(tuple(codes)[1:-1], score, reached=False)

    layers = linear_layers(model)
    monkeypatch.setattr(planning, "search", fake_search)
    told: Tell = []
    result = quantize(model, calibration, wish(least=0.9, tensorrt=False), lambda *step: told.append(step))
    check(model)
    assert (result.score, result.reached) == (score, False)
    assert [row.left_out is not None for row in result.placements] == [True, False, False, False, False, True]
    assert [layer.number for layer in linear_layers(model)] == ["fp32", "int8", "int8", "int8", "int8", "fp32"]
    for row in result.placements:
        assert row.cost is not None
        assert row.cost == given["costs"][row.layer] > 0
        assert row.amax is not None
        if row.left_out is not None:
            assert row.left_out == f"for agreement with fp32: alone it moves the logits by {row.cost**0.5:.2g}"
    assert given["macs"] == {layer.name: layer.macs for layer in layers}
    assert given["least"] == 0.9
    assert given["reference"] is calibration.reference
    assert given["batches"] == calibration.held_back
    assert [name for name, *_ in told if "measuring" in name] == ["measuring what each layer costs"] * 6
    assert told[-1] == ("2 groups of layers left out: 3 of 4 answers as before, 90.0% expected", 1, 1)


def test_a_layer_whose_input_was_always_zero_is_left_out(model: ir.Model, tmp_path: Path) -> None:
    layer = linear_layers(model)[-1]
    normalization = layer.activation.producer()
    while normalization is not None and normalization.op_type != "LayerNormalization":
        assert normalization.inputs[0] is not None
        normalization = normalization.inputs[0].producer()
    assert normalization is not None
    for index in (1, 2):
        value = normalization.inputs[index]
        assert value is not None
        value.const_value = ir.tensor(np.zeros_like(array(value)))
    result = quantize(model, calibrated(model, tmp_path), wish(tensorrt=False), quiet)
    assert of(result, layer.name).left_out == "its input was zero in every calibration image"
    assert [row.left_out for row in result.placements[:-1]] == [None] * 5


def hard_checkpoint(directory: Path) -> Path:
    """The bundled checkpoint with outlier channels as large models have them.

    Two channels of each LayerNormalization's output and of each fc2's input are 50 times as large, and what they are
    multiplied by is a fiftieth.
    """
    from safetensors.numpy import load_file, save_file

    shutil.copytree(CIFAR, directory, ignore=shutil.ignore_patterns("samples"))
    weights = load_file(directory / "model.safetensors")
    rng = np.random.default_rng(0)
    for index in range(6):
        layer = f"vit.encoder.layer.{index}"
        qkv = [f"{layer}.attention.attention.{name}" for name in ("query", "key", "value")]
        for made_by, read_by in (
            (f"{layer}.layernorm_before", qkv),
            (f"{layer}.layernorm_after", [f"{layer}.intermediate.dense"]),
            (f"{layer}.intermediate.dense", [f"{layer}.output.dense"]),
        ):
            channels = rng.choice(len(weights[f"{made_by}.bias"]), 2, replace=False)
            for part in ("weight", "bias"):  # torch keeps weights as [out, in]
                weights[f"{made_by}.{part}"][channels] *= LOUD
            for reader in read_by:
                weights[f"{reader}.weight"][:, channels] /= LOUD
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.slow
def test_a_checkpoint_made_hard_still_agrees_with_fp32(tmp_path: Path) -> None:
    export = to_onnx(str(hard_checkpoint(tmp_path / "hard")), tmp_path / "hard.onnx")
    model, _ = rewrite(ir.load(export.path))
    chosen = choose_images(CIFAR / "samples", 200)
    calibration = calibrate(
        model,
        chosen.paths,
        lambda paths: read_batches(paths, export.preprocessing, export.image_size),
        cache=FileCache(tmp_path / "cache", 10**9),
        facts={},
        tell=quiet,
    )
    careful, plain = model.clone(), model.clone()

    result = quantize(careful, calibration, wish(least=0.98, methods=Methods()), quiet)
    assert result.reached
    assert result.score is not None
    assert result.score.images == len(calibration.reference) == 100
    assert int8_coverage(careful) >= 0.9
    same = agreement(run(careful, list(calibration.held_back)), calibration.reference)
    assert same >= 0.98
    assert result.score.agreement == pytest.approx(same)
    assert result.score.expected >= 0.98
    assert any(row.equalized for row in result.placements)

    without = quantize(plain, calibration, wish(least=0, methods=PLAIN), quiet)
    assert without.score is None
    assert int8_coverage(plain) >= int8_coverage(careful)
    assert agreement(run(plain, list(calibration.held_back)), calibration.reference) < 0.9


def test_the_quantized_graph_is_near_the_float_one(model: ir.Model, calibration: Calibration) -> None:
    images = np.concatenate(calibration.held_back)
    exact = evaluate(model, images)
    quantize(model, calibration, wish(tensorrt=False, methods=Methods()), quiet)
    result = evaluate(model, images)
    assert np.linalg.norm(result - exact) < 0.1 * np.linalg.norm(exact)
    assert not np.array_equal(result, exact)
