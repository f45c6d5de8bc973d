"""One network goes through the whole line by what is registered from outside the package alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import skdeploy
from skdeploy.backends import onnxruntime
from skdeploy.bundle.folder import load_bundle
from skdeploy.bundle.receipts import read_receipts
from tests.cli.conftest import QUICK, Run
from tests.outside import toy_backend, toy_family, toy_precision
from tests.outside.register import NAMES

LAST = "model.coarse.max.onnx"


@pytest.mark.usefixtures("outside")
def test_a_network_of_another_family_goes_through_the_whole_line(run: Run, images: Path, tmp_path: Path) -> None:
    card, bundle = toy_family.write_card(tmp_path), tmp_path / "bundle"
    card.write_text('task = "bearings"\n' + card.read_text(encoding="utf-8"), encoding="utf-8")
    weights, network = toy_family.write_checkpoint(card)
    asked = ("--coarse", "--coarse-spare", "Gemm", "--relu", "max", "--images", images, "--output", bundle)
    done = run("export", card, "--weights", weights, *asked, *QUICK, "--json")
    assert done.code == 0, done.err

    made = load_bundle(bundle)
    assert isinstance(made.manifest.model.network, toy_family.ToySpec)  # no other family took it
    assert made.manifest.artifacts[0].facts.dump()["layout"] == "toy"
    assert [graph.precision for graph in made.graphs] == ["fp32", "fp32", "coarse", "coarse"]
    assert made.graphs[-2].facts_as(toy_precision.CoarseFacts).rounded > 0
    judged = {row["artifact"]: row["metrics"]["figures"]["degrees"] for row in done.json["parity"]["comparisons"]}
    assert judged["model.onnx"] < judged[LAST] < 2.0

    feed = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    with onnxruntime.open_session(bundle / "model.onnx") as session:
        logits = session.run({session.inputs[0].name: feed})["logits"]
    with torch.inference_mode():
        expected = network(torch.from_numpy(feed)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max() + 1e-6)  # float32 in another order

    proven = run("verify", bundle, "--images", images, "--backend", toy_backend.NAME, "--receipt")
    assert proven.code == 0, proven.err
    receipts = [receipt for receipt in read_receipts(load_bundle(bundle)) if receipt.backend == toy_backend.NAME]
    assert ("pass", LAST) in {(receipt.verdict, receipt.artifact) for receipt in receipts}

    sizes = run("list-sizes", bundle)
    assert sizes.code == 0, sizes.err
    assert f"{LAST} {made.graphs[-1].size_bytes}" in sizes.out.splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_no_file_of_the_package_knows_its_name(name: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in Path(skdeploy.__file__).parent.rglob("*.py")]
    assert not any(f'"{name}"' in text for text in texts)


def test_without_the_registries_nothing_of_it_is_known(run: Run, images: Path, tmp_path: Path) -> None:
    card = toy_family.write_card(tmp_path)
    assert "family: must be one of" in run("export", card, *QUICK).err
    for arguments in (("export", card, "--coarse"), ("list-sizes", tmp_path)):
        assert run(*arguments).code == 2
    assert "cannot run ONNX files" in run("verify", tmp_path, "--images", images, "--backend", toy_backend.NAME).err
