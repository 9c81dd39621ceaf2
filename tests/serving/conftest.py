from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trt_vit.engine.bundle import Bundle, record, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

_MESSAGES = Path(__file__).parents[2] / "build/bindings/triton/tritonclient/grpc/model_config_pb2.py"
_ENGINES = ("engine.bin", "engine.xml", "engine.onnx", "engine.plan")


def remade(bundle: Bundle, path: Path, engine: Mapping[str, bytes] | None = None, **changes: Any) -> Bundle:
    """Copy a bundle and change its manifest, and its engine's files where they are given."""
    shutil.copytree(bundle.path, path)
    files = dict(bundle.manifest.files)
    if engine is not None:
        for name in _ENGINES:
            (path / name).unlink(missing_ok=True)
            files.pop(name, None)
        for name, content in engine.items():
            (path / name).write_bytes(content)
            files[name] = record(path / name)
    write_manifest(path, bundle.manifest.model_copy(update=changes | {"files": files}))
    return Bundle.open(path)


def files_of(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


@pytest.fixture
def tensorrt_bundle(openvino_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A bundle for TensorRT whose plan nobody opens."""
    return remade(openvino_bundle, tmp_path / "vit-trt.bundle", {"engine.plan": b"plan"}, runtime="tensorrt")


@pytest.fixture(scope="session")
def parse_config() -> Callable[[str], Any]:
    """Parses the text of a config.pbtxt as Triton's own ModelConfig message."""
    text_format = pytest.importorskip("google.protobuf.text_format", reason="needs protobuf, of the export extra")
    if not _MESSAGES.exists():
        pytest.skip("needs Triton's model_config_pb2: make bindings")
    spec = importlib.util.spec_from_file_location("model_config_pb2", _MESSAGES)
    assert spec is not None
    assert spec.loader is not None
    messages: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(messages)
    return lambda text: text_format.Parse(text, messages.ModelConfig())
