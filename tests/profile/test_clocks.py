"""GPU clocks, read through the real nvidia-ml-py from a library that is not there."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from trt_vit.cuda import driver
from trt_vit.profile import clocks
from trt_vit.profile.clocks import ClockSampler, GpuClocks

if TYPE_CHECKING:
    from collections.abc import Callable

pynvml = pytest.importorskip("pynvml")

_POWER_LIMIT, _IDLE = 0x4, 0x1
_NOT_SUPPORTED = 3


class FakeNvml:
    """NVML's functions, which write what they find through pointers."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.clocks = [1980, 1700, 1980]
        self.reasons = [_IDLE, _POWER_LIMIT, 0]
        self.fails = ""

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def function(*arguments: Any) -> int:
            self.calls.append(name)
            if name == self.fails:
                return _NOT_SUPPORTED
            self._answer(name, arguments)
            return 0

        return function

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "nvmlDeviceGetHandleByPciBusId_v2":
            assert arguments[0].value == b"0000:3b:00.0"
        elif name == "nvmlDeviceGetClockInfo":
            arguments[2]._obj.value = self.clocks.pop(0) if arguments[1].value == pynvml.NVML_CLOCK_SM else 2619
            self.clocks = self.clocks or [1980]
        elif name == "nvmlDeviceGetPowerUsage":
            arguments[1]._obj.value = 350_500
        elif name == "nvmlDeviceGetUtilizationRates":
            arguments[1]._obj.gpu = 90
        elif name == "nvmlDeviceGetTemperature":
            arguments[2]._obj.value = 61
        elif name == "nvmlDeviceGetCurrentClocksEventReasons":
            arguments[1]._obj.value = self.reasons.pop(0) if self.reasons else 0


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()

    def load(name: str) -> FakeNvml:
        assert name == "libnvidia-ml.so.1"
        return fake

    monkeypatch.setattr(pynvml, "CDLL", load)
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(driver, "pci_bus_id", lambda _gpu: "0000:3b:00.0")
    monkeypatch.setattr(clocks, "INTERVAL", 0.01)
    return fake


def sample_for(seconds: float) -> tuple[ClockSampler, list[GpuClocks]]:
    begin = time.perf_counter()
    with ClockSampler([0]) as sampler:
        time.sleep(seconds)
    return sampler, sampler.found(begin, seconds)


def test_what_a_gpu_did(nvml: FakeNvml) -> None:
    sampler, (found,) = sample_for(0.5)
    assert sampler.lacks is None
    assert found.gpu == 0
    assert found.samples >= 3
    low, mean, high = found.sm_mhz
    assert (low, high) == (1700, 1980)
    assert mean == pytest.approx(1980 - 280 / found.samples)
    assert (found.memory_mhz, found.watts, found.celsius) == (2619, 350.5, 61)
    assert found.load == pytest.approx(0.9)
    # Being idle is nothing that holds a GPU back.
    assert found.slowed == {"power limit": pytest.approx(1 / found.samples)}
    assert found.doubt == "the clock of GPU 0 went from 1980 down to 1700 MHz, held back by its power limit"
    assert nvml.calls[0] == "nvmlInitWithFlags"
    assert nvml.calls[-1] == "nvmlShutdown"
    assert not [thread for thread in threading.enumerate() if thread.name == "clocks"]


def test_only_what_was_measured_counts(nvml: FakeNvml) -> None:
    with ClockSampler([0]) as sampler:
        time.sleep(0.2)
    assert sampler.found(time.perf_counter() + 1, 1.0) == []
    assert "nvmlDeviceGetClockInfo" in nvml.calls


def test_a_steady_gpu_raises_no_doubt(nvml: FakeNvml) -> None:
    nvml.clocks = [1900]
    _, (found,) = sample_for(0.2)
    assert found.doubt is None


@pytest.mark.parametrize("fails", ["nvmlInitWithFlags", "nvmlDeviceGetPowerUsage"])
def test_what_does_not_work_is_said(nvml: FakeNvml, fails: str) -> None:
    nvml.fails = fails
    sampler, found = sample_for(0.2)
    assert found == []
    assert sampler.lacks is not None
    assert "Not Supported" in sampler.lacks


def test_a_cpu_has_no_clocks_to_read(nvml: FakeNvml) -> None:
    with ClockSampler([]) as sampler:
        pass
    assert (sampler.lacks, sampler.found(0.0, 1e12), nvml.calls) == (None, [], [])
