"""Modes bind where a test asks for it, as root too; and no test becomes another user, who could not read this checkout."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests import file_modes

# os's calls, in code and in code given to `python -c`; subprocess's keywords; and programs that do it.
CHANGES_USER = re.compile(
    r"\bset(?:e|re|res|fs)?[ug]id\b|\b(?:setgroups|initgroups)\b"
    r"|\b(?:user|extra_groups)=|\b(?:setpriv|sudo|runuser|gosu)\b|[\"']su\b"
)


def test_no_test_becomes_another_user() -> None:
    here = Path(__file__)
    found = [
        f"{path.relative_to(here.parent)}:{number}: {line.strip()}"
        for path in sorted(here.parent.rglob("*.py"))
        if path != here
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if CHANGES_USER.search(line)
    ]
    assert found == [], "take the fixture modes_bind, or chown what must be another user's"


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.seteuid(65534)",
        "from os import setresuid",
        "os.setgroups([])",
        "subprocess.run(command, user=1000)",
        "subprocess.run(['setpriv', '--reuid', '1000'])",
        "subprocess.run(['su', 'nobody'])",
    ],
)
def test_a_change_of_user_is_found(source: str) -> None:
    assert CHANGES_USER.search(source)


def test_modes_bind_and_this_checkout_stays_readable(
    modes_bind: Callable[[], AbstractContextManager[None]], tmp_path: Path
) -> None:
    locked, closed = tmp_path / "locked", tmp_path / "closed"
    locked.mkdir(mode=0o500)
    closed.mkdir(mode=0)
    with modes_bind():
        with pytest.raises(PermissionError):
            (locked / "file").write_text("")
        with pytest.raises(PermissionError):
            list(closed.iterdir())
        assert file_modes.closed_to_its_user() is None
        assert Path(__file__).read_bytes()
    if os.geteuid() == 0:  # and root is root again
        (locked / "file").write_text("")
        assert list(closed.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_checkout_in_the_locked_folder_of_another_user_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "checkout").mkdir(parents=True)
    home.chmod(0o700)
    os.chown(home, 1000, 1000)
    monkeypatch.setattr(file_modes, "ROOT", home / "checkout")
    assert file_modes.closed_to_its_user() is None  # root enters it
    with file_modes.binding():
        assert file_modes.closed_to_its_user() == home / "checkout"
