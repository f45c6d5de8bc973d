"""What the machine does while it is measured: clocks, power, temperature, and who else uses it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Final

from skdeploy.core.errors import DependencyError
from skdeploy.core.packages import require
from skdeploy.core.spec import Frozen
from skdeploy.devices import cuda

MOVED: Final = 0.05  # of the median clock: a throttled GPU falls by more, noise of the reading is less
OTHERS: Final = 0.05  # of the cores' time: more of it than this is seen in the median
STOLEN: Final = 0.01  # of the cores' time, taken by other virtual machines
SAMPLE_SECONDS: Final = 0.25
KHZ_PER_MHZ: Final = 1000
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


class CpuTimes(Frozen):
    """Of /proc/stat, in clock ticks, summed over some cores."""

    busy: int
    stolen: int
    total: int


def cpuinfo_mhz(text: str) -> float | None:
    """The mean of /proc/cpuinfo's clocks; ARM kernels tell none."""
    clocks = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", text, re.MULTILINE)]
    return sum(clocks) / len(clocks) if clocks else None


def parse_proc_stat(text: str, cores: Iterable[int]) -> CpuTimes:
    """The times of these cores. Fields: proc(5): user nice system idle iowait irq softirq steal ..."""
    busy = stolen = total = 0
    wanted = {f"cpu{core}" for core in cores}
    for line in text.splitlines():
        name, *fields = line.split()
        if name in wanted:
            user, nice, system, idle, iowait, irq, softirq, steal = (int(field) for field in fields[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
            total += user + nice + system + idle + iowait + irq + softirq + steal
    return CpuTimes(busy=busy, stolen=stolen, total=total)


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
    """What makes the figures doubtful: clocks that moved, throttling, other processes, other virtual machines."""
    found = []
    for where in dict.fromkeys(sample.where for sample in during):
        samples = [sample for sample in during if sample.where == where]
        clocks = [sample.clock_mhz for sample in samples if sample.clock_mhz is not None]
        if clocks and max(clocks) - min(clocks) > MOVED * max(clocks):
            found.append(
                f"the clock of {where} moved while it was measured: {min(clocks):.0f} to {max(clocks):.0f} MHz"
            )
        reasons = dict.fromkeys(reason for sample in samples for reason in sample.throttled)
        if reasons:
            found.append(f"{where} was held down by its {' and '.join(reasons)}")
    if others > OTHERS:
        found.append(f"the machine was not idle: other processes took {others:.0%} of the cores' time")
    if stolen > STOLEN:
        found.append(f"other virtual machines took {stolen:.0%} of the cores' time")
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
        self._started = _cpu_times(self._cores)
        self._own = _own_seconds()
        self._next = time.perf_counter()

    def look(self) -> None:
        """To be called between blocks; looks four times a second at most."""
        if time.perf_counter() >= self._next:
            self._during += self._look()
            self._next = time.perf_counter() + SAMPLE_SECONDS

    def finish(self) -> MachineState:
        """Ends the watch and says what it saw."""
        spent, own = _cpu_times(self._cores), _own_seconds() - self._own
        after = self._look()
        self._end_tegrastats()
        if self._lines is not None:
            self._lines.seek(0)
            text = self._lines.read().decode(errors="replace")
            self._during += [sample for line in text.splitlines() if (sample := parse_tegrastats(line))]
        total = max(1, spent.total - self._started.total)
        busy = spent.busy - self._started.busy - own * os.sysconf("SC_CLK_TCK")
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
        samples = [Sample(where="CPU", clock_mhz=_cpu_mhz(self._cores))]
        if self._nvml is not None:
            samples.append(self._nvml.sample())
        return tuple(samples)


def _cpu_mhz(cores: Sequence[int]) -> float | None:
    clocks = []
    for core in cores:
        try:
            text = Path(f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq").read_text()
            clocks.append(int(text) / KHZ_PER_MHZ)
        except (OSError, ValueError):  # virtual machines have no cpufreq
            break
    if clocks:
        return sum(clocks) / len(clocks)
    try:
        return cpuinfo_mhz(Path("/proc/cpuinfo").read_text(errors="replace"))
    except OSError:
        return None


def _cpu_times(cores: Sequence[int]) -> CpuTimes:
    try:
        return parse_proc_stat(Path("/proc/stat").read_text(), cores)
    except OSError:  # not Linux: then nothing is known of others
        return CpuTimes(busy=0, stolen=0, total=0)


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


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
            raise DependencyError(f"NVML does not serve this GPU: {error}") from error
        if not names:
            raise DependencyError("NVML sees no GPU")
        found = names.index(wanted) if wanted in names else 0
        self._handle, self._name = handles[found], names[found]

    def sample(self) -> Sample:
        """What this GPU does not tell is None."""
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
