"""The report's HTML: what it shows and refuses, and that nothing in it is anything but text."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import sys
from pathlib import Path

import pytest

from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.core.errors import DependencyError, IntegrityError, UsageError
from skdeploy.core.packages import install_command
from skdeploy.core.spec import Precision
from skdeploy.parity.pictures import LARGEST
from skdeploy.parity.report import Rebuild, RunToRun, SuiteResult
from skdeploy.parity.worst_image import SIDE
from skdeploy.quant.mixed import KeptUnit, MixedPrecision
from skdeploy.quant.truth import Drop
from skdeploy.report.blocks import MAX_ROWS, Cell, percent_text, sentence, visible
from skdeploy.report.findings import read_findings
from skdeploy.report.line import export_command
from skdeploy.report.page import render_report, write_report
from skdeploy.report.prose import prose
from tests.report.pages import Page, page
from tests.report.reported import (
    HOSTILE,
    add,
    attention,
    blame,
    evaluation,
    full_bundle,
    hostile_bundle,
    make_bundle,
    parity,
    sensitivity,
    write,
)

LIMIT_BYTES = 2_000_000


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with every finding. Not to be changed."""
    return full_bundle(tmp_path_factory.mktemp("full") / "b")


# What it shows


KEY_FIGURES = {
    "parity": ["31.2 dB", "2.1e-02", "0.987650", "63 of 64", "at least 10", "at most 0.3", "at least 0.95", "124.5 dB"],
    "accuracy": [
        "94.00 %",
        "93.60 %",
        "0.727",
        "+0.37",
        "-0.81 to +1.61",
        "budget 0.5",
        "470 of 500",
        "91.56 to 95.77",
    ],
    "blame": ["8.8 dB", "torch float64", "stages.29/Conv", "40.0 dB"],
    "int8": ["3 of 4", "1 (part of a gate)", "98.8 %", "41.8 dB", "36.5 dB", "1,234"],
    "headroom": ["912x", "stages.19/Conv", "2x"],
    "calibration": [
        "512 images from calibration.npz",
        "3 exact",
        "3 images the same as an earlier one",
        "6.25",
        "73.5 %",
    ],
    "attention": ["SK_1 (stages.1)", "FP16", "0.99870", "grows with the object in 2 of 2"],
    "provenance": ["tiny.safetensors", "a" * 64, "2026-01-02T03:04:05+00:00"],
    "line": ["model.int8.onnx", "INT8", "1.0 kB", "verified on onnxruntime"],
}


@pytest.mark.parametrize("section", KEY_FIGURES)
def test_the_figures_of_every_finding_are_on_the_page(full: Bundle, section: str) -> None:
    text = page(full).sections[section]
    assert [figure for figure in KEY_FIGURES[section] if figure not in text] == []


def test_digests_are_there_in_full(full: Bundle) -> None:
    text = page(full).sections["line"]
    assert [a.path for a in full.manifest.artifacts if a.sha256 not in text] == []


