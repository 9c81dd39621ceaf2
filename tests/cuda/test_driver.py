from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import pytest

from trt_vit.cuda import driver
from trt_vit.cuda.driver import Gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

_FAILURE = 100


class FakeDriver:
    """The CUDA driver's functions, which write what they find through pointers. GPUs are (name, capability, bytes)."""

    def __init__(self, gpus: Sequence[tuple[bytes, tuple[int, int], int]], version: int = 13000) -> None:
        self._gpus = gpus
        self._version = version
        self.fails = ""

    def cuInit(self, flags: int) -> int:  # noqa: N802
        assert flags == 0
        return self._result("cuInit")

    def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802
        number._obj.value = self._version
        return self._result("cuDriverGetVersion")

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self._gpus)
        return self._result("cuDeviceGetCount")

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = 10 + index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        assert size == len(name)
        name.value = self._gpus[device.value - 10][0]
        return 0

    def cuDeviceGetPCIBusId(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        assert size == len(name)
        name.value = f"0000:{device.value:02x}:00.0".encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:  # noqa: N802
        memory._obj.value = self._gpus[device.value - 10][2]
        return 0

    def cuDeviceGetAttribute(self, value: Any, which: int, device: Any) -> int:  # noqa: N802
        value._obj.value = self._gpus[device.value - 10][1][{75: 0, 76: 1}[which]]
        return 0

    def _result(self, name: str) -> int:
        return _FAILURE if self.fails == name else 0


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeDriver) -> None:
    def load(name: str) -> FakeDriver:
        assert name == "libcuda.so.1"
        return fake

    monkeypatch.setattr(ctypes, "CDLL", load)


def test_without_a_driver_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert driver.version() is None
    assert driver.gpus() == []


@pytest.mark.parametrize(("number", "text"), [(13000, "13.0"), (12080, "12.8"), (11040, "11.4"), (13010, "13.1")])
def test_the_version_is_read_as_it_is_written(monkeypatch: pytest.MonkeyPatch, number: int, text: str) -> None:
    install(monkeypatch, FakeDriver([], number))
    assert driver.version() == text


def test_gpus_are_listed_in_cudas_order(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [(b"NVIDIA H200", (9, 0), 150_000_000_000), (b"NVIDIA RTX PRO 6000 \xff", (12, 1), 2**40)]
    install(monkeypatch, FakeDriver(gpus))
    assert driver.gpus() == [
        Gpu("NVIDIA H200", "9.0", 150_000_000_000),
        Gpu("NVIDIA RTX PRO 6000 \N{REPLACEMENT CHARACTER}", "12.1", 2**40),
    ]


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGetCount"])
def test_a_driver_that_does_not_work_has_no_gpus(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    fake = FakeDriver([(b"NVIDIA L4", (8, 9), 1)])
    fake.fails = function
    install(monkeypatch, fake)
    assert driver.gpus() == []


@pytest.mark.parametrize("function", ["cuInit", "cuDriverGetVersion"])
def test_a_driver_that_does_not_work_has_no_version(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    fake = FakeDriver([])
    fake.fails = function
    install(monkeypatch, fake)
    assert driver.version() is None


def test_where_a_gpu_sits(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeDriver([(b"A", (9, 0), 1), (b"A", (9, 0), 1)]))
    assert driver.pci_bus_id(1) == "0000:0b:00.0"
