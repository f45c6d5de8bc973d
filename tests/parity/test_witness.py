"""An export whose artifacts are compared with what the author's own code computes."""

from __future__ import annotations

import copy
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from skdeploy.bundle.folder import load_bundle
from skdeploy.checkpoints.convert import convert
from skdeploy.core.errors import ParityError, UsageError, WeightsError
from skdeploy.core.spec import Precision
from skdeploy.line.accuracy_options import AccuracyOptions
from skdeploy.line.export import Export, export, run_line
from skdeploy.line.options import ExportOptions
from skdeploy.line.verification import VerifyOptions, verify
from skdeploy.passes.trace_options import TraceOptions
from tests.checkpoints.cifar_network import trained

NETWORK = trained()
SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the author has: a checkpoint and a golden file; and what convert makes of the checkpoint, with a corrected card."""
    folder = tmp_path_factory.mktemp("author")
    torch.save(NETWORK.state_dict(), folder / "cifar.pth")
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(0, 1, (6, 3, SIZE, SIZE)).astype(np.float32))
    np.savez(folder / "golden.npz", input=x.numpy(), logits=NETWORK(x).numpy())
    np.savez(folder / "images.npz", images=random.integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8))
    convert(str(folder / "cifar.pth"), folder / "net.safetensors")
    text = (folder / "net.toml").read_text(encoding="utf-8")
    assert "stride = 2\nmax_pool = true" in text
    right = text.replace("stride = 2\nmax_pool = true", "stride = 1\nmax_pool = false")
    (folder / "right.toml").write_text(right, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, ExportOptions]:
    """The options of an export without a proof: from the card that convert wrote, and from the corrected one."""
    plain = ExportOptions(model="", target="onnx", images=folder / "images.npz", image_size=(SIZE, SIZE))
    found = {
        name: replace(plain, model=str(folder / f"{name}.toml"), output=folder / f"bundle-{name}")
        for name in ("net", "right")
    }
    for options in found.values():
        export(options)
    return found


def folder_of(options: ExportOptions) -> Path:
    assert options.output is not None
    return options.output


def copied(options: ExportOptions, output: Path) -> ExportOptions:
    """The same export into a copy of its bundle: only parity is measured anew."""
    return replace(options, output=Path(shutil.copytree(folder_of(options), output)))


@pytest.fixture
def wrong(made: dict[str, ExportOptions], tmp_path: Path) -> ExportOptions:
    return copied(made["net"], tmp_path / "bundle")


@pytest.fixture
def right(made: dict[str, ExportOptions], tmp_path: Path) -> ExportOptions:
    return copied(made["right"], tmp_path / "right")


@pytest.fixture
def unmade(made: dict[str, ExportOptions], tmp_path: Path) -> ExportOptions:
    return replace(made["net"], output=tmp_path / "unmade")


@pytest.fixture
def code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of the author's on the path: as trained, without weights, and with another stride."""
    (tmp_path / "authors.py").write_text(
        f"""
import sys
import warnings
import torch
from tests.checkpoints.cifar_network import CifarNetwork

def bare():
    return CifarNetwork()

def whole(*stride):
    network = CifarNetwork(*stride)
    network.load_state_dict(torch.load({str(folder / "cifar.pth")!r}, weights_only=True))
    return network

def other():
    return whole(2)

def leaves():
    sys.exit(2)

class Tired(CifarNetwork):
    calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("tired")
        return super().forward(x)

def tired():
    return Tired()

def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(whole())

def wider():
    network = CifarNetwork()
    network.classifier = torch.nn.Linear(24, 6)
    return network
""",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("authors", None)


def texts(done: Export) -> list[str]:
    return [a.text for a in done.bundle.manifest.assumptions]


# ----- golden files


def test_without_a_proof_the_wrong_network_passes_but_says_what_it_assumes(wrong: ExportOptions) -> None:
    done = export(wrong)
    assert done.parity.reference_kind == "torch"
    assert "stride 2 stem and 3x3 max pool" in texts(done)
    assert "stride 2 stem and 3x3 max pool" in done.verdict.text


def test_the_authors_outputs_refuse_the_wrong_network_and_name_the_cause(wrong: ExportOptions, folder: Path) -> None:
    with pytest.raises(ParityError) as error:
        export(replace(wrong, golden=folder / "golden.npz"))
    assert error.value.exit_code == 8
    message = error.value.message
    assert "golden.npz, outputs saved by the author's code" in message
    assert re.search(r"of the largest logit in input\[\d\], allowed 1e-04", message)
    assert "likely cause: assumed: stride 2 stem and 3x3 max pool" in error.value.advice
    assert "A card cannot describe other activations or another eps" in error.value.advice
    assert "in a card" in error.value.advice
    assert load_bundle(folder_of(wrong)).manifest.verdict == "failed"


def test_the_authors_outputs_settle_what_was_assumed_of_the_right_network(right: ExportOptions, folder: Path) -> None:
    given = replace(right, golden=folder / "golden.npz")
    before = texts(export(replace(given, golden=None)))
    assert "branch dilations 1, 2" in before  # still assumed: the person has corrected stem and pool alone
    done = export(given)
    assert done.parity.reference_kind == "golden"
    assert [c.verdict for c in done.parity.comparisons] == ["pass", "pass"]
    # Some twenty float32 layers summed in another order
    assert all(c.metrics and c.metrics.max_rel_error < 1e-5 for c in done.parity.comparisons)
    assert done.parity.images == 6
    assert all(a.about == "preprocessing" for a in done.bundle.manifest.assumptions)
    assert done.verdict.text.startswith("verified against golden.npz, outputs saved by the author's code")
    assert "stride" not in done.verdict.text

    again = export(given)
    assert "parity.json" in again.reused
    assert again.bundle.manifest.assumptions == done.bundle.manifest.assumptions
    assert again.bundle.manifest.model.assumed.architecture is None


def test_another_golden_file_is_another_proof(right: ExportOptions, folder: Path, tmp_path: Path) -> None:
    given = replace(right, golden=folder / "golden.npz")
    export(given)
    with np.load(folder / "golden.npz") as arrays:
        np.savez(tmp_path / "spoilt.npz", input=arrays["input"], logits=arrays["logits"][::-1])
    with pytest.raises(ParityError, match="spoilt"):
        export(replace(given, golden=tmp_path / "spoilt.npz"))


def test_half_precision_has_its_own_limit(right: ExportOptions, folder: Path) -> None:
    done = export(replace(right, golden=folder / "golden.npz", precision=Precision.FP16))
    errors = {c.precision: c.metrics.max_rel_error for c in done.parity.comparisons if c.metrics}
    assert errors[Precision.FP32] < 1e-5 < errors[Precision.FP16] < 1e-2


def test_images_prove_the_preprocessing_too(right: ExportOptions, folder: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(3).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.2])
    x = torch.from_numpy(((images / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2).copy())
    np.savez(tmp_path / "raw.npz", images=images, input=x.numpy(), logits=NETWORK(x).numpy())
    text = (folder / "right.toml").read_text(encoding="utf-8").replace("resize = 256", "resize = 224")
    given = replace(
        right, golden=tmp_path / "raw.npz", model=str(tmp_path / "card.toml"), weights=str(folder / "net.safetensors")
    )

    (tmp_path / "card.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ParityError, match="likely cause: preprocessing: the inputs made from the images differ"):
        export(given)

    given_values = ("0.485", "0.456", "0.406", "0.229", "0.224", "0.225")
    for old, new in zip(given_values, (*mean, *std), strict=True):
        text = text.replace(old, str(new), 1)
    (tmp_path / "card.toml").write_text(text, encoding="utf-8")
    assert texts(export(given)) == []


def test_a_budget_needs_no_confirmation_where_the_golden_file_proves_the_preprocessing(
    made: dict[str, ExportOptions], folder: Path, tmp_path: Path
) -> None:
    with np.load(folder / "golden.npz") as arrays:
        images = np.random.default_rng(1).integers(0, 256, (len(arrays["input"]), SIZE, SIZE, 3), dtype=np.uint8)
        np.savez(tmp_path / "raw.npz", images=images, **arrays)
    (tmp_path / "broken.npz").write_bytes(b"no images")
    graph = made["right"].output
    assert graph is not None
    asked = AccuracyOptions(data=tmp_path / "broken.npz", max_drop=0.5)
    given = replace(
        made["right"], model=str(graph / "model.onnx"), output=tmp_path / "made", image_size=None, images=None,
        precision=Precision.FP16, accuracy=asked,
    )  # fmt: skip
    for golden in (None, folder / "golden.npz"):
        with pytest.raises(UsageError, match="accuracy needs confirmed preprocessing"):
            run_line(replace(given, golden=golden))
    with pytest.raises(UsageError, match=r"broken\.npz"):  # the next thing that is wrong
        run_line(replace(given, golden=tmp_path / "raw.npz"))


def test_probabilities_in_place_of_logits_are_told(right: ExportOptions, folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "golden.npz") as arrays:
        x, y = arrays["input"], torch.from_numpy(arrays["logits"]).softmax(1).numpy()
    np.savez(tmp_path / "p.npz", input=x, logits=y)
    with pytest.raises(ParityError, match="the saved outputs are probabilities"):
        export(replace(right, golden=tmp_path / "p.npz"))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("training", "training mode when the outputs were saved: call model.eval()"),
        ("half", "the saved logits are FP16"),
    ],
)
def test_how_outputs_should_not_be_saved_is_told(
    how: str, words: str, right: ExportOptions, folder: Path, tmp_path: Path
) -> None:
    with np.load(folder / "golden.npz") as arrays:
        x, y = arrays["input"], arrays["logits"]
    with torch.no_grad():
        trained = copy.deepcopy(NETWORK).train()(torch.from_numpy(x)).numpy()
    np.savez(tmp_path / "y.npz", input=x, logits=trained if how == "training" else y.astype(np.float16))
    with pytest.raises(ParityError) as error:
        export(replace(right, golden=tmp_path / "y.npz"))
    assert words in error.value.advice


