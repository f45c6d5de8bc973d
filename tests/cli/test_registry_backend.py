"""A backend that is registered from outside the package is a backend like the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from skdeploy.backends import backend, running
from skdeploy.backends.base import Session
from skdeploy.bundle.folder import load_bundle
from skdeploy.bundle.receipts import read_receipts
from skdeploy.core.packages import Availability
from skdeploy.core.spec import ModelSpec
from tests.backends.contract import BackendContract
from tests.outside import toy_backend

Run = Callable[..., Any]
NAME = toy_backend.NAME


pytestmark = pytest.mark.usefixtures("outside")


class TestReference(BackendContract):
    def probe(self) -> Availability:
        return backend(NAME).probe()

    def open(self, spec: ModelSpec, folder: Path) -> Session:
        return backend(NAME).open_session(self.graph(spec, folder))


def test_it_runs_graphs_on_the_cpu() -> None:
    assert NAME in running("onnx", on="cpu")
    assert NAME not in running("module", "engine")


def test_doctor_probes_it(run: Run) -> None:
    part = next(part for part in run("doctor", "--json").json["parts"] if part["name"] == NAME)
    assert (part["available"], part["version"], part["device"]) == (True, onnx.__version__, "CPU, in Python")


def test_predict_runs_the_last_graph_on_it(run: Run, exported: Path, images: Path) -> None:
    image = images / "0.png"
    tops = []
    for arguments in (["--backend", NAME, "--backend-option", "verbose=0"], []):
        (found,) = run("predict", exported, image, "--json", *arguments).json["images"][0]["predictions"]
        tops.append((found["backend"], found["top"][0]["label"]))
    assert tops == [(NAME, tops[0][1]), ("onnxruntime", tops[0][1])]


def test_an_option_that_it_lacks_is_refused(run: Run, exported: Path, images: Path) -> None:
    result = run("predict", exported, images / "0.png", "--backend", NAME, "--backend-option", "tf32=on")
    assert result.code == 2
    assert "with one of the names verbose" in result.err


def test_bench_times_it(run: Run, bundle: Path) -> None:
    result = run("bench", bundle, "--backend", NAME, "--seconds", "0.2", "--receipt", "--json")
    assert result.code == 0, result.err
    (receipt,) = read_receipts(load_bundle(bundle))
    assert (receipt.backend, receipt.kind, receipt.verdict) == (NAME, "latency", "recorded")


@pytest.mark.parametrize(
    ("verb", "words"),
    [("predict", "verbose=0/1"), ("predict", NAME), ("verify", NAME), ("bench", NAME), ("start", NAME)],
)
def test_the_help_of_verbs_names_it(run: Run, verb: str, words: str) -> None:
    assert words in run(verb, "--help").out


def test_start_takes_it(run: Run, exported: Path, images: Path, tmp_path: Path) -> None:
    image = images / "0.png"
    result = run("start", "--bundle", exported, "--cache", tmp_path, "--backend", NAME, "predict", image, "--json")
    assert result.code == 0, result.err
    assert result.json["images"][0]["predictions"][0]["backend"] == NAME
