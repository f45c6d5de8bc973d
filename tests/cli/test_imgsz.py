"""``--imgsz``: one number for both sides, or height x width; in a file of options a number too."""

from __future__ import annotations

from pathlib import Path

import pytest

from skdeploy.bundle.folder import load_bundle
from skdeploy.cli.arguments import image_size
from skdeploy.core.errors import UsageError
from tests import tiny
from tests.cli.conftest import QUICK, Run


@pytest.mark.parametrize(
    ("text", "size"), [(None, None), ("160", (160, 160)), ("480x640", (480, 640)), ("64X32", (64, 32))]
)
def test_a_side_or_both(text: str | None, size: tuple[int, int] | None) -> None:
    assert image_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "12q", "1x2x3", "64x", "x64", "6.5", "0", "-32", "0x32", "32x-1", "1" * 30])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--imgsz"):
        image_size(text)


def test_a_network_is_exported_at_a_size_that_is_not_square(run: Run, tmp_path: Path) -> None:
    done = run("export", tiny.CARD, *QUICK, "--imgsz", "32x64", "-o", tmp_path / "b")
    assert done.code == 0, done.err
    bundle = load_bundle(tmp_path / "b")
    assert (bundle.manifest.model.input.height, bundle.manifest.model.input.width) == (32, 64)
    assert bundle.manifest.artifacts[-2].inputs[0].shape == ("batch", 3, 32, 64)


@pytest.mark.parametrize("written", ["64", '"32x64"'])
def test_a_file_of_options_may_give_a_number(
    run: Run, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("skdeploy.toml").write_text(f"[export]\nimgsz = {written}\n", encoding="utf-8")
    done = run("export", tiny.CARD, *QUICK, "-o", "b")
    assert done.code == 0, done.err
    assert load_bundle(Path("b")).manifest.model.input.width == 64
