"""Which compiler takes which option, decided from names and versions alone."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from skdeploy import engines
from skdeploy.core.errors import EngineError, UsageError
from skdeploy.core.spec import Precision
from skdeploy.engines.options import OPTIONS, BatchProfile, BuildOptions, require_supported, version_numbers

PROFILE, ONE = BatchProfile(1, 8, 32), BatchProfile(8, 8, 8)
ONLY_TENSORRT: list[dict[str, Any]] = [
    {"tactic_bytes": 1 << 30},
    {"optimization_level": 5},
    {"timing_cache": Path("cache.bin")},
    {"version_compatible": True},
    {"hardware_compatible": "ampere+"},
    {"hardware_compatible": "same-cc"},
    {"strip": True},
    {"dla_core": 0},
]
RTX, NEW = ("tensorrt_rtx", "1.7.1.116"), ("tensorrt", "11.4.1.3")


def options(**given: Any) -> BuildOptions:
    return BuildOptions(**{"profile": ONE if "dla_core" in given else PROFILE, **given})


def supported(compiler: tuple[str, str], asked: BuildOptions, **machine: Any) -> None:
    on = {"on_jetson": False, "gpu": "8.7", "precision": Precision.FP16} | machine
    require_supported(*compiler, asked, **on)


@pytest.mark.parametrize("given", ONLY_TENSORRT, ids=str)
def test_what_only_tensorrt_takes_is_refused_by_rtx_with_the_version_that_takes_it(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"TensorRT-RTX 1\.7\.1\.116 does not take --") as refusal:
        supported(RTX, options(**given))
    assert "--target tensorrt, which takes it from 1" in refusal.value.advice
    supported(NEW, options(**given))


def test_what_only_rtx_takes_is_refused_by_tensorrt() -> None:
    asked = options(compute_capabilities=("8.9",))
    with pytest.raises(UsageError, match=r"TensorRT 11\.4\.1\.3 does not take --compute-capability") as refusal:
        supported(NEW, asked)
    assert "--target tensorrt_rtx" in refusal.value.advice
    supported(RTX, asked)


@pytest.mark.parametrize("compiler", [RTX, NEW, ("tensorrt", "10.0.1")])
def test_what_every_compiler_takes(compiler: tuple[str, str]) -> None:
    supported(compiler, options(workspace_bytes=1 << 30, more_profiles=(BatchProfile(64, 64, 64),)))


@pytest.mark.parametrize(
    ("given", "too_old", "old_enough"),
    [({"hardware_compatible": "same-cc"}, "10.8.0.43", "10.9.0.34"), ({"dla_core": 0}, "11.4.0.106", "11.4.1")],
)
def test_too_old_a_tensorrt_is_told_which_one_takes_it(given: dict[str, Any], too_old: str, old_enough: str) -> None:
    with pytest.raises(UsageError, match=f"TensorRT {too_old} does not take --") as refusal:
        supported(("tensorrt", too_old), options(**given))
    assert f"install TensorRT {'.'.join(old_enough.split('.')[:2])}" in refusal.value.advice
    supported(("tensorrt", old_enough), options(**given))


def test_versions_are_compared_as_numbers() -> None:
    """As text, 10.13 comes before 10.9."""
    supported(("tensorrt", "10.13.3.9"), options(hardware_compatible="same-cc"))
    assert version_numbers("10.13.0.35") == (10, 13, 0, 35)
    assert version_numbers("11.0.0rc1") == (11, 0)
    with pytest.raises(EngineError, match="'unknown'"):
        version_numbers("unknown")


@pytest.mark.parametrize(
    ("given", "machine", "words"),
    [
        ({"hardware_compatible": "ampere+"}, {"on_jetson": True}, "not supported on Jetson"),
        ({"hardware_compatible": "ampere+"}, {"gpu": "7.5"}, "this one has 7.5"),
        ({"hardware_compatible": "same-cc"}, {"gpu": "7.0"}, "this one has 7.0"),
        ({"dla_core": 0}, {"precision": Precision.FP32}, "FP16 and INT8, but the graph is FP32"),
    ],
)
def test_what_the_machine_or_the_graph_rules_out_is_refused(
    given: dict[str, Any], machine: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        supported(NEW, options(**given), **machine)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 4), (1, 8, 4), (-1, -1, -1), (1, 8, 2**31)])
def test_profile_out_of_order_or_beyond_what_a_dimension_counts_is_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match=r"1 <= min <= opt <= max|TensorRT takes batches up to 2147483647"):
        BatchProfile(*sizes)
    assert BatchProfile(1, 8, 2**31 - 1).max == 2**31 - 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workspace_bytes": 0}, "workspace of 0 bytes is too small"),
        ({"workspace_bytes": -1}, "workspace of -1 bytes is too small"),
        ({"tactic_bytes": 0}, "tactic memory of 0 bytes is too small"),
        ({"tactic_bytes": 4096}, "too small to try out any kernel"),
        ({"optimization_level": -1}, "from 0, the fastest build, to 5"),
        ({"optimization_level": 6}, "from 0, the fastest build, to 5"),
        ({"optimization_level": 0, "timing_cache": Path("c")}, "TensorRT ignores the timing cache"),
        ({"more_profiles": (PROFILE,)}, "is given twice"),
        ({"dla_core": -1}, "must be at least 0"),
        ({"dla_fallback": True}, "requires --dla-core"),
        ({"compute_capabilities": ("8.9", "8.9")}, "is given twice"),
        ({"sizes": ((8, 16), (16, 8), (32, 32))}, "in height and in width"),
        ({"profile": PROFILE, "dla_core": 0}, "only static shapes"),
        ({"more_profiles": (BatchProfile(4, 4, 4),), "dla_core": 0}, "only static shapes"),
        ({"sizes": ((8, 8), (16, 16), (32, 32)), "dla_core": 0}, "only static shapes"),
    ],
)
def test_what_no_compiler_could_do_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options(**given)


def test_every_option_reaches_the_key_of_the_stage() -> None:
    """Another option that were left out of the manifest would be taken for up to date."""
    plain = BuildOptions(ONE).record()
    changed: dict[str, Any] = {
        "profile": BatchProfile(4, 4, 4),
        "workspace_bytes": 1 << 30,
        "compute_capabilities": ("8.9",),
        "sizes": ((8, 8), (16, 16), (32, 32)),
        "dimensions": (("frames", (8, 16, 32)),),
        "more_profiles": (PROFILE,),
        "tactic_bytes": 1 << 30,
        "optimization_level": 4,
        "timing_cache": Path("cache.bin"),
        "version_compatible": True,
        "hardware_compatible": "ampere+",
        "strip": True,
        "dla_core": 1,
    }
    for name, value in changed.items():
        assert BuildOptions(**({"profile": ONE} | {name: value})).record() != plain, name
    with_core = BuildOptions(ONE, dla_core=1)
    assert BuildOptions(ONE, dla_core=1, dla_fallback=True).record() != with_core.record()
    assert {field.name for field in fields(BuildOptions)} == {*changed, "dla_fallback"}
    assert "cache.bin" not in str(BuildOptions(ONE, timing_cache=Path("cache.bin")).record())


def test_the_table_names_the_options_as_the_command_line_does() -> None:
    import typer.main

    from skdeploy.cli import app

    build = typer.main.get_command(app).commands["build"]  # type: ignore[attr-defined]  # a group has commands
    known = {flag for parameter in build.params for flag in parameter.opts}
    assert {flag.split()[0] for flag in OPTIONS.values()} <= known


@pytest.mark.parametrize("name", engines.COMPILERS)
def test_a_compiler_takes_an_option_or_says_why_not(name: str) -> None:
    facts = engines.compiler(name)
    assert {*facts.TAKES, *facts.LACKS} == set(OPTIONS)
