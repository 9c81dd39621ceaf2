"""Everything of TensorRT that trt_vit uses exists in the real bindings of each member of the family.

What is used is not listed anywhere: mypy finds it in the source. The convention that makes it visible, and that these
tests enforce:

* a module that handles TensorRT's objects imports `tensorrt as trt` under TYPE_CHECKING and annotates them by it; what
  is typed so must exist in TensorRT 10, TensorRT 11 and TensorRT for RTX alike;
* a function that needs names of the module when it runs (classes, enumerations) takes them from the family in use:

      if TYPE_CHECKING:
          import tensorrt as trt
      else:
          trt = family.bindings

  so that mypy sees the module itself, where any object that held it would be a `ModuleType` whose attributes are Any;
* what only TensorRT for RTX has is typed by `tensorrt_rtx as rtx`, behind a check of the family, and a cast leads from
  `trt` to `rtx` and back. For TensorRT for RTX, where both are one module, the casts are taken away: what they said
  must be so;
* nothing gets round the types: no Any, no getattr, and no ignored error but the base class of a class, which is unknown
  to mypy where the bindings are not installed.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.conformance.bindings import MEMBERS, ROOT, RTX, TENSORRT_10, TENSORRT_11, Member, Stubs
from tests.conformance.checker import Checker, imports_types, loopholes, names_of, without_casts

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = ROOT / "trt_vit"
USERS = sorted(path for path in PACKAGE.rglob("*.py") if imports_types(path.read_text(encoding="utf-8")))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_source_names_the_types_of_tensorrt() -> None:
    assert USERS


@pytest.mark.parametrize("member", [TENSORRT_10, TENSORRT_11], ids=lambda member: member.name)
def test_what_is_used_of_tensorrt_exists(member: Member, stubs: Stubs, checker: Checker) -> None:
    assert [str(finding) for finding in checker.errors([PACKAGE], stubs.search_path(member))] == []


def test_what_is_used_of_tensorrt_exists_in_tensorrt_for_rtx(tmp_path: Path, stubs: Stubs, checker: Checker) -> None:
    package = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in USERS:
        source = path.read_text(encoding="utf-8")
        (package / path.relative_to(PACKAGE)).write_text(without_casts(source), encoding="utf-8")
    assert [str(finding) for finding in checker.errors([package], stubs.search_path(RTX))] == []


def test_every_use_of_tensorrt_is_checked(stubs: Stubs, checker: Checker) -> None:
    names = frozenset[str]().union(*(names_of(stubs.of(member)) for member in MEMBERS))
    search_path = stubs.search_path(TENSORRT_11)
    assert [str(finding) for finding in checker.unchecked([PACKAGE], search_path, names)] == []


@pytest.mark.parametrize("path", USERS, ids=name_of)
def test_no_use_gets_round_the_types(path: Path) -> None:
    assert loopholes(path.read_text(encoding="utf-8")) == []
