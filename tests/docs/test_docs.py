"""The documentation says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import skdeploy
from skdeploy import cli
from skdeploy.core import errors
from skdeploy.zoo.cards import list_cards

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs/reference"
VERBS = [name for name, verb in cli.VERBS.items() if not verb.hidden]


def test_generated_files_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/make_docs.py", "--check"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_stale_reference_is_noticed(tmp_path: Path) -> None:
    """The check above can fail: the same tool, on a copy of the tree whose reference was altered."""
    for name in ("tools/make_docs.py", "docs/reference/cli.md", "skdeploy/bundle/manifest.schema.json"):
        copy = tmp_path / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / name).read_text(encoding="utf-8")
        copy.write_text(text.replace("skdeploy export", "skdeploy exprot"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, tmp_path / "tools/make_docs.py", "--check"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode != 0
    assert "docs/reference/cli.md" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_reference(verb: str) -> None:
    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    assert f"| [`skdeploy {verb}`](#skdeploy-{verb}) |" in text
    assert f"## skdeploy {verb}\n" in text


def test_exit_codes_of_the_reference_are_those_of_the_errors() -> None:
    family = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.SkdeployError)]
    text = (REFERENCE / "exit-codes.md").read_text(encoding="utf-8")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert {error.exit_code for error in family} <= listed
    assert listed == {*range(11), 130}


def test_every_card_is_named_in_the_documentation_of_the_cards() -> None:
    text = (ROOT / "models/README.md").read_text(encoding="utf-8")
    for spec, _ in list_cards():
        assert spec.name in text


def test_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == skdeploy.__version__
    assert f"## [{skdeploy.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_public_names_are_all_importable() -> None:
    for name in skdeploy.__all__:
        assert getattr(skdeploy, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        skdeploy.exprot  # noqa: B018  (the access is the test)
