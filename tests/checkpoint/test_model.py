from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.checkpoints import CLASSES, random_checkpoint
from trt_vit.checkpoint.files import sha256_of
from trt_vit.checkpoint.model import load_model
from trt_vit.checkpoint.source import Checkpoint, resolve
from trt_vit.errors import CheckpointError, EnvironmentFault

if TYPE_CHECKING:
    from pathlib import Path

    from tests.checkpoint.conftest import Exports

torch = pytest.importorskip("torch", reason="needs the export extra")
safetensors = pytest.importorskip("safetensors.torch", reason="needs the export extra")


@pytest.fixture
def vit(exports: Exports, tmp_path: Path) -> Path:
    """A copy of the ViT checkpoint that a test may break."""
    return shutil.copytree(exports.directory("vit"), tmp_path / "vit")


def edit_config(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_checkpoint_is_loaded_as_its_class(vit: Path) -> None:
    model = load_model(resolve(str(vit)))
    weights = safetensors.load_file(vit / "model.safetensors")
    assert (model.architecture, model.model_type, model.image_size) == ("ViTForImageClassification", "vit", (32, 32))
    assert model.parameters == sum(tensor.numel() for tensor in weights.values())
    assert model.weights_sha256 == sha256_of([vit / "model.safetensors"])
    assert not model.module.training
    assert torch.equal(model.module.state_dict()["classifier.weight"], weights["classifier.weight"])


def test_half_precision_weights_become_float32(vit: Path) -> None:
    weights = safetensors.load_file(vit / "model.safetensors")
    halves = {key: tensor.half() for key, tensor in weights.items()}
    safetensors.save_file(halves, vit / "model.safetensors", metadata={"format": "pt"})
    edit_config(vit, dtype="float16")
    module = load_model(resolve(str(vit))).module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert torch.equal(module.state_dict()["classifier.weight"], halves["classifier.weight"].float())


def test_sharded_weights_are_hashed_in_the_order_of_their_names(vit: Path) -> None:
    whole = load_model(resolve(str(vit)))
    whole.module.save_pretrained(vit, max_shard_size="40KB")  # type: ignore[operator]
    (vit / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(vit.glob("model-*.safetensors"))
    assert len(shards) > 1
    model = load_model(resolve(str(vit)))
    assert model.weights_sha256 == sha256_of(shards)
    assert model.parameters == whole.parameters


def test_image_size_with_two_sides(tmp_path: Path) -> None:
    directory = random_checkpoint("vit", tmp_path, image_size=[32, 48])
    assert load_model(resolve(str(directory))).image_size == (32, 48)


@pytest.mark.parametrize(("architecture", "size"), [("siglip", (32, 32)), ("swin", (32, 32)), ("dinov2", None)])
def test_image_size_of_other_architectures(architecture: str, size: Any, exports: Exports) -> None:
    assert load_model(resolve(str(exports.directory(architecture)))).image_size == size


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["ViTModel"]}, "not a trained image classifier: its architecture is ViTModel"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "ViTForMaskedImageModeling"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map asks to run code"),
        ({"vision_config": {"auto_map": {"AutoModel": "code.Model"}}}, "auto_map asks to run code"),
        ({"_attn_implementation": "someone/kernels"}, "_attn_implementation asks to run code"),
        ({"attn_implementation": {"vision_config": "someone/kernels"}}, "attn_implementation asks to run code"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights asks to run code or to read weights"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config asks to run code"),
        ({"architectures": 5}, "architectures is not a list"),
        ({"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000, not a number of layers"),
        ({"num_attention_heads": 0}, "cannot load it as an image classifier"),
        ({"patch_size": 0}, "cannot load it as an image classifier"),
        ({"image_size": [32]}, "cannot load it as an image classifier"),
        ({"id2label": ["a"]}, "cannot load it as an image classifier"),
        ({"model_type": "\x1b[31m"}, r"model type `\\x1b\[31m"),
        ({"pretrained_cfg": {}}, "a timm checkpoint"),
        ({"model_type": None}, "no model_type"),
        ({"model_type": "unheard-of"}, "cannot load it as an image classifier"),
        ({"hidden_size": 48}, "cannot load it as an image classifier"),
        ({"hidden_size": "wide"}, "cannot load it as an image classifier"),
        ({"num_hidden_layers": 3}, "it lacks 16 weights"),
    ],
)
def test_configurations_that_do_not_load(values: dict[str, Any], message: str, vit: Path) -> None:
    edit_config(vit, **values)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(resolve(str(vit)))
    assert str(vit) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_config_that_is_not_json(vit: Path) -> None:
    (vit / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: not JSON"):
        load_model(resolve(str(vit)))


def test_weights_without_the_classifier(vit: Path) -> None:
    weights = safetensors.load_file(vit / "model.safetensors")
    headless = {key: tensor for key, tensor in weights.items() if not key.startswith("classifier")}
    safetensors.save_file(headless, vit / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 2 weights, among them classifier.bias"):
        load_model(resolve(str(vit)))


def test_truncated_weights(vit: Path) -> None:
    path = vit / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot load"):
        load_model(resolve(str(vit)))


def test_pickled_weights_only(vit: Path) -> None:
    (vit / "model.safetensors").rename(vit / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights are never loaded") as caught:
        load_model(resolve(str(vit)))
    assert "save_pretrained" in caught.value.hint


def test_hub_repository_without_safetensors(vit: Path) -> None:
    (vit / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"org/name: no model.safetensors"):
        load_model(Checkpoint("hub", "org/name", vit))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"classifier.weight": "../model.safetensors"}}, "not a safetensors file beside it"),
        ({"weight_map": {"classifier.weight": "model.bin"}}, "not a safetensors file"),
        ({"weight_map": {"classifier.weight": "model-1.safetensors"}}, r"model-1.safetensors is missing"),
        ({}, "no weight_map"),
    ],
)
def test_bad_index_of_shards(index: dict[str, Any], message: str, vit: Path) -> None:
    (vit / "model.safetensors").unlink()
    (vit / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        load_model(resolve(str(vit)))


def test_missing_transformers(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(EnvironmentFault, match="transformers") as caught:
        load_model(resolve(str(vit)))
    assert caught.value.hint == "pip install 'trt-vit[export]'"


def test_classes_of_the_builder(exports: Exports) -> None:
    module = load_model(resolve(str(exports.directory("vit")))).module
    assert module(torch.zeros(1, 3, 32, 32)).logits.shape == (1, CLASSES)
