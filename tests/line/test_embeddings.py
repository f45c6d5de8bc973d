"""Vectors of a network without a card: embeddings where they are normalised, else logits, which a note says."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from skdeploy.core.spec import ModelSpec
from skdeploy.line.options import ExportOptions
from skdeploy.line.sources import find_source


class Vectors(nn.Module):
    """(N, ``values``), and what comes last."""

    def __init__(self, last: str, values: int) -> None:
        super().__init__()
        self.last, self.values = last, nn.Linear(3, values)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.values(image.mean((2, 3)))
        if self.last == "normalize":
            return functional.normalize(found)
        if self.last == "norm":
            found = found / found.norm(dim=1, keepdim=True)
        if self.last == "other":  # divided by the length of something else
            found = found / image.mean((2, 3)).norm(dim=1, keepdim=True)
        return found.softmax(1) if self.last == "softmax" else found


def read(folder: Path, last: str, values: int = 24, *, task: str | None = None) -> tuple[ModelSpec, list[str]]:
    torch.manual_seed(0)
    path = folder / "vectors.onnx"
    free = {"x": {0: "batch"}, "y": {0: "batch"}}
    network = Vectors(last, values).eval()
    with warnings.catch_warnings(action="ignore"):  # of the exporter that most people still call
        torch.onnx.export(
            network,
            (torch.rand(2, 3, 16, 16),),
            path,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=free,
            dynamo=False,
        )
    source = find_source(ExportOptions(str(path), task=task))
    return source.spec, [note for note in source.notes if note.startswith("task: ")]


@pytest.mark.parametrize("last", ["normalize", "norm"])
def test_a_normalised_vector_is_an_embedding_and_a_note_says_so(tmp_path: Path, last: str) -> None:
    spec, notes = read(tmp_path, last)
    assert (spec.task, spec.network.classes) == ("features", 0)
    assert [str(output) for output in spec.outputs] == ["y: float32[batch, 24]"]
    assert len(notes) == 1
    assert "one vector of length 1 per image, an embedding; choose another with --task" in notes[0]


def test_who_says_classification_gets_it(tmp_path: Path) -> None:
    spec, notes = read(tmp_path, "normalize", task="classification")
    assert (spec.task, spec.network.classes, notes) == ("classification", 24, [])


@pytest.mark.parametrize("last", ["", "other"])
def test_other_vectors_are_logits_and_one_note_says_so(tmp_path: Path, last: str) -> None:
    spec, notes = read(tmp_path, last)
    assert (spec.task, spec.network.classes) == ("classification", 24)
    assert notes == ["task: classification, by the output's shape (N, 24); for embeddings give --task features"]


@pytest.mark.parametrize(("last", "values"), [("softmax", 24), ("", 1000)])
def test_nothing_is_said_of_what_is_certain(tmp_path: Path, last: str, values: int) -> None:
    assert read(tmp_path, last, values)[1] == []
