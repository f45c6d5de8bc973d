"""What ``import skdeploy`` sets for the packages below it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

OPEN = (
    "from skdeploy.backends import onnxruntime; from onnx import helper, TensorProto as t\n"
    "value = lambda name: helper.make_tensor_value_info(name, t.FLOAT, [1])\n"
    "graph = helper.make_graph([helper.make_node('Relu', ['x'], ['y'])], 'g', [value('x')], [value('y')])\n"
    "model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 19)], ir_version=9)\n"
    "onnxruntime.OnnxRuntimeSession(model.SerializeToString(), 'cpu', 1).close()\n"
)


TRITON = """
import hashlib, json, runpy, sys, types
from pathlib import Path
from onnx import helper, TensorProto as t
folder = Path(sys.argv[1]) / "1"
folder.mkdir()
value = lambda name: helper.make_tensor_value_info(name, t.FLOAT, [1])
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value("x")], [value("y")])
content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9).SerializeToString()
(folder / "model.onnx").write_bytes(content)
digest = {"sha256.1.model.onnx": {"string_value": hashlib.sha256(content).hexdigest()}}
config = {"max_batch_size": 0, "input": [{"name": "x"}], "output": [{"name": "y"}], "parameters": digest}
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
model = runpy.run_path(sys.argv[2])["TritonPythonModel"]()
model.initialize.__globals__["misread"] = lambda version: ""  # this is not Triton's stub
model.initialize({"model_config": json.dumps(config), "model_repository": sys.argv[1], "model_version": "1"})
assert "skdeploy" not in sys.modules
"""


def python(code: str, *arguments: Path, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "HOME")}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = kept | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_onnx_runtime_sends_nothing_and_leaves_no_identity(tmp_path: Path) -> None:
    """Its telemetry writes an identity of the machine to the home when the library is loaded."""
    python(OPEN, HOME=str(tmp_path))
    assert list(tmp_path.rglob("*")) == []


def test_neither_does_a_model_of_triton_which_has_no_skdeploy(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    source = Path(__file__).parents[1] / "skdeploy/serve/triton/models/network.py"
    python(TRITON, tmp_path, source, HOME=str(tmp_path / "home"))
    assert list((tmp_path / "home").rglob("*")) == []


def test_what_the_user_has_set_holds_and_programs_that_we_start_get_it() -> None:
    code = "import skdeploy, os, subprocess, sys; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert python(code, ORT_DISABLE_TELEMETRY="0").strip() == "0"
    assert python(code).strip() == "1"