def test_a_file_of_another_size_is_told_before_anything_is_written(unmade: ExportOptions, folder: Path) -> None:
    with pytest.raises(UsageError, match="inputs of 3 x 32 x 32"):
        export(replace(unmade, image_size=None, golden=folder / "golden.npz"))
    assert not folder_of(unmade).exists()


def test_inputs_after_preprocessing_do_not_fit_a_graph_that_takes_images(unmade: ExportOptions, folder: Path) -> None:
    given = replace(unmade, golden=folder / "golden.npz", trace=TraceOptions(embed_preprocess=True))
    with pytest.raises(UsageError, match="--embed-preprocess puts that into the graph"):
        export(given)
    assert not folder_of(unmade).exists()


def test_a_bundle_is_compared_later_and_stays_as_it_is(
    right: ExportOptions, wrong: ExportOptions, folder: Path
) -> None:
    options = VerifyOptions(folder / "images.npz", golden=folder / "golden.npz")
    manifest = (folder_of(right) / "manifest.json").read_bytes()
    verification = verify(folder_of(right), options)
    verification.check()
    assert verification.verdict.text.startswith("verified against golden.npz")
    assert (folder_of(right) / "manifest.json").read_bytes() == manifest
    failed = verify(folder_of(wrong), options)
    with pytest.raises(ParityError, match="likely cause: assumed: stride 2 stem"):
        failed.check()


