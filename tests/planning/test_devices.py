"""The table of devices: known figures of NVIDIA's, and the traps between them."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.spec import Precision
from skdeploy.planning.devices import TABLE, device_table, devices_named, parse_devices
from tests.refused import refused

MEMORY = 'memory_gb = { read = "a100" }'
TEXT = resources.files("skdeploy.planning").joinpath(TABLE).read_text(encoding="utf-8")
FIGURES = [(name, device, *each) for name, device in device_table().device.items() for each in device.evidence.items()]


def test_no_figure_is_the_sparse_one() -> None:
    """FP16's dense rate is half of INT8's on all of these (Turing to Blackwell): a figure taken with sparsity breaks that."""
    for name, device in device_table().device.items():
        assert device.int8_tops / device.fp16_tflops == pytest.approx(2, rel=0.02), name


@pytest.mark.parametrize(
    ("name", "sms", "int8_macs_a_clock", "gigahertz"),
    [
        # SMs, dense INT8 multiply-accumulates a clock and SM of the architecture, and boost clock, from the whitepapers.
        ("orin-nano", 8, 2048, 1.02),
        ("orin-nx", 8, 2048, 0.918),
        ("agx-orin", 16, 2048, 1.3),
        ("rtx-3060", 28, 1024, 1.777),
        ("rtx-4090", 128, 1024, 2.52),
        ("rtx-5090", 170, 1024, 2.407),
        ("a100", 108, 2048, 1.41),
        ("h100", 132, 4096, 1.83),
        ("t4", 40, 1024, 1.59),
        ("l4", 58, 1024, 2.04),
    ],
)
def test_int8_peaks_are_units_times_clock(name: str, sms: int, int8_macs_a_clock: int, gigahertz: float) -> None:
    peak = sms * int8_macs_a_clock * gigahertz * 1e9
    assert device_table().device[name].macs_a_second(Precision.INT8) == pytest.approx(peak, rel=0.03)


def test_every_source_is_used_and_that_of_a_device_is_one_of_its_figures() -> None:
    used = {(name, source) for name, _, _, evidence in FIGURES for source in evidence.sources}
    assert {source for _, source in used} == set(device_table().source)
    assert {(name, device.source) for name, device in device_table().device.items()} <= used


def test_whose_page_it_is_stands_in_the_title() -> None:
    for source in device_table().source.values():
        own = re.match(r"https://(\w+\.)*nvidia\.com/|https://github\.com/NVIDIA/", source.url)
        assert own or re.search(r"\(third party\)$|\(a copy\)$|a third party's notes", source.title), source.title


def test_figures_with_sparsity_were_halved() -> None:
    halved = 0
    for name, device, figure, evidence in FIGURES:
        if found := re.search(r"(?<![\d.])([\d.]+) (?:INT4 )?with sparsity, halved( twice)?$", evidence.how):
            factor = 4 if found[2] else 2
            assert getattr(device, figure) == pytest.approx(float(found[1]) / factor, rel=1e-3), (name, figure)
            halved += 1
    assert halved == 15


def test_what_is_derived_follows_from_its_formula() -> None:
    giga = {"GHz": 1.0, "MHz": 1e-3}
    seen = 0
    for name, device, figure, evidence in FIGURES:
        value = getattr(device, figure)
        if found := re.fullmatch(r"(\d+) cores x 2 x ([\d.]+) (GHz|MHz)", evidence.derived):
            # Half of a tenth: the table has one or two decimals.
            assert value == pytest.approx(int(found[1]) * 2 * float(found[2]) * giga[found[3]] / 1000, abs=0.05)
        elif evidence.derived == "half of INT8":
            assert value == pytest.approx(device.int8_tops / 2, rel=2e-3), name
        elif found := re.match(r"(\d+) of the module less (\d+) of its \w+, with sparsity, halved", evidence.derived):
            assert value == (int(found[1]) - int(found[2])) / 2
        else:
            continue
        seen += 1
    assert seen >= 20


def test_the_footnote_says_what_stands_on_no_page_as_it_is() -> None:
    table = device_table().device
    assert "FP32 derived: 1024 cores x 2 x 1.02 GHz" in table["orin-nano"].note
    assert "INT8 read: 67 with sparsity, halved" in table["orin-nano"].note
    assert table["a100"].note == "every figure stands on a page as it is here"
    text = TEXT.replace(MEMORY, 'memory_gb = { memory = "five stacks of 16" }')
    assert "GB from memory, no page found: five stacks of 16" in parse_devices(text).device["a100"].note


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (MEMORY, "", "memory_gb"),
        (MEMORY, "memory_gb = {}", "one of read, derived and memory"),
        (MEMORY, 'memory_gb = { read = "a100", memory = "x" }', "one of read, derived and memory"),
        (MEMORY, 'memory_gb = { memory = "x", how = "y" }', "how requires a figure that was read"),
        (MEMORY, 'memory_gb = { read = "a100", of = ["t4"] }', "requires a figure that is derived"),
        (MEMORY, 'memory_gb = { read = "blog" }', "the source 'blog' of a100 is not in the file"),
        ("[source.a100]", "[source.other]", "the source 'a100' of a100 is not in the file"),
        ("dla_cores = 1", "dla_cores = 0", "go together"),
        ("[source.a100]", "sparse_tops = 1.0\n[source.a100]", "sparse_tops"),
        ("[source.a100]", "[", "not a table of devices"),
    ],
)
def test_a_table_without_sound_evidence_is_refused(old: str, new: str, message: str) -> None:
    assert TEXT.count(old) == 1
    with refused(IntegrityError, message, "reinstall skdeploy"):
        parse_devices(TEXT.replace(old, new))


def test_only_orins_above_the_nano_have_a_dla() -> None:
    """The Nano has none (Orin datasheets), and DLA is not supported on Thor (TensorRT 11.4.1, Working with DLA)."""
    having = {name for name, device in device_table().device.items() if device.dla_cores}
    assert having == {"orin-nx", "orin-nx-super", "orin-nx-8gb", "agx-orin", "agx-orin-32gb"}


def test_all_is_the_whole_table_and_names_keep_their_order() -> None:
    assert devices_named(["all"]) == tuple(device_table().device)
    assert devices_named(["a100", "all"])[0] == "a100"


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["t4,l4"], ("t4", "l4")),
        (["t4, l4", "a100"], ("t4", "l4", "a100")),
        (["t4,t4", "t4"], ("t4",)),
        (["Orin Nano"], ("orin-nano",)),
        (["AGX_ORIN"], ("agx-orin",)),
    ],
)
def test_a_name_may_be_written_as_people_write_it(given: list[str], names: tuple[str, ...]) -> None:
    assert devices_named(given) == names


@pytest.mark.parametrize(
    ("given", "named", "advice"),
    [
        ("orin", "'orin'", "did you mean orin-nano, orin-nano-8gb-15w, orin-nano-4gb, orin-nano-4gb-10w, orin-nx,"),
        ("ornin-nano", "'ornin-nano'", "did you mean orin-nano, "),
        ("t4,tpu-v5", "'tpu-v5'", "known devices: orin-nano, "),
        ("t4,", "''", "known devices: orin-nano, "),
    ],
)
def test_an_unknown_name_lists_those_like_it_and_the_known(given: str, named: str, advice: str) -> None:
    with pytest.raises(UsageError, match=f"there is no device {named}") as error:
        devices_named([given])
    assert error.value.advice.startswith(advice)
    assert error.value.advice.endswith("h100")


def test_no_name_lists_the_known() -> None:
    with pytest.raises(UsageError, match="no device is given") as error:
        devices_named([])
    assert error.value.advice.startswith("known devices: orin-nano")
