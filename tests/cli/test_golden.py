"""``--golden`` and ``--reference`` on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from skdeploy.checkpoints.load import load_network
from skdeploy.zoo.cards import read_card
from tests.cli.conftest import Run


@pytest.fixture
def golden(card: Path, weights: Path, tmp_path: Path) -> Path:
    """What torch computes from the weights, of inputs that no image makes."""
    spec = read_card(card)
    x = torch.from_numpy(np.random.default_rng(5).normal(0, 1, (3, *spec.input.shape)).astype(np.float32))
    np.savez(tmp_path / "golden.npz", x=x.numpy(), y=load_network(spec, weights)(x).numpy())
    return tmp_path / "golden.npz"


def test_an_export_and_a_check_are_against_the_file(run: Run, again: list[object], bundle: Path, golden: Path) -> None:
    for command in ((*again, "-o", bundle), ("verify", bundle)):
        content = run(*command, "--golden", golden, "--json").json
        assert content["parity"]["reference_kind"] == "golden"
        assert content["parity"]["images"] == 3
        assert content["verdict"]["text"].startswith("verified against golden.npz")


def test_a_file_that_disagrees_is_exit_code_8_with_its_figures(
    run: Run, again: list[object], bundle: Path, golden: Path
) -> None:
    with np.load(golden) as arrays:
        np.savez(golden, x=arrays["x"], y=arrays["y"] * 1.5)
    result = run("verify", bundle, "--golden", golden)
    assert result.code == 8
    assert "likely cause: the card" in result.err


def test_that_code_runs_is_said(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "authors_cli.py").write_text("def build(): raise RuntimeError('it ran')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    result = run("verify", bundle, "--reference", "authors_cli:build")
    assert result.code == 2
    assert "--reference authors_cli:build runs the code of that module here" in result.err
    assert "RuntimeError: it ran" in result.err
