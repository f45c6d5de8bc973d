"""In a real notebook kernel: progress, the verdict as HTML, and logits in three lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from tests import tiny


def run(cells: list[str], folder: Path) -> list[Any]:
    """The outputs of each cell, as the kernel gave them."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython writes a history, and Jupyter its runtime files, where its user's are."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


def test_a_notebook_exports_shows_the_verdict_and_gets_logits(tmp_path: Path) -> None:
    tiny.save(tmp_path / "images", "0.png", "1.png", "2.png", "3.png")
    options = "precision='fp16', output='b', target='onnx', exporter='torchscript', images='images'"
    cells = [
        "import skdeploy as sk",
        f"bundle = sk.export({str(tiny.CARD)!r}, {options})",
        "bundle",
        "with bundle.session() as run:\n    logits = run(bundle.preprocess(['images/0.png']))\nlogits.shape",
        "try:\n    sk.export('b', precison='fp16')\nexcept sk.errors.SkdeployError as error:\n    print(error.exit_code)",
    ]
    outputs = run(cells, tmp_path)
    told = "".join(output["data"]["text/plain"] for output in outputs[1] if output["output_type"] == "display_data")
    assert "to FP16" in told
    assert "verified" in outputs[2][0]["data"]["text/html"]
    assert outputs[3][0]["data"]["text/plain"] == "(1, 5)"
    assert outputs[4][0]["text"] == "2\n"
