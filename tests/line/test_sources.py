"""What an export starts from besides a card: an ONNX file made elsewhere, and a module of the user's own."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.core.errors import IntegrityError, UsageError, WeightsError
from skdeploy.core.spec import Precision
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from skdeploy.line.sources import find_source
from skdeploy.line.verification import VerifyOptions, verify
from skdeploy.passes.trace_options import TraceOptions
from tests.conftest import FAST
from tests.graphs import (
    foreign,
)
from tests.notes import Notes
from tests.tiny import CARD


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (3, 40, 44, 3), dtype=np.uint8))
    return path


def options_for(model: object, images: Path, folder: Path) -> ExportOptions:
    return ExportOptions(
        str(model), Precision.FP16, output=folder / "bundle", images=images, target="onnx", image_size=None
    )


def artifact(bundle: Bundle, name: str) -> Artifact:
    found = bundle.artifact(name)
    assert found is not None
    return found


# ----- an ONNX file


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two naive selective kernel blocks of different ports, as plain torch.onnx exports them."""
    network = foreign.live(foreign.Classifier(foreign.SplitInput(), foreign.SeparateLayers()))
    return foreign.export(network, tmp_path_factory.mktemp("graph") / "theirs.onnx", shape=(3, 32, 32))


@pytest.fixture(scope="module")
def from_graph(graph: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportOptions, Notes]:
    """An export of the file, made. Do not change its bundle."""
    options, notes = options_for(graph, images, tmp_path_factory.mktemp("made")), Notes()
    assert export(options, notes).reused == frozenset()
    return options, notes


Made = tuple[ExportOptions, Notes]


def made_bundle(options: ExportOptions) -> Bundle:
    assert options.output is not None
    return load_bundle(options.output)


def test_a_graph_from_elsewhere_goes_through_the_line(from_graph: Made, graph: Path) -> None:
    bundle = made_bundle(from_graph[0])
    assert bundle.manifest.verdict == "verified"
    names = [artifact.path for artifact in bundle.manifest.artifacts]
    assert names[:4] == ["model.read.onnx", "model.traced.onnx", "model.onnx", "model.fp16.onnx"]
    selected = artifact(bundle, "model.traced.onnx").facts.dump()
    assert len(selected["rewritten"]) == 2  # type: ignore[arg-type]  # JSON: a list here
    assert selected["in_deploy_form"] == []
    assert bundle.manifest.model.name == "theirs"
    assert bundle.manifest.model.network.family == "onnx"
    assert bundle.manifest.weights.file == str(graph)


def test_what_was_read_and_found_is_said_and_recorded(from_graph: Made, graph: Path) -> None:
    options, notes = from_graph
    manifest = made_bundle(options).manifest
    for said in (notes.notes, (*manifest.notes, *map(str, manifest.assumptions))):
        assert f"{graph}: opset 18, input 'image', output 'scores'" in said
        assert any(
            "mean 0.485 0.456 0.406, std 0.229 0.224 0.225, RGB order (ImageNet's defaults)" in note for note in said
        )
        assert "selective kernel blocks: 2 rewritten to the deploy form, 0 already in it" in said


def test_the_files_digest_is_the_parent_of_what_was_read(from_graph: Made) -> None:
    bundle = made_bundle(from_graph[0])
    assert artifact(bundle, "model.read.onnx").provenance.parents == {"file": bundle.manifest.weights.sha256}


def test_a_bundle_from_a_graph_is_verified_against_the_graph_as_it_came(from_graph: Made, images: Path) -> None:
    notes = Notes()
    options = from_graph[0]
    assert options.output is not None
    report = verify(options.output, VerifyOptions(images), notes).report
    assert report.reference == "model.read.onnx on onnxruntime, the bundle's own first FP32 graph, not torch"
    assert report.verdict == "pass"
    assert any("compared with the bundle's own first graph" in note for note in notes.notes)


def test_a_second_export_reads_the_file_again_and_keeps_the_rest(from_graph: Made, tmp_path: Path) -> None:
    options, notes = from_graph
    assert options.output is not None
    copied = replace(options, output=Path(shutil.copytree(options.output, tmp_path / "bundle")))
    told = Notes()
    again = export(copied, told)
    assert {a.path for a in again.bundle.manifest.artifacts} - again.reused == {"model.read.onnx"}
    assert told.notes == notes.notes
    assert again.bundle.manifest.notes == made_bundle(options).manifest.notes


def test_a_graph_without_selective_kernels_is_deployed_as_it_is_and_said_to_be(images: Path, tmp_path: Path) -> None:
    plain = foreign.live(foreign.Classifier())
    path = foreign.export(plain, tmp_path / "plain.onnx", shape=(3, 32, 32))
    notes = Notes()
    made = export(options_for(path, images, tmp_path), notes)
    assert made.bundle.manifest.verdict == "verified"
    for said in (notes.notes, made.bundle.manifest.notes):
        assert "no selective kernel blocks found: the graph is deployed as it is" in said


