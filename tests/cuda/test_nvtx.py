from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from trt_vit.cuda import nvtx

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    nvtx._nvtx.cache_clear()
    yield
    nvtx._nvtx.cache_clear()


def test_stages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    @contextmanager
    def annotate(name: str, *, domain: str) -> Iterator[None]:
        log.append(f"{domain}: {name}")
        yield
        log.append("end")

    package = ModuleType("nvtx")
    package.__dict__["annotate"] = annotate
    monkeypatch.setitem(sys.modules, "nvtx", package)
    with nvtx.stage("infer"):
        log.append("work")
    assert log == ["trt_vit: infer", "work", "end"]


def test_without_the_package_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with nvtx.stage("infer") as entered:
        assert entered is None


def test_without_the_package_it_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    nvtx.stage("infer")
    monkeypatch.setitem(sys.modules, "nvtx", ModuleType("nvtx"))  # has no annotate
    with nvtx.stage("infer") as entered:
        assert entered is None


@pytest.mark.parametrize("installed", [True, False])
def test_what_fails_in_a_stage_fails(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:  # noqa: FBT001
    package = ModuleType("nvtx")
    package.__dict__["annotate"] = lambda _name, *, domain: nullcontext(domain)
    monkeypatch.setitem(sys.modules, "nvtx", package if installed else None)
    with pytest.raises(ZeroDivisionError), nvtx.stage("infer"):
        _ = 1 / 0


def test_the_package_itself() -> None:
    pytest.importorskip("nvtx", reason="needs nvtx")
    with nvtx.stage("infer"):
        pass
