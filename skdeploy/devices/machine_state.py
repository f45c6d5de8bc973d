"""The machine's state during a measurement: clocks, power, temperature, other processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import IO, Any, Final, NamedTuple

import psutil

from skdeploy.core.errors import DependencyError
from skdeploy.core.packages import require
from skdeploy.core.spec import Frozen
from skdeploy.devices import cuda

MOVED: Final = 0.05  # of the median clock: a throttled GPU falls by more, noise of the reading is less
OTHERS: Final = 0.05  # of the cores' time: more of it than this is seen in the median
STOLEN: Final = 0.01  # of the cores' time, taken by other virtual machines
SAMPLE_SECONDS: Final = 0.25
TEGRASTATS: Final = "tegrastats"


class Sample(Frozen):
    """One look. What a device does not tell is None. ``where`` is CPU or a GPU's name."""

    where: str
    clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttled: tuple[str, ...] = ()


class MachineState(Frozen):
    """Before, during and after the runs; ``others`` and ``stolen`` are shares of the time of the cores that we may use."""

    before: tuple[Sample, ...]
    during: tuple[Sample, ...]
    after: tuple[Sample, ...]
    load_average: float
    cores: int
    others: float
    stolen: float
    warnings: tuple[str, ...]


class CpuTimes(NamedTuple):
    """Seconds since the machine started, summed over some cores."""

    busy: float
    stolen: float
    total: float


def parse_tegrastats(line: str) -> Sample | None:
    """A line of tegrastats: JetPack 5 and later. None for a line that is none of its.

    ``GR3D_FREQ 61%@[1300]``, ``GR3D_FREQ 0%@306``, ``gpu@48.5C`` or ``GPU@48.5C``, ``VDD_IN 5200mW/5100mW`` (now/mean), or
    ``VIN_SYS_5V0`` on AGX boards; ``EMC_FREQ 3%@2133``.
    """
    clock = re.search(r"\bGR3D_FREQ \d+%(?:@\[?(\d+))?", line)
    if clock is None:
        return None
    memory = re.search(r"\bEMC_FREQ \d+%@(\d+)", line)
    power = re.search(r"\bVDD_IN (\d+)mW/\d+mW", line) or re.search(r"\bVIN_SYS_5V0 (\d+)mW/\d+mW", line)
    heat = re.search(r"\b(?:gpu|GPU)@(-?[\d.]+)C", line)
    return Sample(
        where="Jetson GPU",
        clock_mhz=float(clock[1]) if clock[1] else None,
        memory_clock_mhz=float(memory[1]) if memory else None,
        power_w=int(power[1]) / 1000 if power else None,
        temperature_c=float(heat[1]) if heat else None,
    )


# nvml.h, nvmlClocksEventReason*: those that hold the clock down. Idle and the user's own setting are no throttling.
THROTTLES: Final = {0x4: "power limit", 0x8: "hardware slowdown", 0x20: "temperature", 0x40: "hardware temperature",
                    0x80: "power brake"}  # fmt: skip


def throttles(bits: int) -> tuple[str, ...]:
    """NVML's reasons in words."""
    return tuple(words for bit, words in THROTTLES.items() if bits & bit)


def warnings_of(during: Sequence[Sample], *, others: float, stolen: float) -> tuple[str, ...]:
    """Reasons to doubt the figures: changed clocks, throttling, other processes, other virtual machines."""
    found = []
    for where in dict.fromkeys(sample.where for sample in during):
        samples = [sample for sample in during if sample.where == where]
        clocks = [sample.clock_mhz for sample in samples if sample.clock_mhz is not None]
        if clocks and max(clocks) - min(clocks) > MOVED * max(clocks):
            found.append(
                f"the clock of {where} changed during the measurement: {min(clocks):.0f} to {max(clocks):.0f} MHz"
            )
        reasons = dict.fromkeys(reason for sample in samples for reason in sample.throttled)
        if reasons:
            found.append(f"{where} was slowed down by its {' and '.join(reasons)}")
    if others > OTHERS:
        found.append(f"the machine was not idle: other processes used {others:.0%} of the cores' time")
    if stolen > STOLEN:
        found.append(f"other virtual machines used {stolen:.0%} of the cores' time")
    return tuple(found)