def test_a_graph_of_a_fixed_batch_and_a_final_softmax_is_taken_and_said(images: Path, tmp_path: Path) -> None:
    network = foreign.live(foreign.Classifier(foreign.Sliced(), softmax=True))
    path = foreign.export(network, tmp_path / "fixed.onnx", shape=(3, 32, 32), batch=1)
    made = export(replace(options_for(path, images, tmp_path), precision=Precision.FP32))
    assert made.bundle.manifest.verdict == "verified"
    assert any("its outputs are probabilities, not logits" in note for note in made.bundle.manifest.notes)


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"weights": "x.pth"}, "--weights"),
        ({"seed": 1}, "--seed"),
        ({"image_size": (64, 64)}, "--imgsz"),
        ({"trace": TraceOptions(batch=1)}, "--batch"),
        ({"trace": TraceOptions(exporter="torchscript")}, "--exporter"),
        ({"trace": TraceOptions(opset=20)}, "--opset"),
        ({"trace": TraceOptions(dynamic_size=True)}, "--dynamic-size"),
        ({"trace": TraceOptions(attention=True)}, "--attention"),
        ({"trace": TraceOptions(embed_preprocess=True)}, "--embed-preprocess"),
    ],
)
def test_what_an_exported_graph_cannot_have_any_more_is_refused(
    change: dict[str, Any], option: str, graph: Path
) -> None:
    with pytest.raises(UsageError) as error:
        find_source(replace(ExportOptions(str(graph)), **change))
    assert f"{option} does not go with an ONNX file" in error.value.message
    assert error.value.exit_code == 2


def test_a_graph_that_is_not_there_or_broken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no ONNX file at"):
        find_source(ExportOptions(str(tmp_path / "gone.onnx")))
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(IntegrityError, match="cannot be read as ONNX"):
        find_source(ExportOptions(str(tmp_path / "text.onnx")))


# ----- a module of the user's own

