"""What the system's own lines say; forms: proc(5), JetPack's tegrastats guide, nvml.h."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest

from skdeploy.core.errors import DependencyError
from skdeploy.devices.jetson import is_jetson
from skdeploy.devices.machine_state import (
    Nvml,
    Sample,
    Watch,
    cpu_times,
    parse_tegrastats,
    throttles,
    warnings_of,
)

ORIN = (
    "11-24-2026 12:00:00 RAM 4722/30592MB (lfb 3x4MB) SWAP 0/15296MB (cached 0MB) CPU [12%@729,3%@729,off,off] "
    "EMC_FREQ 3%@2133 GR3D_FREQ 61%@[1300,1300] NVDEC off NVJPG off VIC off OFA off APE 200 cpu@49.9C tboard@37.5C "
    "soc2@46C gpu@45.25C tj@49.9C VDD_GPU_SOC 2408mW/2408mW VDD_CPU_CV 802mW/802mW VIN_SYS_5V0 3828mW/3828mW"
)
NANO = (
    "RAM 2461/7620MB (lfb 4x2MB) SWAP 0/3810MB (cached 0MB) CPU [1%@1510,0%@1510] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305] "
    "cpu@48.5C gpu@47C tj@48.5C VDD_IN 4936mW/4921mW VDD_CPU_GPU_CV 514mW/514mW"
)


def test_a_line_of_an_agx_orin_is_read() -> None:
    assert parse_tegrastats(ORIN) == Sample(
        where="Jetson GPU", clock_mhz=1300, memory_clock_mhz=2133, power_w=3.828, temperature_c=45.25
    )


def test_a_line_of_an_orin_nano_is_read() -> None:
    assert parse_tegrastats(NANO) == Sample(
        where="Jetson GPU", clock_mhz=305, memory_clock_mhz=2133, power_w=4.936, temperature_c=47
    )


def test_what_a_line_does_not_tell_is_none_and_another_line_is_no_sample() -> None:
    found = parse_tegrastats("RAM 1/2MB GR3D_FREQ 0% cpu@48C")
    assert found == Sample(where="Jetson GPU")
    assert parse_tegrastats("tegrastats: command not permitted") is None


def test_only_the_cores_that_we_may_use_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    names = "user nice system idle iowait irq softirq steal"
    scputimes: Any = namedtuple("scputimes", names)
    each = [scputimes(10, 1, 5, 80, 4, 2, 3, 7), scputimes(*[1] * 8)]
    monkeypatch.setattr("psutil.cpu_times", lambda percpu: each)
    assert cpu_times([0]) == (10 + 1 + 5 + 2 + 3, 7, 10 + 1 + 5 + 80 + 4 + 2 + 3 + 7)


def test_reasons_of_throttling_are_told_and_idleness_is_none() -> None:
    assert throttles(0x1 | 0x2) == ()  # idle, applications' clocks
    assert throttles(0x4 | 0x40) == ("power limit", "hardware temperature")


@pytest.mark.parametrize(
    ("samples", "others", "stolen", "words"),
    [
        ([1000, 900], 0.0, 0.0, "the clock of X changed during the measurement: 900 to 1000 MHz"),
        ([1000], 0.06, 0.0, "other processes used 6% of the cores' time"),
        ([1000], 0.0, 0.02, "other virtual machines used 2%"),
    ],
)
def test_what_disturbs_is_warned_of(samples: list[float], others: float, stolen: float, words: str) -> None:
    during = [Sample(where="X", clock_mhz=clock) for clock in samples]
    (warning,) = warnings_of(during, others=others, stolen=stolen)
    assert words in warning


def test_a_quiet_machine_is_not_warned_of() -> None:
    during = [Sample(where="X", clock_mhz=clock) for clock in (1000, 980)] + [Sample(where="CPU")]
    assert warnings_of(during, others=0.04, stolen=0.005) == ()
    hot = [Sample(where="X", clock_mhz=1000, throttled=("temperature",))]
    assert warnings_of(hot, others=0, stolen=0) == ("X was slowed down by its temperature",)


def test_this_machine_is_watched() -> None:
    with Watch(gpu=False) as watch:
        watch.look()
        found = watch.finish()
    assert [sample.where for sample in found.during] == ["CPU"]
    assert 0 <= found.others <= 1


class FakeNvml:
    """As much of pynvml as is used, of GPUs with these names; a Jetson's NVML answers less than a server's."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self, *names: str, refuses: str = "") -> None:
        self.names, self.refuses = names, refuses

    def __getattr__(self, function: str) -> Callable[..., object]:
        answers: dict[str, Callable[..., object]] = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: len(self.names),
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda handle: self.names[handle].encode(),
            "nvmlDeviceGetClockInfo": lambda handle, kind: 1000 * handle + kind,
            "nvmlDeviceGetPowerUsage": lambda handle: 70_500 + handle,
            "nvmlDeviceGetTemperature": lambda handle, _: 40 + handle,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _: 0x4,
        }
        answer = answers[function]

        def call(*arguments: int) -> object:
            if function == self.refuses:
                raise self.NVMLError("Not Supported")
            return answer(*arguments)

        return call


def test_nvml_is_asked_for_the_gpu_that_cuda_calls_the_first() -> None:
    found = Nvml(FakeNvml("NVIDIA L4", "NVIDIA T4"), "NVIDIA T4").sample()
    assert found == Sample(
        where="NVIDIA T4",
        clock_mhz=1001,
        memory_clock_mhz=1002,
        power_w=70.501,
        temperature_c=41,
        throttled=("power limit",),
    )


def test_what_nvml_does_not_tell_is_none() -> None:
    found = Nvml(FakeNvml("NVIDIA L4", refuses="nvmlDeviceGetPowerUsage"), "NVIDIA L4").sample()
    assert found.power_w is None
    assert found.temperature_c == 40


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetName"])
def test_an_nvml_that_serves_no_gpu_is_told_and_no_crash(function: str) -> None:
    with pytest.raises(DependencyError, match="NVML does not support this GPU: Not Supported"):
        Nvml(FakeNvml("Orin", refuses=function), "Orin")
    with pytest.raises(DependencyError, match="NVML sees no GPU"):
        Nvml(FakeNvml(), "Orin")


@pytest.mark.gpu
def test_the_gpu_tells_its_clock_and_temperature() -> None:
    pytest.importorskip("pynvml", reason="needs skdeploy[plans]")
    if is_jetson():
        pytest.skip("a Jetson's clocks and temperatures are not NVML's to tell")
    with Watch(gpu=True) as watch:
        watch.look()
        found = watch.finish()
    gpu = [sample for sample in (*found.before, *found.during) if sample.where != "CPU"]
    assert gpu
    assert any(sample.clock_mhz for sample in gpu)
    assert any(sample.temperature_c for sample in gpu)
