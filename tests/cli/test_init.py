"""``skdeploy init`` and ``--card``, as typed."""

from __future__ import annotations

import fcntl
import os
import pty
import shlex
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import numpy as np

from tests.cli.conftest import Run
from tests.graphs import foreign


def test_a_card_is_written_given_back_and_never_replaced(run: Run, tmp_path: Path) -> None:
    graph = foreign.export(foreign.live(foreign.Classifier(foreign.Sliced())), tmp_path / "net.onnx", shape=(3, 32, 32))
    card = tmp_path / "net.toml"
    made = run("init", graph, "-o", card)
    assert made.code == 0, made.err
    assert f"--card {card}" in made.out
    before = card.read_bytes()
    again = run("init", graph, "-o", card)
    assert (again.code, card.read_bytes()) == (2, before)
    assert "already exists" in again.err

    # The author checked it: nothing is assumed any more.
    card.write_text(card.read_text(encoding="utf-8").partition("[assumed.")[0], encoding="utf-8")
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8))
    bundle = tmp_path / "bundle"
    common = ("--images", images, "--target", "onnx", "-o", bundle, "--json")
    done = run("export", graph, "--card", card, *common)
    assert done.code == 0, done.err
    assert "assumed" not in done.err
    assert "assumed: " in run("export", graph, *common).err


def test_the_next_command_is_one_line_on_a_narrow_terminal(tmp_path: Path) -> None:
    """A command that is broken in two is two commands where it is pasted."""
    folder = tmp_path / ("a long name of a folder " * 3).strip()
    folder.mkdir()
    graph = foreign.export(foreign.live(foreign.Classifier(foreign.Sliced())), folder / "net.onnx", shape=(3, 32, 32))
    words = [sys.executable, "-m", "skdeploy", "init", str(graph), "-o", str(folder / "net.toml")]
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(words, stdout=terminal, stderr=subprocess.DEVNULL, stdin=terminal) as process:
        os.close(terminal)
        shown = b""
        with suppress(OSError):  # the end of a pseudo-terminal
            while more := os.read(main, 4096):
                shown += more
    os.close(main)
    assert process.returncode == 0
    (line,) = [line for line in shown.decode().splitlines() if line.startswith("next: ")]
    assert shlex.split(line)[1:] == ["skdeploy", "export", str(graph), "--card", str(folder / "net.toml")]
