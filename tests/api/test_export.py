"""``skdeploy.export`` by keyword: the options of the command line, with Python's values."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import skdeploy
from skdeploy.api.bundle import Bundle
from skdeploy.api.keywords import export_keywords, export_options
from skdeploy.cli.export import export as verb
from skdeploy.core.errors import ParityError, UsageError
from skdeploy.core.spec import CalibrationMethod
from tests import tiny

# What Python says in another way than the command line, or not at all: fp16 and int8 are precision, json is for programs.
ONLY_FLAGS = {"model", "fp16", "bf16", "int8", "weight_only", "fp8", "json"}


def test_every_option_of_the_command_line_is_a_keyword_of_the_same_name() -> None:
    flags = set(inspect.signature(verb).parameters) - ONLY_FLAGS
    assert flags == set(export_keywords()) - {"precision"}
    shown = inspect.signature(skdeploy.export).parameters
    assert set(shown) == {"model", "progress", *export_keywords()}
    assert all(f"    {name}: " in (skdeploy.export.__doc__ or "") for name in export_keywords())


def test_strings_stand_for_paths_choices_and_one_of_several(tmp_path: Path) -> None:
    asked = export_options(
        "net.toml",
        {
            "precision": "int8",
            "calib": str(tmp_path),
            "calib_method": "minmax",
            "target": "onnx",
            "int8_fallback": "fp32",
            "keep_fp32": "gate",
            "imgsz": (96, 64),
            "batch": 4,
            "exporter": "torchscript",
            "regroup": 8,
        },
    )
    assert asked.precision == "int8"
    int8 = asked.lowering["int8"]
    assert int8.calibration.images == tmp_path
    assert int8.calibration.method is CalibrationMethod.MINMAX
    assert int8.fallback == "fp32"
    assert asked.target == "onnx"
    assert int8.half.keep_fp32 == ("gate",)
    assert asked.image_size == (96, 64)
    assert (asked.trace.batch, asked.trace.exporter) == (4, "torchscript")
    assert asked.rewrites["regroup"].record() == {"regroup": 8}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"precison": "fp16"}, "did you mean 'precision'"),
        ({"precision": "fp8"}, "precision='fp8'"),
        ({"imgsz": "big"}, "imgsz='big'"),
        ({"calib_num": "many"}, "calib_num='many'"),
        ({"max_drop": 1.0}, "add --data"),
        ({"calib": "images"}, "--calib is for INT8"),
        ({"for_": "orin"}, "did you mean orin-nano"),
        ({"workspace": -1}, "workspace -1"),
        ({"min_batch": 9, "max_batch": 3}, "batch profile 9/8/3"),
    ],
)
def test_a_wrong_keyword_or_value_is_named(given: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as error:
        skdeploy.export(tiny.CARD, progress=False, **given)
    assert said in str(error.value)
    assert error.value.exit_code == 2


def test_an_export_gives_its_bundle(exported: Bundle) -> None:
    assert exported.verdict.state == "verified"
    assert {"model.onnx", "model.fp16.onnx"} <= {artifact.path for artifact in exported.manifest.artifacts}


def test_a_failed_parity_raises_and_leaves_a_bundle_that_opens(photographs: Path, tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "golden.npz", input=inputs, logits=inputs[:, 0, 0, :5])
    with pytest.raises(ParityError) as error:
        skdeploy.export(
            tiny.CARD, output=tmp_path / "b", target="onnx", exporter="torchscript", progress=False,
            golden=tmp_path / "golden.npz", images=photographs,
        )  # fmt: skip
    assert error.value.exit_code == 8
    assert skdeploy.load_bundle(tmp_path / "b").verdict.state == "failed"


def test_the_public_names_are_those_that_dir_shows_and_import_nothing_heavy() -> None:
    code = (
        "import sys, skdeploy; names = dir(skdeploy); assert names == skdeploy.__all__, names;"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy', 'pydantic', 'typer'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