# ----- the author's own code


@pytest.mark.parametrize(("function", "weights"), [("whole", False), ("bare", True), ("scripted", False)])
def test_the_authors_code_settles_the_architecture(
    function: str, weights: bool, code: None, right: ExportOptions, folder: Path
) -> None:
    """Either it brings its weights, or the checkpoint that the export is given is loaded into it."""
    given = replace(
        right,
        reference=f"authors:{function}",
        weights=str(folder / "cifar.pth") if weights else None,
    )
    done = export(given)
    assert done.parity.reference_kind == "author"
    assert done.verdict.text.startswith(f"verified against authors:{function}, the author's own code")
    assert {a.about for a in done.bundle.manifest.assumptions} == {"preprocessing"}
    again = export(given)
    assert "parity.json" not in again.reused  # nothing tells whether the code has changed


@pytest.mark.parametrize("function", ["other", "bare"])
def test_code_of_another_network_or_without_its_weights_fails(
    function: str, code: None, right: ExportOptions, folder: Path
) -> None:
    done = run_line(replace(right, reference=f"authors:{function}"))
    with pytest.raises(ParityError, match="likely cause"):
        done.check()
    assert done.bundle.manifest.assumptions  # nothing is settled by what disagrees


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("authors", "names no function"),
        ("authors:nothing", "did not build a network"),
        ("nowhere:build", "did not build a network"),
        ("authors:leaves", r"its code ended with sys.exit\(2\)"),
        ("authors:wider", "gives 6 classes"),
    ],
)
def test_what_cannot_be_the_reference_is_told(
    reference: str, words: str, code: None, unmade: ExportOptions, folder: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        export(replace(unmade, reference=reference))
    assert not folder_of(unmade).exists()


def test_weights_that_do_not_fit_the_code_are_refused(code: None, wrong: ExportOptions, folder: Path) -> None:
    with pytest.raises(WeightsError, match="does not fit authors:wider"):
        export(replace(wrong, reference="authors:wider", weights=str(folder / "cifar.pth")))


def test_code_that_fails_later_is_named(code: None, right: ExportOptions) -> None:
    with pytest.raises(
        UsageError, match=r"authors:tired fails on images of shape \(3, 3, 32, 32\): RuntimeError: tired"
    ):
        export(replace(right, reference="authors:tired"))


def test_two_proofs_at_once_are_refused(code: None, wrong: ExportOptions, folder: Path) -> None:
    with pytest.raises(UsageError, match="--reference and --golden"):
        export(replace(wrong, reference="authors:whole", golden=folder / "golden.npz"))


def test_verify_runs_the_authors_code_when_it_is_asked_to(code: None, right: ExportOptions, folder: Path) -> None:
    export(replace(right, weights=str(folder / "cifar.pth")))
    verification = verify(folder_of(right), VerifyOptions(folder / "images.npz", reference="authors:bare"))
    verification.check()
    assert verification.report.reference_kind == "author"