class Watch(AbstractContextManager["Watch"]):
    """Looks at the machine before, now and then during, and after. ``gpu``: at the first GPU too."""

    def __init__(self, *, gpu: bool) -> None:
        self._cores = sorted(os.sched_getaffinity(0))
        self._notes: list[str] = []
        self._nvml: Nvml | None = None
        self._tegrastats: subprocess.Popen[bytes] | None = None
        self._lines: IO[bytes] | None = None
        if gpu:
            self._watch_gpu()
        self._before = self._look()
        self._during: list[Sample] = []
        self._started = cpu_times(self._cores)
        self._own = sum(os.times()[:4])
        self._next = time.perf_counter()

    def look(self) -> None:
        """To be called between blocks; looks four times a second at most."""
        if time.perf_counter() >= self._next:
            self._during += self._look()
            self._next = time.perf_counter() + SAMPLE_SECONDS

    def finish(self) -> MachineState:
        """Ends the watch and says what it saw."""
        spent, own = cpu_times(self._cores), sum(os.times()[:4]) - self._own
        after = self._look()
        self._end_tegrastats()
        if self._lines is not None:
            self._lines.seek(0)
            text = self._lines.read().decode(errors="replace")
            self._during += [sample for line in text.splitlines() if (sample := parse_tegrastats(line))]
        total = max(0.01, spent.total - self._started.total)  # it is counted in hundredths of a second
        busy = spent.busy - self._started.busy - own
        others, stolen = max(0.0, busy / total), (spent.stolen - self._started.stolen) / total
        return MachineState(
            before=self._before,
            during=tuple(self._during),
            after=after,
            load_average=os.getloadavg()[0],
            cores=len(self._cores),
            others=round(others, 4),
            stolen=round(stolen, 4),
            warnings=(*self._notes, *warnings_of(self._during, others=others, stolen=stolen)),
        )

    def __exit__(self, *_: object) -> None:
        self._end_tegrastats()
        if self._lines is not None:
            self._lines.close()

    def _end_tegrastats(self) -> None:
        if self._tegrastats is not None and self._tegrastats.poll() is None:
            self._tegrastats.terminate()
            self._tegrastats.wait()

    def _watch_gpu(self) -> None:
        if shutil.which(TEGRASTATS):
            self._lines = tempfile.TemporaryFile()  # noqa: SIM115  (closed by __exit__)
            self._tegrastats = subprocess.Popen([TEGRASTATS, "--interval", "250"], stdout=self._lines)
            return
        try:  # the times are good without it
            wanted = cuda.devices()[0].name if cuda.devices() else ""
            self._nvml = Nvml(require("pynvml", extra="plans"), wanted)
        except DependencyError as error:
            self._notes.append(f"the GPU's clocks, power and temperature are not known: {error.message}")

    def _look(self) -> tuple[Sample, ...]:
        samples = [Sample(where="CPU", clock_mhz=_cpu_mhz())]
        if self._nvml is not None:
            samples.append(self._nvml.sample())
        return tuple(samples)


def _cpu_mhz() -> float | None:
    """The mean of the cores' clocks; virtual machines and ARM kernels may tell none."""
    clocks = [clock.current for clock in psutil.cpu_freq(percpu=True) or ()]
    return sum(clocks) / len(clocks) if clocks else None


def cpu_times(cores: Collection[int]) -> CpuTimes:
    """The times of these cores. Elsewhere than on Linux nothing is stolen, and there is no time for interrupts."""
    busy = stolen = total = 0.0
    for core, times in enumerate(psutil.cpu_times(percpu=True)):
        if core in cores:
            known = times._asdict()
            interrupts = [known.get(name, 0.0) for name in ("irq", "softirq", "nice")]
            working, taken = times.user + times.system + sum(interrupts), known.get("steal", 0.0)
            busy, stolen = busy + working, stolen + taken
            total += working + taken + times.idle + known.get("iowait", 0.0)
    return CpuTimes(busy, stolen, total)


class Nvml:
    """NVML's view of one GPU. ``module`` is ``pynvml``."""

    def __init__(self, module: Any, wanted: str) -> None:
        """Finds the GPU by its name, since NVML ignores CUDA_VISIBLE_DEVICES, or takes the first.

        Raises DependencyError for a driver without its management library, or one that serves no GPU with it, as on a Jetson.
        """
        self._module = module
        try:
            module.nvmlInit()
            handles = [module.nvmlDeviceGetHandleByIndex(index) for index in range(module.nvmlDeviceGetCount())]
            names = [_text(module.nvmlDeviceGetName(handle)) for handle in handles]
        except module.NVMLError as error:
            raise DependencyError(f"NVML does not support this GPU: {error}") from error
        if not names:
            raise DependencyError("NVML sees no GPU")
        found = names.index(wanted) if wanted in names else 0
        self._handle, self._name = handles[found], names[found]

    def sample(self) -> Sample:
        """Sample the GPU; values that it does not report are None."""
        power = self._told("nvmlDeviceGetPowerUsage")
        return Sample(
            where=self._name,
            clock_mhz=_number(self._told("nvmlDeviceGetClockInfo", self._module.NVML_CLOCK_SM)),
            memory_clock_mhz=_number(self._told("nvmlDeviceGetClockInfo", self._module.NVML_CLOCK_MEM)),
            power_w=None if power is None else power / 1000,
            temperature_c=_number(self._told("nvmlDeviceGetTemperature", self._module.NVML_TEMPERATURE_GPU)),
            throttled=throttles(int(self._told("nvmlDeviceGetCurrentClocksThrottleReasons") or 0)),
        )

    def _told(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._module, function)(self._handle, *arguments)
        except self._module.NVMLError:
            return None


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def _number(value: int | None) -> float | None:
    return None if value is None else float(value)
