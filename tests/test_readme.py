"""What the README says that a script prints."""

from __future__ import annotations

import json
import re
import sys
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = sorted((ROOT / "benchmarks" / "results" / "precisions").glob("*.json"))


@pytest.fixture(scope="module")
def precisions() -> ModuleType:
    spec = util.spec_from_file_location("precisions", ROOT / "benchmarks" / "precisions.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules["precisions"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", RESULTS, ids=lambda path: path.stem)
def test_the_table_is_what_the_benchmark_printed(precisions: ModuleType, file: Path) -> None:
    table: str = precisions.table_of(json.loads(file.read_text(encoding="utf-8")))
    assert table in README
    assert len(table.splitlines()) == 8


def test_the_results_are_as_accurate_as_transformers() -> None:
    for file in RESULTS:
        results = json.loads(file.read_text(encoding="utf-8"))
        fp32, peer = results["rows"][0], results["transformers"]
        assert fp32["images"] == peer["images"] == 10_000
        assert (fp32["top1"], fp32["top5"]) == (peer["top1"], peer["top5"])


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 10
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []
