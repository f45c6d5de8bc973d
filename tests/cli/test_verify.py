"""A bundle that is not what its export made is refused, and the export makes it good again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from skdeploy.core.files import digest_file
from tests.cli.conftest import Run, Snapshot
from tests.cli.edited import edited, edited_row, forged


def test_a_good_bundle_is_verified_against_torch_and_stays_as_it_was(
    run: Run, bundle: Path, images: Path, snapshot: Snapshot
) -> None:
    before = snapshot(bundle)
    result = run("verify", bundle, "--images", images)
    assert result.code == 0
    assert snapshot(bundle) == before


def test_an_altered_file_is_refused_with_both_digests_and_made_again_by_the_export(
    run: Run, again: list[object], bundle: Path, images: Path
) -> None:
    path = bundle / "model.fp16.onnx"
    recorded = digest_file(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    result = run("verify", bundle, "--images", images)
    assert result.code == 9
    assert str(path) in result.err
    assert recorded in result.err
    assert digest_file(path) in result.err
    repaired = run(*again, "-o", bundle, "--json")
    assert repaired.code == 0
    assert "model.fp16.onnx" in {row["path"] for row in repaired.json["artifacts"] if not row["reused"]}
    assert run("verify", bundle, "--images", images).code == 0


def test_missing_files_are_named_and_made_again_by_the_export(
    run: Run, again: list[object], bundle: Path, images: Path
) -> None:
    for name in ("parity.json", "model.onnx"):
        (bundle / name).unlink()
        result = run("verify", bundle, "--images", images)
        assert result.code == 9
        assert "is missing" in result.err
    assert f"{bundle / 'model.onnx'} is missing" in result.err
    assert run(*again, "-o", bundle).code == 0
    assert run("verify", bundle, "--images", images).code == 0


def test_a_manifest_with_a_path_that_leaves_the_folder_is_refused(run: Run, bundle: Path) -> None:
    shutil.copy(bundle / "model.onnx", bundle.parent / "model.onnx")  # were it followed, the digest would be right
    with edited_row(bundle, "model.onnx") as row:
        row["path"] = "../model.onnx"
    result = run("verify", bundle)
    assert result.code == 9
    assert "is not a path inside" in result.err


def test_a_link_that_leads_out_of_the_folder_is_refused(run: Run, bundle: Path) -> None:
    outside = bundle.parent / "outside.onnx"
    (bundle / "model.onnx").rename(outside)
    (bundle / "model.onnx").symlink_to(outside)
    result = run("verify", bundle)
    assert result.code == 9
    assert f"{bundle / 'model.onnx'} is a link that leads out of the bundle" in result.err


def test_an_export_replaces_a_link_that_leads_out_and_not_what_it_leads_to(
    run: Run, again: list[object], bundle: Path
) -> None:
    outside = bundle.parent / "outside.onnx"
    outside.write_text("mine")
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to(outside)
    assert run(*again, "-o", bundle).code == 0
    assert outside.read_text() == "mine"
    assert not (bundle / "model.onnx").is_symlink()


def test_a_bundle_from_a_later_version_is_refused(run: Run, bundle: Path) -> None:
    with edited(bundle) as content:
        content["schema"] = 3
    result = run("verify", bundle)
    assert result.code == 9
    assert "schema" in result.err


def test_a_moved_bundle_is_verified_where_it_is_by_its_own_weights(
    run: Run, bundle: Path, images: Path, weights: Path
) -> None:
    """Nothing beside the bundle is looked at: what the checkpoint was called is history."""
    with edited(bundle) as content:
        content["weights"]["file"] = "gone.safetensors"
    moved = bundle.rename(bundle.parent / "else where [1]")
    result = run("verify", moved, "--images", images)
    assert result.code == 0
    assert str(moved) in result.out
    assert "reference: torch float32" in result.out


def test_other_weights_with_their_digest_forged_fail_parity(run: Run, bundle: Path, images: Path) -> None:
    """The reference is really the bundle's weights: graphs that are not theirs are found out."""
    path = bundle / "weights.safetensors"
    state = load_file(path)
    state["classifier.weight"] = state["classifier.weight"] * 1.01
    save_file(state, path)
    forged(bundle, path.name)
    result = run("verify", bundle, "--images", images)
    assert result.code == 8
    assert "model.onnx on onnxruntime: max error" in result.err


def test_photographs_alone_are_no_other_suites(run: Run, bundle: Path, images: Path) -> None:
    assert run("verify", bundle, "--images", images, "--suite", "photographs", "--json").json["parity"]["suites"] == []


def test_blame_names_the_stage_of_a_bundle_that_fails_and_saves_the_smallest_graph(
    run: Run, bundle: Path, images: Path, tmp_path: Path
) -> None:
    path = bundle / "model.onnx"
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if t.name.endswith("stages.1.0.sk.branches.0.conv.weight"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name))
    onnx.save(model, path)
    forged(bundle, path.name)
    repro = tmp_path / "repro"
    result = run("verify", bundle, "--images", images, "--blame", "--save-repro", repro)
    assert result.code == 8
    assert "model.onnx is to blame" in result.err
    assert any(repro.rglob("*.onnx"))
