"""The notebook of the tutorials runs in a real kernel, in the reader's folder."""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.docs.blocks import ROOT

NOTEBOOK = ROOT / "docs/tutorials/notebook.ipynb"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython writes a history, and Jupyter its runtime files, where its user's are."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.mark.slow
def test_the_notebook_runs_and_shows_the_verdict(desk: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(desk)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    html = "".join(output["data"].get("text/html", "") for output in shown if "data" in output)
    assert "verified" in html
    assert "2 export has no keyword 'precison'" in "".join(output.get("text", "") for output in shown)


def test_the_notebook_is_committed_without_outputs() -> None:
    assert not any(cell.get("outputs") for cell in nbformat.read(NOTEBOOK, 4).cells)
