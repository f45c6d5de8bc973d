"""What to type for an extra: from the folder that skdeploy was installed from, or from an index."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from pathlib import Path

import pytest

from skdeploy.core.packages import EXTRAS, export_advice, folder_of_install, install_command

INDEX = 'pip install "skdeploy[cpu]"'


def installed_from(record: dict[str, object] | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts an installed skdeploy, with pip's record of where it came from, before the one of this environment."""
    info = folder / "skdeploy-9.9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: skdeploy\nVersion: 9.9.9\n")
    if record is not None:
        (info / "direct_url.json").write_text(json.dumps(record))
    monkeypatch.syspath_prepend(folder)
    assert metadata.version("skdeploy") == "9.9.9"


@pytest.mark.parametrize("info", [{"editable": True}, {}], ids=["editable", "from a folder"])
def test_a_clone_is_named_and_the_command_is_one_that_pip_takes(
    info: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "my clones" / "skdeploy"
    installed_from({"url": clone.as_uri(), "dir_info": info}, tmp_path / "site", monkeypatch)
    assert "%20" in clone.as_uri()  # pip's record is an address, and a path is typed
    assert shlex.split(install_command("cpu")) == ["pip", "install", "-e", f"{clone}[cpu]"]
    assert export_advice().startswith(f'install it with: pip install -e "{clone}[{EXTRAS}]"')


@pytest.mark.parametrize(
    "record",
    [
        None,
        {"url": "file:///tmp/skdeploy-9.9.9-py3-none-any.whl", "archive_info": {}},
        {"url": "https://host/skdeploy.git", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}},
    ],
    ids=["index", "wheel", "repository"],
)
def test_without_a_folder_it_is_the_name(
    record: dict[str, object] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_from(record, tmp_path, monkeypatch)
    assert install_command("cpu") == install_command("cpu", on_device=True) == INDEX


def test_what_is_not_installed_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert install_command("cpu") == INDEX


def test_another_machine_has_its_own_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_from({"url": tmp_path.as_uri(), "dir_info": {}}, tmp_path / "site", monkeypatch)
    assert install_command("gpu,plans", on_device=True) == 'pip install -e ".[gpu,plans]"'


def test_no_golden_has_the_folder_of_this_machine() -> None:
    here = folder_of_install() or Path(__file__).parents[2]
    goldens = Path(__file__).parents[1] / "golden"
    texts = {file: file.read_bytes() for file in goldens.rglob("*") if file.is_file()}
    assert texts
    assert [file for file, text in texts.items() if str(here).encode() in text] == []
