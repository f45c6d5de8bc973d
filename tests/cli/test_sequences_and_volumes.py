"""Selective kernels over time and over volumes, from an ONNX file to the report: FP16, INT8 and an engine."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from torch import nn

from tests.cli.conftest import Run
from tests.graphs.networks import FLOAT32_ERROR, relative_error
from tests.networks.speaker import BANDS, speaker
from tests.networks.volume import CLASSES, SIDE, classifier

SAMPLES = 24
REST = """
[source]
paper = ""
url = ""
licence = "test"

[tolerance.fp32]
max_rel_error = 1e-4
min_cosine = 0.99999
min_sqnr_db = 90.0
"""


class Case(NamedTuple):
    """``other``: a sample of the size that another user has."""

    build: Callable[[], nn.Module]
    name: str
    sample: tuple[int, ...]
    free: dict[int, str]
    other: tuple[int, ...]
    card: str


SPEAKER = Case(
    speaker, "spectrogram", (BANDS, 50), {2: "frames"}, (BANDS, 83),
    f"""schema = 1
name = "speaker"
summary = "Who speaks"
task = "features"

[[inputs]]
name = "spectrogram"
shape = [{BANDS}, "frames"]

[sizes.frames]
usual = 50
min = 20
max = 200

[network]
family = "onnx"
""",
)  # fmt: skip
VOLUME = Case(
    classifier, "volume", (1, SIDE, SIDE, SIDE), {}, (1, SIDE, SIDE, SIDE),
    f"""schema = 1
name = "volume"
summary = "What a volume shows"
task = "classification"

[[inputs]]
name = "volume"
shape = [1, {SIDE}, {SIDE}, {SIDE}]

[network]
family = "onnx"
classes = {CLASSES}
""",
)  # fmt: skip


def written(case: Case, folder: Path) -> tuple[Path, Path, Path]:
    """The network as a file, its card, and a folder of samples."""
    random = np.random.default_rng(0)
    (folder / "samples").mkdir()
    for index in range(SAMPLES):
        sample = random.normal(random.normal(0, 0.5), 1, case.sample).astype(np.float32)
        np.savez(folder / "samples" / f"{index:02}.npz", **{case.name: sample})  # type: ignore[arg-type]  # numpy's stub
    (folder / "card.toml").write_text(case.card + REST, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that there is a newer exporter
        torch.onnx.export(
            case.build(), (torch.zeros(2, *case.sample),), str(folder / "net.onnx"), dynamo=False, opset_version=17,
            input_names=[case.name], output_names=["out"],
            dynamic_axes={case.name: {0: "n", **case.free}, "out": {0: "n"}},
        )  # fmt: skip
    return folder / "net.onnx", folder / "card.toml", folder / "samples"


def of_other_size(case: Case, bundle: Path) -> tuple[Any, Any]:
    """What model.onnx and torch give for five samples of another size."""
    inputs = np.random.default_rng(1).standard_normal((5, *case.other), dtype=np.float32)
    session = InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs})
    return found, case.build()(torch.from_numpy(inputs)).numpy()


def sqnr(bundle: Path, artifact: str) -> float:
    report = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
    found: float = next(c for c in report["comparisons"] if c["artifact"] == artifact)["metrics"]["sqnr_db"]
    return found


@pytest.mark.parametrize("case", [SPEAKER, pytest.param(VOLUME, marks=pytest.mark.slow)], ids=["speaker", "volume"])
def test_half_precision(case: Case, run: Run, tmp_path: Path) -> None:
    network, card, samples = written(case, tmp_path)
    bundle = tmp_path / "bundle"
    done = run("export", network, "--card", card, "--images", samples, "--output", bundle, "--fp16", "--target", "onnx")
    assert done.code == 0, done.err
    assert "selective kernel blocks: 2 rewritten" in done.out + done.err
    assert relative_error(*of_other_size(case, bundle)) < FLOAT32_ERROR
    # FP16 rounds to 2^-11, 66 dB; the layers of this small network add up to some of that.
    assert sqnr(bundle, "model.fp16.onnx") > 55


@pytest.mark.slow  # the same stations as above, and an engine
@pytest.mark.parametrize("case", [SPEAKER, VOLUME], ids=["speaker", "volume"])
def test_eight_bits_and_an_engine(case: Case, run: Run, tmp_path: Path) -> None:
    network, card, samples = written(case, tmp_path)
    bundle = tmp_path / "bundle"
    data = ("--images", samples, "--calib", samples)
    done = run("export", network, "--card", card, *data, "--output", bundle, "--int8", "--target", "tensorrt_rtx")
    assert done.code == 0, done.err
    assert (
        len(list((bundle / "engines").glob("tensorrt_rtx-int8*.engine"))) == 1
    )  # its parser and builder took all layers
    # 8 bits of a range that is wider than most values: 30 dB is what the default tolerance of INT8 asks for, too.
    assert 30 < sqnr(bundle, "model.int8.onnx") < 60
    assert run("verify", bundle, "--images", samples).code == 0
    assert run("report", bundle).code == 0
