"""``plan`` and ``bench`` of networks that take arrays: any size of a free dimension, by ``--size NAME=N``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.graphs.array_networks import Bands, Pair, Speaker

Folder = Callable[[type], Path]


def macs_of_speaker(frames: int, gates: int) -> int:
    """By hand: a stem of 20 channels, 4 frames wide and 4 apart, two branches of 3, the gates, and the last layer."""
    places = frames // 4
    return places * (8 * 20 * 4 + 2 * 8 * 8 * 3) + 8 * 6 + gates * 6 * 8 + 8 * 7


def test_the_work_grows_with_the_free_size_and_the_usual_one_is_the_default(run: Run, array_bundle: Folder) -> None:
    folder = array_bundle(Speaker)
    # The deploy form has one gate: a softmax over two branches is a sigmoid of their difference.
    for where, arguments, frames, gates in (
        (folder / "bundle", [], 40, 1),
        (folder / "bundle", ["--size", "frames=80"], 80, 1),
        (folder / "net.onnx", ["--size", "frames=80"], 80, 2),
    ):
        found = run("plan", where, "--device", "orin-nano", "--json", *arguments).json
        assert found["macs"] == macs_of_speaker(frames, gates)
        assert (found["sizes"], found["sample"]) == ({"frames": frames}, "sample")


def test_what_is_planned_is_called_samples(run: Run, array_bundle: Folder) -> None:
    out = run("plan", array_bundle(Pair) / "bundle", "--device", "orin-nano").out
    assert "multiply-accumulates per sample" in out
    assert "samples/s" in out
    assert "image" not in out.replace("estimate", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "frames=13"], "frames 13 is not a multiple of 4"),
        (["--size", "length=8"], "has no free dimension of that name"),
        (["--size", "frames"], "--size frames: this is not a size"),
        (["--size", "frames=8", "--size", "frames=4"], "--size frames is given twice"),
    ],
)
@pytest.mark.parametrize("verb", [["plan", "--device", "t4"], ["bench", "--seconds", "0.01"]], ids=["plan", "bench"])
def test_a_size_that_the_network_does_not_take_is_refused(
    run: Run, array_bundle: Folder, verb: list[str], arguments: list[str], said: str
) -> None:
    name, *options = verb
    refused = run(name, array_bundle(Speaker) / "bundle", *options, *arguments)
    assert refused.code == 2
    assert said in refused.err


def test_plan_names_the_option_that_is_missing(run: Run, array_bundle: Folder) -> None:
    folder = array_bundle(Speaker)
    assert "give --size frames=N" in run("plan", folder / "net.onnx", "--device", "t4").err
    assert "--imgsz is for images" in run("plan", folder / "bundle", "--device", "t4", "--imgsz", "8").err


def test_bench_times_the_size_and_records_it(run: Run, array_bundle: Folder) -> None:
    found = run(
        "bench", array_bundle(Speaker) / "bundle", "--seconds", "0.01", "--size", "frames=80", "--backend", "onnxruntime",
        "--json",
    ).json  # fmt: skip
    assert [each["latency"]["sizes"] for each in found["measured"]] == [{"frames": 80}]
    shown = run("bench", array_bundle(Bands) / "bundle", "--seconds", "0.01", "--backend", "onnxruntime")
    assert shown.code == 0, shown.err
    assert "samples/s" in shown.out
