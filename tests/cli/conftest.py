"""The command line as a user meets it, run in this process, and one small bundle that many tests copy."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from skdeploy.__main__ import main
from skdeploy.core.spec import Precision
from skdeploy.line.building import build_engine
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import export
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import BuildRequest, ExportOptions
from tests.checkpoints import caffe_reference
from tests.checkpoints.caffe_tiny import LAYERS
from tests.cli.evaluation_data import labelled


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def report(self) -> Any:
        """The JSON without the version that every document has."""
        return {key: value for key, value in self.json.items() if key != "schema"}


Run = Callable[..., Result]
Snapshot = Callable[[Path], dict[str, bytes | None]]
ModesBind = Callable[[], AbstractContextManager[None]]
QUICK = ("--target", "onnx", "--exporter", "torchscript")  # an export of a second


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``skdeploy`` with these arguments, on a terminal of 200 columns."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["skdeploy", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return Result(int(end.value.code or 0), out, err)

    return call


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy of the verified bundle."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def once_built(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with an engine of TensorRT-RTX that was built after the export. Do not change it: take ``built``."""
    folder = Path(shutil.copytree(exported, tmp_path_factory.mktemp("built") / "bundle"))
    build_engine(folder, BuildRequest(target="tensorrt_rtx"))
    return folder


@pytest.fixture
def built(once_built: Path, tmp_path: Path) -> Path:
    """A copy of the bundle with the engine."""
    return Path(shutil.copytree(once_built, tmp_path / "built"))


@pytest.fixture
def again(card: Path, images: Path, weights: Path) -> list[object]:
    """The arguments that made the bundle, but for its folder."""
    return ["export", card, "--fp16", *QUICK, "--images", images, "--weights", weights]


@pytest.fixture(scope="session")
def once_int8(asked: ExportOptions, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network in INT8, with FP32 beside it, which ONNX Runtime has INT8 kernels for; one unit is kept out of INT8, as after
    --max-drop. Do not change it: take ``int8``.
    """
    folder = tmp_path_factory.mktemp("int8") / "int8"
    calibration = CalibrationOptions(images=images)
    lower = Int8Options(calibration=calibration, fallback=Precision.FP32, keep=(r"^stages\.1\.0",))
    export(replace(asked, precision=Precision.INT8, output=folder, lowering={"int8": lower}))
    return folder


@pytest.fixture
def int8(once_int8: Path, tmp_path: Path) -> Path:
    """A copy of the INT8 bundle."""
    return Path(shutil.copytree(once_int8, tmp_path / "int8"))


@pytest.fixture(scope="session")
def other(asked: ExportOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another network of the same card, in FP32. Do not change it."""
    folder = tmp_path_factory.mktemp("other") / "other"
    export(replace(asked, output=folder, weights=None, seed=3))
    return folder


@pytest.fixture(scope="session")
def evaluation(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 labelled images, of which the FP32 graph gets 36 right."""
    return labelled(exported, tmp_path_factory.mktemp("evaluation") / "evaluation.npz")


@pytest.fixture(scope="session")
def desk(
    exported: Path,
    once_int8: Path,
    other: Path,
    evaluation: Path,
    card: Path,
    images: Path,
    weights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What commands name, in one folder. Do not change it."""
    folder = tmp_path_factory.mktemp("desk")
    for name, source in {"bundle": exported, "int8": once_int8, "other": other, "images": images}.items():
        shutil.copytree(source, folder / name)
    for file in (card, weights, evaluation):
        shutil.copy(file, folder)
    blobs = caffe_reference.trained(LAYERS, 3, 5)
    (folder / "official.caffemodel").write_bytes(caffe_reference.caffemodel(LAYERS, blobs))
    return folder


@pytest.fixture(autouse=True)
def predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where evaluations keep their predictions: a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/skdeploy/predictions"


@pytest.fixture
def snapshot() -> Snapshot:
    """Every file below a folder with its bytes, and every folder."""

    def take(folder: Path) -> dict[str, bytes | None]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*"))
        }

    return take
