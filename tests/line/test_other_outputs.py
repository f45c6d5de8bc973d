"""Networks whose outputs are no logits: any number, of any rank, under their own names, from the source to the proof."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from skdeploy.bundle.artifact import Artifact
from skdeploy.core.errors import CardError, ParityError, UsageError
from skdeploy.core.spec import Precision
from skdeploy.line.export import Export, export, run_line
from skdeploy.line.options import ExportOptions
from skdeploy.line.sources import ModuleSource, find_source
from skdeploy.parity.report import ParityReport
from skdeploy.passes.trace_options import TraceOptions
from tests import tiny

SIZE = (16, 24)  # not square: height and width must not be swapped


class Pyramid(nn.Module):
    """Two maps and a vector, under the names that ``wrap`` gives them."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 3, padding=1, stride=2)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        high = torch.relu(self.conv(x))
        low = self.down(high)
        return self.wrap(high, low, low.mean((2, 3)))


def named() -> nn.Module:
    return Pyramid(lambda high, low, mean: {"high": high, "low": low, "mean": mean, "none": None})


def nested() -> nn.Module:
    return Pyramid(lambda high, low, mean: ((high, low), mean, low.argmax(1)))


def one_map() -> nn.Module:
    return Pyramid(lambda high, low, mean: low)


def no_batch() -> nn.Module:
    return Pyramid(lambda high, low, mean: low.mean((0, 2, 3)))


def text() -> nn.Module:
    return Pyramid(lambda high, low, mean: "a label")


def exported(factory: str, folder: Path, **options: Any) -> Export:
    images = folder / "images"
    tiny.save(images, "a.png", "b.png", "c.png")
    judge = options.pop("judge", export)
    done: Export = judge(
        ExportOptions(
            f"{__name__}:{factory}" if ":" not in factory and not factory.endswith(".onnx") else factory,
            **{"image_size": SIZE, "trace": TraceOptions(exporter="torchscript"), **options},
            target="onnx",
            images=images,
            output=folder / "bundle",
        )
    )
    return done


def graph_of(done: Export, name: str) -> onnx.ModelProto:
    return onnx.load(done.bundle.folder / name)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_mapping_names_the_outputs_and_each_is_compared(exporter: Any, tmp_path: Path) -> None:
    done = exported("named", tmp_path, precision=Precision.FP16, trace=TraceOptions(exporter=exporter))
    assert [str(output) for output in done.bundle.manifest.model.outputs] == [
        "high: float32[batch, 4, 16, 24]",
        "low: float32[batch, 6, 8, 12]",
        "mean: float32[batch, 6]",
    ]
    assert [value.name for value in graph_of(done, "model.fp16.onnx").graph.output] == ["high", "low", "mean"]
    assert done.bundle.manifest.model.task == "raw"  # maps and a vector are neither features nor an image
    assert any(note.startswith("task: raw, by the shapes") for note in done.bundle.manifest.notes)
    for comparison in done.parity.comparisons:
        assert comparison.metrics is not None
        assert list(comparison.metrics.outputs) == ["high", "low", "mean"]
        errors = [one.max_rel_error for one in comparison.metrics.outputs.values()]
        assert max(errors) == comparison.metrics.max_rel_error
    half = done.parity.of("model.fp16.onnx")
    assert half is not None
    assert half.metrics is not None
    assert all(one.max_rel_error > 0 for one in half.metrics.outputs.values())  # each is FP16, and none is left out


def test_tuples_inside_tuples_are_numbered() -> None:
    spec = find_source(ExportOptions(f"{__name__}:nested", image_size=SIZE)).spec
    assert [output.name for output in spec.outputs] == ["output_0_0", "output_0_1", "output_1", "output_2"]
    assert [output.dtype for output in spec.outputs] == ["float32"] * 3 + ["int64"]


