"""The station that rewrites for hardware: what a second export keeps, makes again and removes, and who reads what it made."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skdeploy.backends.onnxruntime import int8_kernels_refused, load_graph
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import load_bundle
from skdeploy.bundle.runners import last_graph
from skdeploy.bundle.station_facts import Int8Facts, PoolFacts
from skdeploy.core.options import StationOptions
from skdeploy.core.spec import Precision
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from skdeploy.line.stations.average_pool import PoolOptions
from skdeploy.line.stations.regroup import RegroupOptions
from skdeploy.report.findings import read_findings
from skdeploy.report.line import export_command, line_section
from skdeploy.report.verdict import key_figures
from tests.blame.faulty import bundle_of
from tests.conftest import FAST
from tests.tiny import CARD

REWRITTEN = "model.fp16.regrouped.pooled.onnx"
BOTH = {"regroup": RegroupOptions(regroup=2), "average pool": PoolOptions(gap="average-pool")}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> ExportOptions:
    """The options of an export that was rewritten. Do not change its bundle: take ``options``."""
    folder = tmp_path_factory.mktemp("rewritten")
    np.savez(folder / "images.npz", images=np.random.default_rng(0).integers(0, 256, (4, 40, 44, 3), dtype=np.uint8))
    options = ExportOptions(
        model=str(CARD),
        precision=Precision.FP16,
        output=folder / "bundle",
        trace=FAST,
        target="onnx",
        images=folder / "images.npz",
        rewrites=BOTH,
    )
    assert export(options).reused == frozenset()
    return options


@pytest.fixture
def options(first: ExportOptions, tmp_path: Path) -> ExportOptions:
    """The same options for a copy of the bundle."""
    assert first.output is not None
    return replace(first, output=Path(shutil.copytree(first.output, tmp_path / "bundle")))


def rewritten(options: ExportOptions) -> Artifact:
    assert options.output is not None
    found = load_bundle(options.output).artifact(REWRITTEN)
    assert found is not None
    return found


def test_the_same_options_make_nothing_anew_and_say_the_same(options: ExportOptions) -> None:
    before = rewritten(options)
    again = export(options)
    assert again.reused == {artifact.path for artifact in again.bundle.manifest.artifacts}
    assert rewritten(options) == before
    assert any(note.startswith("regrouped: 4 convolutions, each with 2x") for note in again.bundle.manifest.notes)


@pytest.mark.parametrize(
    ("rewrites", "new"),
    [
        (BOTH | {"regroup": RegroupOptions(regroup=1)}, {"model.fp16.regrouped.onnx", REWRITTEN}),
        ({"average pool": BOTH["average pool"]}, {"model.fp16.pooled.onnx"}),
        ({"regroup": BOTH["regroup"]}, set()),
    ],
)
def test_other_options_make_this_graph_anew_and_none_before_it(
    options: ExportOptions, rewrites: dict[str, StationOptions], new: set[str]
) -> None:
    again = export(replace(options, rewrites=rewrites))
    made = {artifact.path for artifact in again.bundle.manifest.artifacts} - again.reused
    assert made == {*new, "parity.json"}
    assert again.bundle.manifest.verdict == "verified"


def test_without_the_options_the_rewritten_graph_is_gone_and_the_lowered_one_is_the_last(
    options: ExportOptions,
) -> None:
    assert options.output is not None
    again = export(replace(options, rewrites={}))
    assert not (options.output / REWRITTEN).exists()
    assert again.bundle.artifact(REWRITTEN) is None
    assert last_graph(again.bundle).artifact.path == "model.fp16.onnx"
    assert "model.fp16.onnx" in again.reused
    assert not [note for note in again.bundle.manifest.notes if "regrouped" in note or "average pool" in note]


def test_the_rewritten_graph_is_the_one_that_is_deployed(first: ExportOptions) -> None:
    assert first.output is not None
    bundle = load_bundle(first.output)
    graph = last_graph(bundle).artifact
    assert (graph.path, graph.precision) == (REWRITTEN, Precision.FP16)
    operators = {node.op_type for node in load_graph(bundle.check(graph)).graph}
    assert "AveragePool" in operators
    assert not operators & {"ReduceMean", "GlobalAveragePool"}


def test_pools_beside_fp16_are_said_to_stay_with_the_gpu_and_in_fp32_are_not(options: ExportOptions) -> None:
    # The gate has a mean a branch, and the classifier one.
    said = "the pools of 5 means stay FP32 for the accuracy of the gates; a DLA leaves them to the GPU"
    assert options.output is not None
    assert said in load_bundle(options.output).manifest.notes
    notes = export(replace(options, precision=Precision.FP32)).bundle.manifest.notes
    # The maps are 16 and 8 pixels: two pools for each of the first, one for the last.
    assert "average pools: replace 5 means over the map, 8x8 then 2x2, 8x8" in notes
    assert not [note for note in notes if "DLA" in note]


def test_a_map_whose_size_has_no_small_factors_is_said_to_be_too_large_for_a_dla(options: ExportOptions) -> None:
    odd = replace(
        options, precision=Precision.FP32, rewrites={"average pool": BOTH["average pool"]}, image_size=(44, 44)
    )  # maps of 22 and 11 pixels
    notes = export(odd).bundle.manifest.notes
    assert "average pools: replace 5 means over the map, 22x22, 11x11; a DLA has none above 8" in notes


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("regroup", "average pool"), "--regroup 2 --gap average-pool"),
        (("regroup",), "--regroup 2"),
        (("average pool",), "--gap average-pool"),
        ((), ""),
    ],
)
def test_the_report_gives_the_command_that_rewrites_alike(
    options: ExportOptions, names: tuple[str, ...], words: str
) -> None:
    if len(names) < 2:
        export(replace(options, rewrites={name: BOTH[name] for name in names}))
    assert options.output is not None
    found = read_findings(load_bundle(options.output))
    command = export_command(found) or ""
    assert words in command
    assert ("--regroup" in command, "--gap" in command) == ("--regroup" in words, "--gap" in words)
    assert ("average pools" in str(line_section(found))) == ("average pool" in names)


def test_a_rewritten_int8_graph_is_timed_as_the_one_it_was_made_from() -> None:
    bundle = load_bundle(bundle_of(Precision.INT8, half=True, rewritten=True))
    before, after = (bundle.artifact(f"model.int8{name}.onnx") for name in ("", ".regrouped.pooled"))
    assert before is not None
    one, other = (int8_kernels_refused(load_graph(bundle.path(artifact))) for artifact in (before, after))
    assert one == other != ""
    assert after.facts_as(PoolFacts).fallback is Precision.FP16


def test_the_report_of_a_rewritten_int8_graph_has_its_share_of_the_work() -> None:
    bundle = load_bundle(bundle_of(Precision.INT8, half=True, rewritten=True))
    graph = bundle.artifact("model.int8.onnx")
    figures = {figure.label: figure for figure in key_figures(read_findings(bundle))}
    share = graph.facts_as(Int8Facts).int8_macs
    assert float(figures["INT8"].value.rstrip(" %")) == pytest.approx(100 * share, abs=0.05)  # shown with one decimal
    assert figures["Size"].note.startswith("model.int8.regrouped.pooled.onnx")
