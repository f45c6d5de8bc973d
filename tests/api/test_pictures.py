"""Images and masks as arrays from Python, and words for what a program may do wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

import skdeploy
from skdeploy.backends import onnxruntime
from skdeploy.core.errors import UsageError
from tests.cli.conftest import QUICK, Run
from tests.cli.conftest import run as run
from tests.networks import sk_unet
from tests.pairs import save_masks


@pytest.fixture
def bundle(run: Run, tmp_path: Path) -> skdeploy.Bundle:
    (tmp_path / "card.toml").write_text(sk_unet.CARD, encoding="utf-8")
    save_masks(tmp_path / "pairs", 3)
    words = ("tests.networks.class_maps:class_map", "--card", tmp_path / "card.toml", *QUICK)
    made = run("export", *words, "--images", tmp_path / "pairs/images", "-o", tmp_path / "bundle")
    assert made.code == 0, made.err
    return skdeploy.load_bundle(tmp_path / "bundle")


def test_masks_are_those_that_predict_writes(run: Run, bundle: skdeploy.Bundle, tmp_path: Path) -> None:
    files = sorted((tmp_path / "pairs/images").iterdir())
    found = bundle.pictures(files)
    assert run("predict", bundle.folder, *files, "-o", tmp_path / "masks").code == 0
    for file, mask in zip(files, found, strict=True):
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, np.asarray(Image.open(tmp_path / "masks" / file.name)))
    with pytest.raises(UsageError, match="has no classes to predict") as refused:
        bundle.predict(files)
    assert "pictures()" in refused.value.advice


def test_an_index_beyond_a_table_is_said_with_the_table(tmp_path: Path) -> None:
    table = helper.make_tensor("table", TensorProto.FLOAT, [10, 2], [0.0] * 20)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "tokens"], ["y"], name="embed")],
        "g",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 2])],
        [table],
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    )
    with onnxruntime.open_session(path) as session:
        session.run({"tokens": np.array([[0, 5, 9]])})
        with pytest.raises(
            UsageError, match=r"hold the number 12, but the node embed \(Gather\) looks it up in a table of 10"
        ) as said:
            session.run({"tokens": np.array([[0, 12, 9]])})
    assert said.value.advice.startswith("give whole numbers from 0 to 9")