@pytest.mark.parametrize(
    ("section", "command"),
    [
        ("absent", "skdeploy evaluate"),
        ("absent", "--blame"),
        ("int8", "skdeploy sensitivity"),
        ("absent", "skdeploy attention"),
        ("absent", "skdeploy verify"),
        ("absent", "skdeploy bench"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path: Path, section: str, command: str) -> None:
    bundle = make_bundle(tmp_path / "a b")
    text = page(bundle).sections[section]
    assert command in text
    assert f"'{bundle.folder}'" in text  # quoted for a shell


@pytest.mark.parametrize("name", ["accuracy", "blame", "sensitivity", "attention"])
def test_evidence_of_other_artifacts_is_left_out_and_named_as_outdated(tmp_path: Path, name: str) -> None:
    bundle = full_bundle(tmp_path / "b")
    section = "int8" if name == "sensitivity" else name
    figure = {"accuracy": "94.00 %", "blame": "8.8 dB", "sensitivity": "41.8 dB", "attention": "0.99870"}[name]
    assert figure in page(bundle).sections[section]
    path = bundle.folder / f"evidence/{name}.json"
    evidence = json.loads(path.read_text())
    evidence["artifacts"]["model.int8.onnx"] = "f" * 64
    path.write_text(json.dumps(evidence))
    found = page(bundle).sections
    assert figure not in found[section]
    assert "Outdated" in found[section]
    assert f"Outdated {name}" in " ".join(found["verdict"].split())


def test_evidence_that_no_section_shows_is_named(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    add(bundle, weather=sensitivity())
    assert "weather.json" in page(bundle).sections["notes"]


def test_notes_are_shown(tmp_path: Path) -> None:
    assert "Mind the step." in page(make_bundle(tmp_path / "b", notes=("mind the step",))).sections["notes"]


def test_the_export_command_has_what_the_manifest_records(full: Bundle) -> None:
    command = export_command(read_findings(full))
    assert command is not None
    assert command.startswith("skdeploy export tiny --weights tiny.safetensors --int8 --ranges ")
    assert "--target onnx" in command


def test_long_tables_are_cut_and_say_what_has_the_rest(tmp_path: Path) -> None:
    text = page(make_bundle(tmp_path / "b", tensors=MAX_ROWS + 7)).sections["headroom"]
    assert "7 more rows are in headroom.json" in " ".join(text.split())


# What it refuses


@pytest.mark.parametrize("name", ["accuracy", "blame", "sensitivity", "attention"])
@pytest.mark.parametrize("damage", ["", "{}", "[1]", '{"schema": 1'])
def test_damaged_evidence_is_named(tmp_path: Path, name: str, damage: str) -> None:
    bundle = full_bundle(tmp_path / "b")
    (bundle.folder / f"evidence/{name}.json").write_text(damage)
    with pytest.raises(IntegrityError, match=f"{name}.json"):
        write_report(bundle)
    assert not (bundle.folder / "report.html").exists()


@pytest.mark.parametrize("artifact", ["model.onnx", "parity.json", "headroom.json", "ranges.json"])
def test_an_altered_artifact_is_named(tmp_path: Path, artifact: str) -> None:
    bundle = full_bundle(tmp_path / "b")
    with (bundle.folder / artifact).open("a") as file:
        file.write(" ")
    with pytest.raises(IntegrityError, match=artifact):
        render_report(load_bundle(bundle.folder))


@pytest.mark.parametrize("path", ["manifest.json", "model.onnx", "evidence/x.html", "receipts/x.html", "."])
def test_a_report_does_not_replace_a_part_of_its_bundle(tmp_path: Path, path: str) -> None:
    bundle = full_bundle(tmp_path / "b")
    with pytest.raises(UsageError):
        write_report(bundle, bundle.folder / path)
    bundle.check_all()


def test_without_jinja_the_extra_is_named(full: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(DependencyError) as caught:
        render_report(full)
    assert install_command("report") in caught.value.advice


def test_the_report_is_no_part_of_the_bundle(full: Bundle) -> None:
    before = full.manifest
    path = write_report(full)
    assert path == full.folder / "report.html"
    assert load_bundle(full.folder).manifest == before


# What it is made of


def test_names_are_text_wherever_they_come_from(tmp_path: Path, full: Bundle) -> None:
    html = render_report(hostile_bundle(tmp_path / "b"))
    found = Page(html)
    # three pictures of its own, which have a test below
    assert {tag for tag, _ in found.elements} == {tag for tag, _ in page(full).elements} | {"img"}
    assert len(found.blocks["script"]) == 1
    assert not [attributes for tag, attributes in found.elements if tag == "img" and attributes.get("src") == "x"]
    assert "49" not in found.sections["notes"]
    assert "<script>ran = 1</script>" in found.sections["notes"]


def test_no_invisible_character_of_a_name_gets_into_the_page(tmp_path: Path) -> None:
    html = render_report(hostile_bundle(tmp_path / "b"))
    assert "\u202e" not in html
    assert "\\u202egnp.exe" in html
    assert visible("a\u2066b\u200f\x00\n") == "a\\u2066b\\u200f\\u0000\\u000a"
    assert visible("größe 温度 — 5×5") == "größe 温度 — 5×5"  # noqa: RUF001 - such letters are the test


def test_nothing_is_loaded_and_nothing_but_our_own_script_and_style_may_run(full: Bundle) -> None:
    found = page(full)
    policy = next(
        a["content"] or ""
        for t, a in found.elements
        if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    for kind in ("style", "script"):
        (block,) = found.blocks[kind]
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == [f"'sha256-{digest}'"]
    assert rules["default-src"] == ["'none'"]
    for tag, attributes in found.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "xlink:href")]
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in found.blocks["style"][0]
    assert "@import" not in found.blocks["style"][0]


def test_pictures_are_files_in_the_page_and_their_names_are_text(tmp_path: Path) -> None:
    """The largest pictures, under names that mean to be markup."""
    bundle = hostile_bundle(tmp_path / "b")
    html = render_report(bundle)
    found = Page(html)
    shown = [attributes for tag, attributes in found.elements if tag == "img"]
    assert len(shown) == 3
    for attributes in shown:
        assert set(attributes) == {"class", "src", "width", "height", "alt"}
        assert re.fullmatch(r"data:image/png;base64,iVBORw0KGgo[A-Za-z0-9+/]*={0,2}", str(attributes["src"]))
        assert int(attributes["width"] or 0) <= SIDE
        assert HOSTILE.split("\n")[0] in str(attributes["alt"])
    assert sum(len(str(attributes["src"])) for attributes in shown) < 1.4 * LARGEST  # base64 is a third longer
    assert "img-src data:;" in html


def test_a_page_without_pictures_may_load_none(full: Bundle) -> None:
    assert "img-src" not in render_report(full)


def test_a_large_network_makes_a_small_page(tmp_path: Path) -> None:
    # SKNet-101 has 33 units; ImageNet 1,000 classes; a thousand tensors are more than any network here has
    bundle = make_bundle(tmp_path / "b", tensors=1000)
    add(
        bundle,
        accuracy=evaluation(bundle.manifest.model, classes=1000),
        blame=blame(layers=1000),
        sensitivity=sensitivity(200),
        attention=attention(33, 512),
    )
    path = write_report(bundle)
    assert path.stat().st_size < LIMIT_BYTES


def test_cells_sort_by_number_text_or_last() -> None:
    assert Cell("1.5 kB", 1500.0).key == "1500.0"
    assert Cell("x").key == "x"
    assert Cell("", math.nan).key == ""


def test_lines_of_the_terminal_become_sentences_and_names_stay_names() -> None:
    assert sentence("no stage is to blame") == "No stage is to blame."
    assert sentence("int8 agrees in 2") == "INT8 agrees in 2."
    assert sentence("model.onnx drops") == "model.onnx drops."


def test_prose_has_commands_as_code_keeps_options_whole_and_changes_no_letter() -> None:
    assert prose("`a --b` < c") == '<code>a <span class="w">--b</span></code> &lt; c'
    assert prose("one ` only") == "one ` only"
    assert prose("94.80 1,234 -0.5") == '94.80 1,234 <span class="w">-0.5</span>'  # figures are never broken
    assert prose("version_compatible") == "version_<wbr>compatible"
    path = "engines/tensorrt_rtx-int8.engine"
    assert prose(path).replace("<wbr>", "") == path
    assert prose(path).split("<wbr>") == ["engines/", "tensorrt_", "rtx-int8.", "engine"]


def test_the_unit_that_costs_most_has_the_longest_bar_and_half_the_error_is_half_as_long(full: Bundle) -> None:
    html = render_report(full)
    drawing = html.partition("What each unit alone costs")[2].partition("</svg></div>")[0]
    bars = [float(width) for width in re.findall(r'class="bar"[^>]*width="([\d.]+)"', drawing)]
    units = sensitivity().units
    assert bars == sorted(bars, reverse=True)
    ratio = 10 ** ((units[1].only_on.sqnr_db - units[0].only_on.sqnr_db) / 20)
    assert bars[0] / bars[1] == pytest.approx(ratio, rel=0.02)  # drawn to a tenth of a pixel


def test_units_kept_out_of_int8_are_shown_with_their_reasons(tmp_path: Path) -> None:
    kept = KeptUnit(
        unit="stages.3", pattern="^stages\\.3", reason="most noise of its MACs", sqnr_db=21.5, noise_share=0.625, macs=10,
        mac_share=0.0425, sqnr_before=20.0, drop_before=None,
    )  # fmt: skip
    mixed = MixedPrecision(
        model="tiny", dataset="eval", images=2000, max_drop=0.5, fp32_top1=0.95, top1=0.949,
        drop=Drop(images=2000, lost=5, gained=3), sqnr_db=35.0, int8_mac_share=0.95, keep=("^stages\\.3",), kept=(kept,),
        units=8, ranking_images=128, evaluations=4, probes=(),
    )  # fmt: skip
    bundle = make_bundle(tmp_path / "b")
    write(bundle, "mixed.json", mixed.model_dump_json(), {}, keep=[], units=1, evaluations=1)
    text = page(bundle).sections["int8"]
    for figure in (
        "0.10 points",
        "allowed 0.5",
        "1 of 8 units",
        "most noise of its MACs",
        "21.5 dB",
        "62.5 %",
        "4.2 %",
    ):
        assert figure in text, figure


def test_other_inputs_and_repeated_runs_and_builds_are_shown(tmp_path: Path) -> None:
    suite = SuiteResult(
        artifact="model.onnx", backend="onnxruntime", precision=Precision.FP32, suite="sizes", case="56x56", images=1,
        verdict="pass", error=3.2e-7, allowed=1e-4,
    )  # fmt: skip
    twice = RunToRun(
        artifact="model.onnx", backend="onnxruntime", images=8, values=4321, differing=17, max_rel_error=2.5e-7, tolerance=1e-4,
        verdict="pass",
    )  # fmt: skip
    again = Rebuild(
        artifact="model.plan", compiler="tensorrt_rtx", built_by="1.4", rebuilt_by="1.4", sha256="a" * 64,
        rebuilt_sha256="b" * 64, size_bytes=100, rebuilt_size_bytes=100, differing_bytes=23, seconds=1.0,
        reason="engines do not run here",
    )  # fmt: skip
    report = parity().model_copy(update={"suites": (suite,), "run_to_run": (twice,), "rebuilds": (again,)})
    text = page(make_bundle(tmp_path / "b", report=report)).sections["parity"]
    for figure in (
        "sizes 56x56",
        "3.2e-07",
        "17 of 4,321 values differ",
        "23 bytes differ",
        "not compared: engines do not run here",
    ):
        assert figure in text, figure


def test_only_all_is_called_a_hundred_per_cent() -> None:
    assert percent_text(1.0, 1) == "100.0 %"
    assert percent_text(0.99999, 1) == ">99.9 %"
    assert percent_text(0.999, 1) == "99.9 %"
