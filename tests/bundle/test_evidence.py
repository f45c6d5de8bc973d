"""Findings beside a bundle: kept whole, and believed only while they are about the bundle's own files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skdeploy.bundle.evidence import read_evidence, write_evidence
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.core.errors import IntegrityError
from skdeploy.core.spec import Frozen
from tests.bundle.recorded import produced
from tests.refused import refused
from tests.tiny import head


class Finding(Frozen):
    """Something measured."""

    number: int
    share: float = 0.5


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    produced(Bundle(tmp_path, head()), "first")
    return load_bundle(tmp_path)


@pytest.fixture
def path(bundle: Bundle) -> Path:
    """A finding."""
    return write_evidence(bundle, "accuracy", Finding(number=3), bundle.manifest.artifacts)


def test_what_was_written_is_read_again(bundle: Bundle, path: Path) -> None:
    assert path == bundle.folder / "evidence/accuracy.json"
    assert read_evidence(bundle, "accuracy", Finding) == Finding(number=3)
    assert read_evidence(bundle, "blame", Finding) is None


def test_a_finding_about_an_earlier_artifact_is_no_finding(bundle: Bundle, path: Path) -> None:
    produced(bundle, "second")
    assert read_evidence(bundle, "accuracy", Finding) is None


@pytest.mark.parametrize("damage", ["truncated", "other", "content", "nan"])
def test_a_damaged_finding_is_named(bundle: Bundle, path: Path, damage: str) -> None:
    whole = path.read_text()
    wrong = json.dumps(json.loads(whole) | {"content": {"number": "three"}})
    path.write_text(
        {"truncated": whole[:40], "other": "[]", "content": wrong, "nan": whole.replace("0.5", "1e999")}[damage]
    )
    with refused(IntegrityError, r"cannot read .*accuracy\.json"):
        read_evidence(bundle, "accuracy", Finding)


def test_a_link_out_of_the_bundle_is_not_followed(
    bundle: Bundle, path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "accuracy.json"
    path.rename(outside)
    path.symlink_to(outside)
    with refused(IntegrityError, "leads out of the bundle"):
        read_evidence(bundle, "accuracy", Finding)