CODE = """
import torch
from torch import nn
from tests.graphs import foreign

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = foreign.Classifier(foreign.Sliced())
    def forward(self, x):
        return self.model(x)

def build():
    return foreign.live(foreign.Classifier(foreign.Sliced()))

def untrained():
    return foreign.Classifier(foreign.Sliced())

def wrapped():
    return Wrapped()

def three_channels_of_seven():
    return nn.Sequential(nn.Conv2d(7, 3, 1))

def a_map():
    return nn.Conv2d(3, 3, 1)

class Pair(foreign.Classifier):
    def forward(self, x):
        return super().forward(x), x

def a_pair():
    return Pair()

class Small(foreign.Classifier):
    def forward(self, x):
        return super().forward(x.view(2, 3, 64, 64))

def of_64_pixels():
    return Small()

def a_string():
    return "a network, perhaps"

def raising():
    raise ZeroDivisionError("no luck today")

def wanting(depth):
    return None
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that lies where the user is, and is on no path. Gone afterwards."""
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package/__init__.py").touch()
    (tmp_path / "their_package/nets.py").write_text(CODE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield "their_package.nets"
    for name in [name for name in sys.modules if name.startswith("their_package")]:
        del sys.modules[name]


def options_of_module(factory: str, images: Path, folder: Path) -> ExportOptions:
    return replace(options_for(factory, images, folder), image_size=(32, 32))


def test_a_module_of_ones_own_goes_through_the_line(package: str, images: Path, tmp_path: Path) -> None:
    notes = Notes()
    options = options_of_module(f"{package}:build", images, tmp_path)
    made = export(options, notes)
    manifest = made.bundle.manifest
    assert manifest.verdict == "verified"
    assert made.parity.reference.startswith("torch float32")
    assert manifest.model.name == "nets-build"
    assert manifest.model.network.model_dump() == {
        "family": "module",
        "factory": f"{package}:build",
        "classes": 5,
        "total_stride": 1,
    }
    for said in (notes.notes, manifest.notes):
        assert f"{package}:build is your own code: it ran here, and `skdeploy verify` will not run it" in said
        assert "no weights given: the module's own, as it builds them with torch's seed 0" in said


def test_verify_does_not_run_the_users_code_and_says_what_it_compares_with(
    package: str, images: Path, tmp_path: Path
) -> None:
    export(replace(options_of_module(f"{package}:build", images, tmp_path), trace=FAST))
    (tmp_path / "their_package/nets.py").write_text("raise SystemExit('it ran')")
    for name in [name for name in sys.modules if name.startswith("their_package")]:
        del sys.modules[name]
    notes = Notes()
    report = verify(tmp_path / "bundle", VerifyOptions(images), notes).report
    assert report.reference == "model.read.onnx on onnxruntime, the bundle's own first FP32 graph, not torch"
    assert any("compared with the bundle's own first graph" in note for note in notes.notes)
    assert not any(name.startswith("their_package") for name in sys.modules)


def test_changed_code_is_seen(package: str, images: Path, tmp_path: Path) -> None:
    """Nothing tells whether code has changed, so it is traced each time."""
    options = replace(options_of_module(f"{package}:build", images, tmp_path), trace=FAST)
    first = export(options)
    again = export(options)
    assert "model.read.onnx" not in again.reused
    assert "parity.json" not in again.reused
    assert any("rewritten to the deploy form" in note for note in again.bundle.manifest.notes)
    assert first.bundle.manifest.weights == again.bundle.manifest.weights


def test_an_untrained_module_is_the_same_for_the_same_seed(package: str) -> None:
    options = ExportOptions(f"{package}:untrained", image_size=(32, 32))
    before = torch.random.get_rng_state()
    one, same, other = (find_source(replace(options, seed=seed)).record for seed in (1, 1, 2))
    assert one == same
    assert one.sha256 != other.sha256
    assert torch.equal(torch.random.get_rng_state(), before)  # a library leaves its caller's generator alone


@pytest.mark.parametrize("factory", ["untrained", "wrapped"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_for_the_module_are_loaded(factory: str, prefix: str, package: str, tmp_path: Path) -> None:
    """Also where the module calls its network ``model``, which in other checkpoints is a wrapper's name to be peeled."""
    trained = foreign.live(foreign.Classifier(foreign.Sliced())).state_dict()
    own = "model." if factory == "wrapped" else ""
    torch.save({f"{prefix}{own}{key}": tensor for key, tensor in trained.items()}, tmp_path / "mine.pth")
    source: Any = find_source(
        ExportOptions(f"{package}:{factory}", weights=str(tmp_path / "mine.pth"), image_size=(32, 32))
    )
    found = source.module.state_dict()
    assert all(torch.equal(found[own + key], tensor) for key, tensor in trained.items())
    assert source.record.source == "checkpoint"
    assert not any("no weights given" in note for note in source.notes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_module_that_are_not_finite_are_named(package: str, tmp_path: Path, value: float) -> None:
    trained = foreign.live(foreign.Classifier(foreign.Sliced())).state_dict()
    key = next(name for name in trained if name.endswith("weight"))
    trained[key].view(-1)[2] = value
    torch.save(trained, tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match=rf"mine\.pth: 1 of the [\d,]+ values of {key} are NaN or infinite"):
        find_source(ExportOptions(f"{package}:untrained", weights=str(tmp_path / "mine.pth"), image_size=(32, 32)))


def test_weights_that_are_not_the_modules_are_refused(package: str, tmp_path: Path) -> None:
    options = ExportOptions(f"{package}:untrained", weights=str(tmp_path / "x"), image_size=(32, 32))
    with pytest.raises(WeightsError, match="no weights at"):
        find_source(options)
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "x")
    with pytest.raises(WeightsError) as error:
        find_source(options)
    assert f"{tmp_path / 'x'} does not fit {package}:untrained" in error.value.message
    assert "conv.weight" in error.value.message


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("raising", "did not build a network: ZeroDivisionError: no luck today"),
        ("missing", "did not build a network: AttributeError"),
        ("wanting", "did not build a network: TypeError"),
        ("a_string", "returned a str, not a torch.nn.Module"),
        ("three_channels_of_seven", "does not run on 2 images"),
        ("of_64_pixels", "on 3 x 32 x 32: RuntimeError"),
    ],
)
def test_a_factory_that_builds_no_classifier_is_told(factory: str, words: str, package: str) -> None:
    with pytest.raises(UsageError) as error:
        find_source(ExportOptions(f"{package}:{factory}", image_size=(32, 32)))
    assert f"{package}:{factory}" in error.value.message
    assert words in error.value.message
    assert error.value.exit_code == 2


@pytest.mark.parametrize("factory", ["no_such_package.nets:build", "their_package.gone:build", ":build", "os:"])
def test_what_cannot_be_imported_is_told(factory: str, package: str) -> None:
    with pytest.raises(UsageError, match="did not build a network"):
        find_source(ExportOptions(factory))


# ----- the command line


def test_the_command_line_takes_both(
    graph: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from skdeploy.__main__ import main

    arguments = ["export", graph, "--target", "onnx", "--images", images, "-o", tmp_path / "bundle", "--json"]
    monkeypatch.setattr(sys, "argv", ["skdeploy", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    content = json.loads(capsys.readouterr().out)
    assert content["verdict"]["state"] == "verified"
    assert "selective kernel blocks: 2 rewritten to the deploy form, 0 already in it" in content["notes"]


def test_a_card_whose_path_has_a_colon_is_a_card(tmp_path: Path) -> None:
    path = tmp_path / "a:b.toml"
    shutil.copy(CARD, path)
    assert find_source(ExportOptions(str(path))).spec.name == "tiny"
