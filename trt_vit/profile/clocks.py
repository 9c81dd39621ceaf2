"""What the GPUs did while something was measured: clocks, power, load, and whether the driver held them back.

NVIDIA's management library (NVML) is asked a few times a second by a thread. It only reads: no clock is set.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from trt_vit.cuda import driver

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERVAL = 0.1
"""Seconds between two samples."""

UNSTEADY = 0.9
"""Share of the highest clock of a measurement below which its lowest makes the figures doubtful."""

_SLOWED = {
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "temperature (driver)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}
"""NVML's nvmlClocksEventReason bits of a GPU that is held back, and what they mean."""


@dataclass(frozen=True)
class Sample:
    """One GPU at one time.

    Attributes:
        seconds: When, by ``time.perf_counter``.
        sm_mhz: Clock of its multiprocessors.
        memory_mhz: Clock of its memory.
        watts: What it draws.
        load: Share of the time in which a kernel ran, 0 to 1.
        celsius: Temperature.
        reasons: Why it is held back, as NVML's bits.
    """

    seconds: float
    sm_mhz: int
    memory_mhz: int
    watts: float
    load: float
    celsius: int
    reasons: int


@dataclass(frozen=True)
class GpuClocks:
    """One GPU during a measurement.

    Attributes:
        gpu: Its number among those that the process may use.
        samples: How often it was asked.
        sm_mhz: Lowest, mean and highest clock of its multiprocessors.
        memory_mhz: Mean clock of its memory.
        watts: Mean of what it drew.
        load: Mean share of the time in which a kernel ran, 0 to 1.
        celsius: Highest temperature.
        slowed: Share of the samples in which it was held back, by why.
    """

    gpu: int
    samples: int
    sm_mhz: tuple[int, float, int]
    memory_mhz: float
    watts: float
    load: float
    celsius: int
    slowed: dict[str, float]

    @property
    def doubt(self) -> str | None:
        """Why a figure that was measured meanwhile may not be believed, or None."""
        low, _, high = self.sm_mhz
        if low >= UNSTEADY * high:
            return None
        why = f", held back by its {max(self.slowed, key=lambda name: self.slowed[name])}" if self.slowed else ""
        return f"the clock of GPU {self.gpu} went from {high} down to {low} MHz{why}"


class ClockSampler:
    """Samples GPUs in a thread of its own, from ``with`` to the end of the block.

    Args:
        gpus: Their numbers among those that the process may use; none on a CPU.

    Attributes:
        lacks: Why nothing can be sampled, or None.
    """

    def __init__(self, gpus: Sequence[int]) -> None:
        self.lacks: str | None = None
        self._samples: dict[int, list[Sample]] = {gpu: [] for gpu in gpus}
        self._nvml: Any = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clocks", daemon=True)

    def __enter__(self) -> Self:
        if self._samples:
            self._open()
        if self._nvml is not None:
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        if self._nvml is not None:
            self._thread.join()
            self._nvml.nvmlShutdown()

    def found(self, begin: float, seconds: float) -> list[GpuClocks]:
        """Return what each GPU did in a part of the time.

        Args:
            begin: When it began, by ``time.perf_counter``.
            seconds: How long it was.
        """
        parts = {
            gpu: [sample for sample in samples if begin <= sample.seconds <= begin + seconds]
            for gpu, samples in self._samples.items()
        }
        return [_summary(gpu, samples) for gpu, samples in parts.items() if samples]

    def _open(self) -> None:
        try:
            import pynvml  # noqa: PLC0415 - only a machine with a GPU has it
        except ImportError:
            self.lacks = "nvidia-ml-py is not installed"
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.lacks = f"NVML does not start: {error}"
            return
        self._nvml = pynvml

    def _run(self) -> None:
        nvml = self._nvml
        try:
            handles = {gpu: nvml.nvmlDeviceGetHandleByPciBusId(driver.pci_bus_id(gpu)) for gpu in self._samples}
            while not self._stop.wait(INTERVAL):
                for gpu, handle in handles.items():
                    self._samples[gpu].append(_sample(nvml, handle))
        except nvml.NVMLError as error:
            self.lacks = f"NVML fails: {error}"


def _sample(nvml: Any, handle: Any) -> Sample:
    return Sample(
        seconds=time.perf_counter(),
        sm_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        memory_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        watts=nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        load=nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        celsius=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        reasons=nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
    )


def _summary(gpu: int, samples: Sequence[Sample]) -> GpuClocks:
    count = len(samples)
    clocks = [sample.sm_mhz for sample in samples]
    slowed = {why: sum(bool(sample.reasons & bit) for sample in samples) / count for bit, why in _SLOWED.items()}
    return GpuClocks(
        gpu=gpu,
        samples=count,
        sm_mhz=(min(clocks), sum(clocks) / count, max(clocks)),
        memory_mhz=sum(sample.memory_mhz for sample in samples) / count,
        watts=sum(sample.watts for sample in samples) / count,
        load=sum(sample.load for sample in samples) / count,
        celsius=max(sample.celsius for sample in samples),
        slowed={why: share for why, share in slowed.items() if share},
    )
