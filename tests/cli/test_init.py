"""``skdeploy init`` and ``--card``, as typed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.cli.conftest import Run
from tests.graphs import foreign


def test_a_card_is_written_given_back_and_never_replaced(run: Run, tmp_path: Path) -> None:
    graph = foreign.export(foreign.live(foreign.Classifier(foreign.Sliced())), tmp_path / "net.onnx", shape=(3, 32, 32))
    card = tmp_path / "net.toml"
    made = run("init", graph, "-o", card)
    assert made.code == 0, made.err
    assert f"--card {card}" in made.out
    before = card.read_bytes()
    again = run("init", graph, "-o", card)
    assert (again.code, card.read_bytes()) == (2, before)
    assert "already exists" in again.err

    # The author checked it: nothing is assumed any more.
    card.write_text(card.read_text(encoding="utf-8").partition("[assumed.")[0], encoding="utf-8")
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8))
    bundle = tmp_path / "bundle"
    common = ("--images", images, "--target", "onnx", "-o", bundle, "--json")
    done = run("export", graph, "--card", card, *common)
    assert done.code == 0, done.err
    assert "assumed" not in done.err
    assert "assumed: " in run("export", graph, *common).err