def test_one_map_is_verified_without_a_word_of_classes(tmp_path: Path) -> None:
    done = exported("one_map", tmp_path)
    assert [str(output) for output in done.bundle.manifest.model.outputs] == ["output: float32[batch, 6, 8, 12]"]
    assert all(c.verdict == "pass" for c in done.parity.comparisons)
    assert "classes" not in (done.bundle.folder / "manifest.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("factory", "words"),
    [("no_batch", "its first axis is not the batch"), ("text", "returns a str, not tensors")],
)
def test_outputs_that_cannot_be_compared_are_refused(factory: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_source(ExportOptions(f"{__name__}:{factory}", image_size=SIZE))


def test_a_classifier_that_is_asked_for_must_be_one() -> None:
    with pytest.raises(UsageError, match=r"a classifier gives \(N, classes\), or class numbers"):
        find_source(ExportOptions(f"{__name__}:one_map", image_size=SIZE, task="classification"))


def test_free_sizes_of_a_map_are_named(tmp_path: Path) -> None:
    done = exported("one_map", tmp_path, trace=TraceOptions(exporter="torchscript", dynamic_size=True))
    assert [str(output) for output in done.bundle.manifest.model.outputs] == [
        "output: float32[batch, 6, output_2, output_3]"
    ]
    assert done.parity.verdict == "pass"


def test_an_onnx_file_keeps_the_names_of_its_outputs(tmp_path: Path) -> None:
    path = tmp_path / "theirs.onnx"
    module = Pyramid(lambda high, low, mean: (low, mean)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old exporter is said to be old
        torch.onnx.export(
            module,
            (torch.zeros(2, 3, *SIZE),),
            str(path),
            dynamo=False,
            input_names=["picture"],
            output_names=["p3", "embedding"],
            dynamic_axes={name: {0: "n"} for name in ("picture", "p3", "embedding")},
        )
    done = exported(str(path), tmp_path, image_size=None, trace=TraceOptions())
    assert [output.name for output in done.bundle.manifest.model.outputs] == ["p3", "embedding"]
    images = np.random.default_rng(0).standard_normal((2, 3, *SIZE)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(done.bundle.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = module(torch.from_numpy(images))
    for found, wanted in zip(session.run(["p3", "embedding"], {"input": images}), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)  # float32 sums of 36 products


def test_one_wrong_output_of_several_fails_and_is_named(tmp_path: Path) -> None:
    done = exported("named", tmp_path)
    graph = graph_of(done, "model.onnx")
    bias = next(tensor for tensor in graph.graph.initializer if list(tensor.dims) == [6])
    bias.raw_data = (onnx.numpy_helper.to_array(bias) + np.float32(0.05)).astype(np.float32).tobytes()
    onnx.save(graph, done.bundle.folder / "model.onnx")
    report = reproved(done)
    problems = [problem for c in report.comparisons if c.artifact == "model.onnx" for problem in c.problems]
    assert {problem.partition(":")[0] for problem in problems} == {"low", "mean"}  # the map before the layer is right
    with pytest.raises(ParityError, match="low: max error"):
        report.check()


def golden_of(folder: Path, shift: float = 0.0, **other: Any) -> Path:
    """What the author's code computes of some inputs, saved."""
    inputs = np.random.default_rng(0).standard_normal((4, 3, *SIZE)).astype(np.float32)
    source = find_source(ExportOptions(f"{__name__}:named", image_size=SIZE))
    assert isinstance(source, ModuleSource)  # find_source gives cards and graphs too, which have no module
    with torch.inference_mode():
        found = {
            name: made.numpy() for name, made in source.module(torch.from_numpy(inputs)).items() if made is not None
        }
    found["low"] = found["low"] + np.float32(shift)
    np.savez(folder / "golden.npz", input=inputs, **(found | other))
    return folder / "golden.npz"


def test_a_golden_file_has_an_array_for_each_output(tmp_path: Path) -> None:
    done = exported("named", tmp_path, golden=golden_of(tmp_path))
    assert done.parity.reference_kind == "golden"
    assert done.parity.verdict == "pass"
    exported_again = exported("named", tmp_path / "again", golden=golden_of(tmp_path, shift=0.1), judge=run_line)
    assert {problem.partition(": ")[2].partition(":")[0] for problem in exported_again.parity.failures} == {"low"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"low": np.zeros((4, 6, 8, 11)) + np.eye(8, 11)}, "has low of shape"),
        ({"mean": np.arange(18.0).reshape(3, 6)}, "has 3 of 'mean' but 4 rows of high"),
    ],
)
def test_a_golden_file_of_other_outputs_is_refused(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        exported("named", tmp_path, golden=golden_of(tmp_path, **changed))


def reproved(done: Export) -> ParityReport:
    """The proof again, of the files as they are now, with digests that fit them."""
    from skdeploy.core.files import digest_file
    from skdeploy.core.progress import Silent
    from skdeploy.images.dataset import open_dataset
    from skdeploy.parity.prove import prove

    def fitting(artifact: Artifact) -> Artifact:
        path = done.bundle.folder / artifact.path
        return artifact.model_copy(update={"sha256": digest_file(path), "size_bytes": path.stat().st_size})

    artifacts = tuple(fitting(a) for a in done.bundle.manifest.artifacts if a.format == "onnx")
    source = find_source(ExportOptions(f"{__name__}:named", image_size=SIZE))
    assert isinstance(source, ModuleSource)  # as above
    images = open_dataset(done.bundle.folder.parent / "images")
    return prove(done.bundle, artifacts, images, source.module, Silent())


def test_a_card_and_a_flag_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    card = tmp_path / "card.toml"
    text = tiny.CARD.read_text(encoding="utf-8")
    head, _, tail = text.partition("[network]")
    card.write_text(f'{head}task = "features"\n[network]\nfamily = "module"\n[input]{tail.partition("[input]")[2]}')
    with pytest.raises(UsageError, match=r"--task raw, but the card .* has the task features"):
        find_source(ExportOptions(f"{__name__}:one_map", card=str(card), task="raw"))
    assert find_source(ExportOptions(f"{__name__}:one_map", card=str(card))).spec.task == "features"
    other = card.read_text(encoding="utf-8").replace('"features"', '"segmentation"')
    card.write_text(other.replace('family = "module"', 'family = "module"\nclasses = 6'))
    with pytest.raises(CardError, match=r"has network\.classes, which segmentation has not"):
        find_source(ExportOptions(f"{__name__}:one_map", card=str(card)))
    card.write_text(other.replace('task = "segmentation"\n', ""))
    with pytest.raises(CardError, match=r"network\.classes: missing"):
        find_source(ExportOptions(f"{__name__}:one_map", card=str(card)))


def test_a_task_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="--task faces: there is no such task") as refused:
        find_source(ExportOptions(f"{__name__}:one_map", image_size=SIZE, task="faces"))
    assert "features (vectors or maps per image)" in refused.value.advice
