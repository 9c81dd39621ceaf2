from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from trt_vit.checkpoint import load
from trt_vit.checkpoint.load import to_onnx
from trt_vit.checkpoint.source import Checkpoint
from trt_vit.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

MODULES = ("export", "files", "graph", "labels", "load", "metadata", "model", "onnx_source", "preprocessing", "source")
HEAVY = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "huggingface_hub", "safetensors")


def test_importing_needs_no_heavy_package() -> None:
    imports = "; ".join(f"import trt_vit.checkpoint.{module}" for module in MODULES)
    probe = f"import sys; {imports}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("kind", "expected"), [("hub", "export"), ("directory", "export"), ("onnx", "copy")])
def test_each_kind_of_source_goes_its_way(
    kind: Any, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    checkpoint = Checkpoint(kind, "source", tmp_path)
    monkeypatch.setattr(
        load, "resolve", lambda source, *, revision: checkpoint if (source, revision) == ("s", "r") else None
    )
    monkeypatch.setattr(
        load, "export_onnx", lambda *given, **options: seen.append(("export", {**options, "given": given}))
    )
    monkeypatch.setattr(load, "copy_onnx", lambda *given, **options: seen.append(("copy", {**options, "given": given})))
    output, preprocessor, labels = tmp_path / "o", tmp_path / "p", tmp_path / "l"
    to_onnx("s", output, revision="r", preprocessor=preprocessor, labels=labels, opset=20)
    ((way, options),) = seen
    assert way == expected
    assert options["given"] == (checkpoint, output)
    assert (options["preprocessor"], options["labels"]) == (preprocessor, labels)
    assert options.get("opset") == (20 if expected == "export" else None)


def test_a_typo_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\./typo"):
        to_onnx("./typo", tmp_path / "out" / "model.onnx")
    assert list(tmp_path.iterdir()) == []
