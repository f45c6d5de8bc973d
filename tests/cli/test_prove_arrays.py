"""Proofs of networks that take arrays: ``--golden``, ``--reference`` and ``--blame``, and that each of them can fail."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from skdeploy.core.files import digest_file
from tests.cli.conftest import Run
from tests.graphs import array_networks as networks
from tests.graphs.array_networks import Bands, Pair, Speaker

Folder = Callable[[type], Path]


def save_golden(kind: Any, path: Path, frames: int = 0, **changes: Any) -> Path:
    """What the author's training code would save: inputs and torch's outputs by name, of other samples than the bundle saw."""
    rows = [networks.sample(kind, 100 + index) for index in range(4)]
    feeds = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    if frames:
        feeds = {name: np.resize(array, (*array.shape[:-1], frames)) for name, array in feeds.items()}
    made = networks.trained(kind)(*(torch.from_numpy(array) for array in feeds.values())).numpy()
    np.savez(path, **{**feeds, "out" if kind is Pair else "logits": made, **changes})
    return path


@pytest.mark.parametrize(("kind", "frames"), [(Pair, 0), (Bands, 0), (Speaker, 60)])
def test_saved_inputs_and_outputs_by_name_prove_the_bundle(
    run: Run, array_bundle: Folder, tmp_path: Path, kind: Any, frames: int
) -> None:
    golden = save_golden(kind, tmp_path / "golden.npz", frames)
    done = run("verify", array_bundle(kind) / "bundle", "--golden", golden, "--json")
    assert done.code == 0, done.err
    assert done.json["parity"]["reference"] == "golden.npz, outputs saved by the author's code"
    assert {one["verdict"] for one in done.json["parity"]["comparisons"]} == {"pass"}


def test_outputs_of_other_inputs_fail(run: Run, array_bundle: Folder, tmp_path: Path) -> None:
    before = networks.sample(Pair, 100)["before"]
    golden = save_golden(Pair, tmp_path / "golden.npz", before=np.stack([before] * 4))
    done = run("verify", array_bundle(Pair) / "bundle", "--golden", golden)
    assert done.code == 8
    assert "samples[" in done.err + done.out


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (Pair, {"step": np.zeros((4, 2))}, "step is float64, but int64 is needed"),
        (Pair, {"step": np.zeros((3, 2), np.int64)}, "4 of before, 4 of after, 3 of step"),
        (Pair, {"out": np.zeros((3, 3, 12, 12), np.float32)}, "4 samples but 3 rows of out"),
        (Pair, {"out": np.full((4, 3, 12, 12), np.nan)}, "values of out are NaN"),
        (Pair, {"before": np.full((4, 3, 12, 12), np.inf)}, "values of before are NaN or infinite"),
        (Speaker, {"features": np.zeros((4, 20, 42), np.float32)}, "frames 42 is not a multiple of 4"),
        (Bands, {"logits": np.zeros((4, 3), np.float32)}, "logits of 3 classes, but bands has 5"),
    ],
)
def test_a_golden_file_that_does_not_fit_is_refused(
    run: Run, array_bundle: Folder, tmp_path: Path, kind: Any, changes: dict[str, Any], said: str
) -> None:
    refused = run(
        "verify", array_bundle(kind) / "bundle", "--golden", save_golden(kind, tmp_path / "golden.npz", **changes)
    )
    assert refused.code == 2
    assert said in refused.err


def test_a_golden_file_without_an_output_says_how_to_save_it(run: Run, array_bundle: Folder, tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", **networks.sample(Pair, 0))  # type: ignore[arg-type]  # numpy's stub of savez
    refused = run("verify", array_bundle(Pair) / "bundle", "--golden", tmp_path / "golden.npz")
    assert "no array named 'out'" in refused.err
    assert "np.savez(file, before=..., after=..., step=..., out=...)" in refused.err


def test_the_authors_module_is_a_reference_and_another_one_fails(run: Run, array_bundle: Folder) -> None:
    folder = array_bundle(Pair)
    own = f"{networks.__name__}:pair"
    done = run("verify", folder / "bundle", "--images", folder / "samples", "--reference", own, "--json")
    assert done.code == 0, done.err
    assert done.json["parity"]["reference"] == f"{own}, the author's own code"
    other = run("verify", folder / "bundle", "--images", folder / "samples", "--reference", f"{__name__}:other")
    assert other.code == 8
    wrong = run("verify", folder / "bundle", "--reference", f"{networks.__name__}:bands")
    assert wrong.code == 2
    assert "does not run on before (2, 3, 12, 12), after (2, 3, 12, 12), step (2, 2)" in wrong.err


def other() -> Any:
    return networks.trained(Pair, seed=1)


def spoil(bundle: Path, graph: str, constant: str) -> str:
    """Doubles a constant of a graph, as a broken tool would: file and digest agree. Returns the node that reads it."""
    model = onnx.load(bundle / graph)
    kept = next(each for each in model.graph.initializer if each.name == constant)
    kept.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kept) * 2, constant))
    onnx.save(model, bundle / graph)
    text = (bundle / "manifest.json").read_text(encoding="utf-8")
    manifest = json.loads(text)
    old = next(each["sha256"] for each in manifest["artifacts"] if each["path"] == graph)
    text = text.replace(old, digest_file(bundle / graph))
    (bundle / "manifest.json").write_text(text, encoding="utf-8")
    return next(node.name for node in model.graph.node if constant in node.input)


@pytest.mark.parametrize("kind", [Pair, Speaker])
def test_blame_finds_the_node_and_saves_the_smallest_graph(
    run: Run, array_bundle: Folder, tmp_path: Path, kind: Any
) -> None:
    folder = array_bundle(kind)
    bundle = Path(shutil.copytree(folder / "bundle", tmp_path / "bundle"))
    model = onnx.load(bundle / "model.fp16.onnx")
    convolution = next(node for node in model.graph.node if node.op_type == "Conv" and "branches.1" in node.name)
    spoil(bundle, "model.fp16.onnx", convolution.input[1])
    done = run("verify", bundle, "--images", folder / "samples", "--blame", "--save-repro", tmp_path / "repro")
    assert done.code == 8
    evidence = json.loads((bundle / "evidence/blame.json").read_text(encoding="utf-8"))
    found = evidence.get("content", evidence)
    assert found["guilty"] == "model.fp16.onnx"
    assert found["tensor"]["node"] == convolution.name
    assert (tmp_path / "repro/repro.onnx").is_file()


def test_blame_of_a_sound_bundle_blames_nobody(run: Run, array_bundle: Folder, tmp_path: Path) -> None:
    folder = array_bundle(Pair)
    bundle = Path(shutil.copytree(folder / "bundle", tmp_path / "bundle"))
    done = run("verify", bundle, "--images", folder / "samples", "--blame")
    assert done.code == 0, done.err
    assert "1 sample of samples" in done.err


def test_an_engine_has_a_profile_for_every_input(run: Run, array_bundle: Folder, tmp_path: Path) -> None:
    profiles = {}
    for kind in (Pair, Speaker):
        bundle = Path(shutil.copytree(array_bundle(kind) / "bundle", tmp_path / kind.__name__))
        built = run("build", bundle, "--target", "tensorrt_rtx", "--max-batch", "4", "--opt-batch", "2")
        assert built.code == 0, built.err
        profiles |= run("inspect", bundle / "engines/tensorrt_rtx-fp16.engine", "--json").json["profile"]
    assert profiles["step"] == [[1, 2], [2, 2], [4, 2]]
    assert profiles["after"] == [[1, 3, 12, 12], [2, 3, 12, 12], [4, 3, 12, 12]]
    assert profiles["features"] == [[1, 20, 20], [2, 20, 40], [4, 20, 100]]  # of the card


def test_samples_are_not_called_images(run: Run, array_bundle: Folder, tmp_path: Path) -> None:
    folder = array_bundle(Pair)
    bundle = Path(shutil.copytree(folder / "bundle", tmp_path / "bundle"))
    for verb in (
        ["verify", bundle, "--images", folder / "samples", "--suite", "all"],
        ["inspect", bundle],
        ["predict", bundle, folder / "samples"],
    ):
        shown = run(*verb)
        assert shown.code == 0, shown.err
        said = (shown.out + shown.err).replace("--images", "")
        assert not re.findall(r".*\bimages?\b.*", said)
