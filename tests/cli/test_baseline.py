"""``skdeploy evaluate`` against a committed baseline, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.cli.conftest import Run


def test_the_same_bundle_is_as_good_as_its_baseline(run: Run, bundle: Path, evaluation: Path, tmp_path: Path) -> None:
    baseline, junit = tmp_path / "baseline.json", tmp_path / "evaluate.xml"
    assert run("evaluate", bundle, "--data", evaluation, "--save-baseline", baseline).code == 0
    result = run("evaluate", bundle, "--data", evaluation, "--baseline", baseline, "--junit", junit)
    assert result.code == 0, result.err
    cases = [
        case for case in ET.parse(junit).getroot().iter("testcase") if case.get("classname") == "skdeploy.baseline"
    ]
    assert len(cases) == 2
    assert run("evaluate", bundle, "--data", evaluation, "--baseline", baseline, "--json").json["decision"] == "pass"


def test_a_drop_below_the_baseline_fails_with_the_code_of_accuracy(
    run: Run, bundle: Path, evaluation: Path, tmp_path: Path
) -> None:
    baseline = tmp_path / "baseline.json"
    assert run("evaluate", bundle, "--data", evaluation, "--save-baseline", baseline).code == 0
    content = json.loads(baseline.read_text(encoding="utf-8"))
    content["artifacts"][1]["correct"] += 1  # it had one more right: 2.5 points of 40 images
    baseline.write_text(json.dumps(content), encoding="utf-8")
    result = run("evaluate", bundle, "--data", evaluation, "--baseline", baseline)
    assert result.code == 10
    assert "beyond the budget of 0.2" in result.err
    assert run("evaluate", bundle, "--data", evaluation, "--baseline", baseline, "--baseline-drop", "3").code == 0
