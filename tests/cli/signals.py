"""A run that is ended by a signal, and all that holds then at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from skdeploy.shards.part import read_part
from tests.shards.clusters import end

END_SECONDS = 60.0  # less than 1 s on an idle machine


def started(command: Sequence[str], *options: str) -> subprocess.Popen[str]:
    """The run, as the leader of its process group, as a shell starts it."""
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def signalled(process: subprocess.Popen[str], sent: signal.Signals, folder: Path) -> str:
    """Sends the signal; what stdout and stderr say, once all is checked that holds at any moment."""
    family = psutil.Process(process.pid).children(recursive=True)
    try:
        if sent is signal.SIGINT:
            os.killpg(process.pid, sent)  # as a terminal does
        else:
            process.send_signal(sent)
        out, err = process.communicate(timeout=END_SECONDS)
        psutil.wait_procs(family, timeout=10)  # Python's own tracker of resources ends when its pipe is closed
        assert [one.cmdline() for one in family if one.is_running()] == []
    finally:
        end(process.pid)
    code, word = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}[sent]
    assert process.returncode == code, err
    assert json.loads(out)["error"]["exit_code"] == code
    assert err.splitlines()[-1].startswith(f"{word}: no file is half-written"), err
    assert "Traceback" not in err
    assert not list(folder.rglob("*.partial*"))
    for part in (folder / "cache").rglob("part-*"):
        read_part(part)
    return err
