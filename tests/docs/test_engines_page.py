"""docs/reference/engines.md says what was measured, of every card as it is now, or is not made."""

from __future__ import annotations

import copy
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine_builds import AT_MOST_S, card_digest, cards, kept, result

ROOT = Path(__file__).resolve().parents[2]
CIRCUMSTANCES = {"versions": {"tensorrt-rtx-cu13": "1.2.3"}, "profile": [1, 8, 32], "builds": 3, "images": 4}
MACHINE = {"cores": 2, "processor": "a processor", "memory_gib": 7.5, "system": "Linux", "date": "2026-01-02"}


def measured_card(name: str) -> dict[str, Any]:
    engine = {
        "seconds": 1.25,
        "plan_bytes": 3 << 20,
        "activation_memory_bytes": None,
        "weights_memory_bytes": 1 << 20,
        "layers": 321,
        "share_of_macs": {"int8": 0.9998, "fp16": 0.0002},
        "unproven": [],
    }
    engines = {precision: dict(engine) for precision in ("fp32", "fp16", "int8")}
    if name == "sknet50":
        engines["fp16"]["fresh_process_seconds"] = [2.0, 2.5]
    return {"card": card_digest(cards()[name]), "weights": "random", "engines": engines}


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    """Figures of no measurement, for every card."""
    return {name: measured_card(name) for name in cards()}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tools").mkdir()
    (tmp_path / "skdeploy" / "bundle").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "make_docs.py", tmp_path / "tools")
    return tmp_path


def write(tree: Path, found: dict[str, dict[str, Any]]) -> Path:
    path = tree / "benchmarks" / "results" / "engine_builds.json"
    path.write_text(json.dumps({"machine": MACHINE, "engine_builds": result(found, CIRCUMSTANCES)}), encoding="utf-8")
    return path


def make_docs(tree: Path, *arguments: str) -> str:
    """What the tool of this tree ends with: nothing, or what is wrong. It makes this page alone; tests/docs/test_docs.py runs
    all of it, as a program.
    """
    tool = runpy.run_path(str(tree / "tools" / "make_docs.py"))
    main, generated = tool["main"], tool["GENERATED"]
    for name in set(generated) - {"docs/reference/engines.md", "skdeploy/bundle/manifest.schema.json"}:
        del generated[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["make_docs.py", *arguments])
        try:
            main()
        except SystemExit as end:
            return str(end)
    return ""


def test_without_a_measurement_it_says_what_to_run_and_makes_the_other_pages(tree: Path) -> None:
    said = make_docs(tree)
    assert "docs/reference/engines.md cannot be made: benchmarks/results/engine_builds.json is not there" in said
    assert "benchmarks/run.py engine_builds" in said
    assert (tree / "skdeploy" / "bundle" / "manifest.schema.json").exists()
    assert not (tree / "docs/reference/engines.md").exists()


def test_cards_that_are_absent_or_have_changed_since_are_named(tree: Path, measured: dict[str, dict[str, Any]]) -> None:
    found = copy.deepcopy(measured)
    del found["sknet26"]
    found["sknet101"]["card"] = "of another network"
    found["sknet-gone"] = measured["sknet152"]
    write(tree, found)
    assert "as they are now: sknet101, sknet26, sknet-gone; run" in make_docs(tree, "--check")


def test_the_page_has_every_engine_marks_those_above_the_limit_and_is_checked(
    tree: Path, measured: dict[str, dict[str, Any]]
) -> None:
    found = copy.deepcopy(measured)
    found["sknet152"]["engines"]["int8"]["seconds"] = AT_MOST_S + 0.01
    found["sknet-fashion"]["weights"] = "card"
    write(tree, found)
    assert make_docs(tree) == ""
    page = tree / "docs/reference/engines.md"
    text = page.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split(" | ")[:2] for row in rows] == [
        [f"| `{name}`", precision] for name in sorted(cards()) for precision in ("fp32", "fp16", "int8")
    ]
    assert [row for row in rows if "above" in row] == [
        "| `sknet152` | int8 | 4.01 **above** | 3.0 | 1.0 | not told | 321 | int8 99.98 %, fp16 0.02 % |"
    ]
    prose = " ".join(text.split())
    assert "these are above it, and marked: sknet152 int8" in prose
    assert "sknet50 fp16 takes 1.25 s**, and at most 2.50 s in a process of its own" in prose
    assert "random, from seed 0, but for `sknet-fashion`" in prose
    assert make_docs(tree, "--check") == ""
    page.write_text(text.replace("4.01", "3.99"), encoding="utf-8")
    assert "out of date: docs/reference/engines.md" in make_docs(tree, "--check")


def test_a_slow_judged_build_is_not_within_the_limit(measured: dict[str, dict[str, Any]]) -> None:
    assert result(measured, {})["judged"]["reached"]
    for key, value in {"seconds": AT_MOST_S + 0.01, "fresh_process_seconds": [1.0, AT_MOST_S + 0.01]}.items():
        slow = copy.deepcopy(measured)
        slow["sknet50"]["engines"]["fp16"][key] = value
        assert not result(slow, {})["judged"]["reached"]


def test_a_card_is_measured_again_when_it_or_the_circumstances_changed(
    tree: Path, measured: dict[str, dict[str, Any]]
) -> None:
    found = copy.deepcopy(measured)
    found["sknet26"]["card"] = "of another network"
    path = write(tree, found)
    specs = cards()
    assert set(kept(path, specs, CIRCUMSTANCES)) == set(specs) - {"sknet26"}
    assert kept(path, specs, {**CIRCUMSTANCES, "code": "newer"}) == {}
    assert kept(tree / "absent.json", specs, CIRCUMSTANCES) == {}
