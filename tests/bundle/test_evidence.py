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
from tests.tiny import head


class Finding(Frozen):
    """Something measured."""

    number: int


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    produced(Bundle(tmp_path, head()), "first")
    return load_bundle(tmp_path)


def test_what_was_written_is_read_again(bundle: Bundle) -> None:
    path = write_evidence(bundle, "accuracy", Finding(number=3), bundle.manifest.artifacts)
    assert path == bundle.folder / "evidence/accuracy.json"
    assert read_evidence(bundle, "accuracy", Finding) == Finding(number=3)
    assert read_evidence(bundle, "blame", Finding) is None


def test_a_finding_about_an_earlier_artifact_is_no_finding(bundle: Bundle) -> None:
    write_evidence(bundle, "accuracy", Finding(number=3), bundle.manifest.artifacts)
    produced(bundle, "second")
    assert read_evidence(bundle, "accuracy", Finding) is None


@pytest.mark.parametrize("damage", ["truncated", "other", "content"])
def test_a_damaged_finding_is_named(bundle: Bundle, damage: str) -> None:
    path = write_evidence(bundle, "accuracy", Finding(number=3), bundle.manifest.artifacts)
    content = json.loads(path.read_text())
    if damage == "truncated":
        path.write_text(path.read_text()[:40])
    elif damage == "other":
        path.write_text("[]")
    else:
        content["content"] = {"number": "three"}
        path.write_text(json.dumps(content))
    with pytest.raises(IntegrityError, match=r"accuracy\.json cannot be read"):
        read_evidence(bundle, "accuracy", Finding)


def test_a_link_out_of_the_bundle_is_not_followed(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write_evidence(bundle, "accuracy", Finding(number=3), bundle.manifest.artifacts)
    outside = tmp_path_factory.mktemp("outside") / "accuracy.json"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(IntegrityError, match="leaves the bundle"):
        read_evidence(bundle, "accuracy", Finding)
