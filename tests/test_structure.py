"""Rules of the architecture that no single module can keep alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trt_vit"
MODULES = sorted(PACKAGE.rglob("*.py"))
BUILD_FLOW = (
    "trt_vit.checkpoint",
    "trt_vit.graph",
    "trt_vit.quantize",
    *(f"trt_vit.engine.{name}" for name in ("build", "onnxruntime", "openvino", "order", "plan", "plan_cache")),
    *(f"trt_vit.engine.{name}" for name in ("prepare", "quantizer", "record", "tensorrt", "timing_cache", "verify")),
)
RUN_FLOW = ("trt_vit.pipeline", "trt_vit.distributed")
LEAF = ("trt_vit.images",)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def reachable_from(path: Path) -> set[str]:
    """Return what a module imports, and what our own modules among that import, and so on."""
    files = {name_of(other): other for other in MODULES}
    found, waiting = set[str](), [path]
    while waiting:
        new = imports_of(waiting.pop()) - found
        found |= new
        waiting += [files[name] for name in new if name in files]
    return found


def belongs(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_two_flows_meet_only_at_the_bundle(path: Path) -> None:
    module = name_of(path)
    forbidden = RUN_FLOW if belongs(module, BUILD_FLOW) else BUILD_FLOW if belongs(module, RUN_FLOW) else ()
    assert [name for name in reachable_from(path) if belongs(name, forbidden)] == []


@pytest.mark.parametrize("path", [path for path in MODULES if belongs(name_of(path), LEAF)], ids=name_of)
def test_the_images_package_is_a_leaf(path: Path) -> None:
    own = {name for name in imports_of(path) if name.startswith("trt_vit.")}
    assert {name for name in own if not belongs(name, ("trt_vit.images", "trt_vit.errors"))} == set()


def modules_loaded_by(code: str) -> set[str]:
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    modules = set(done.stdout.split())
    return modules | {name.partition(".")[0] for name in modules}


HEAVY = {
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "pycuda",
    "pyarrow",
    "huggingface_hub",
    "ray",
}


@pytest.mark.parametrize(
    "code",
    [
        "import trt_vit",
        "import trt_vit.cli",
        "import trt_vit.doctor",
        "import trt_vit.engine.build",
        "import trt_vit.pipeline.classify",
        "from trt_vit.cli import run; assert run(['--help']) == 0",
    ],
)
def test_heavy_packages_load_late(code: str) -> None:
    assert modules_loaded_by(code) & HEAVY == set()


def test_help_needs_neither_numpy_nor_pydantic_models() -> None:
    loaded = modules_loaded_by("from trt_vit.cli import run; run(['--help'])")
    assert loaded & {"numpy", "pydantic", "trt_vit.config", "trt_vit.settings"} == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_imports(path: Path) -> None:
    if path.name != "__main__.py":
        __import__(name_of(path))


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]))
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_readme_and_the_help_name_the_same_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    used = set(re.findall(r"trt-vit ([a-z-]+) ", readme)) - {"--help"}
    done = subprocess.run([sys.executable, "-m", "trt_vit", "--help"], check=True, capture_output=True, text=True)
    assert used
    assert [command for command in used if command not in done.stdout] == []
