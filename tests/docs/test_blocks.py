"""Each block of shell and Python in the documentation runs, in the order of its page, or says in its first line why it cannot.

The reader's folder has small networks under the names that the pages use. The README runs with the real ones too: slow.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import NEEDS, PAGES, ROOT, Block, bash, blocks, run

# Each exports a network or more by the default exporter, which takes seconds.
SLOW = (
    "README.md", "docs/index.md", "docs/tutorials/ci-gate.md", "docs/reference/python.md", "docs/reference/config.md",
    "docs/tutorials/orin-nano.md", "docs/understand/compare.md",
    *(f"docs/how-to/{name}.md" for name in (
        "attach", "calibrate", "docker", "engines", "keep-accuracy", "mixed-precision", "other-networks", "own-network",
        "prove",
    )),
)  # fmt: skip
# What a page says that its reader has, beyond the folder of all pages.
PREPARED = {
    "docs/tutorials/ci-gate.md": (
        "git init -q\nmkdir weights\nmv epoch=29.ckpt weights/mynet.ckpt\n"
        "skdeploy export weights/mynet.ckpt --fp16 --labels labels.txt --imgsz 160 --images eval --target onnx\n"
    ),
    "docs/how-to/triton.md": (
        "cp -r build/sknet-fashion-int8 build/mynet-int8\ncp -r build/sknet-fashion-int8 build/mynet-fp16\n"
    ),
    "docs/how-to/cpp.md": "cp -r build/sknet-fashion-int8 build/mynet-int8\n",
    "docs/how-to/other-networks.md": (
        "skdeploy export sknet-fashion --int8 --int8-fallback fp32 --calib calibration/fashion --target onnx -o build/qat\n"
        "mv build/qat/model.int8.onnx qat.onnx\n"
        "skdeploy export theirs:denoise --card denoiser.toml --int8 --calib calib --target onnx\n"
    ),
}
OF_NOTEBOOK = "docs/tutorials/notebook.md"  # test_notebook.py runs the notebook that it is made from


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def parameter(page: Path) -> Any:
    return pytest.param(page, id=named(page), marks=[pytest.mark.slow] if named(page) in SLOW else [])


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page.read_text(encoding="utf-8")) if block.needs is None]


@pytest.mark.parametrize("page", [parameter(page) for page in PAGES if runnable(page) and named(page) != OF_NOTEBOOK])
def test_every_block_runs(page: Path, desk: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    if named(page) in PREPARED:
        bash(PREPARED[named(page)])
    for block in runnable(page):
        try:
            run(block, names)
        except (AssertionError, Exception) as error:
            raise AssertionError(f"{named(page)}, line {block.line}: {error}") from error


def shape(line: str) -> str:
    """The words of a line of output: figures, spaces and rules change from run to run."""
    return re.sub(r"[-+\d.,e]*\d[-+\d.,e]*", "0", " ".join(line.split()))


def differences(shown: list[str], printed: str) -> list[str]:
    """Lines that are shown and not printed, in their order. ``...`` stands for any lines.

    A printed line may go on: a table has room for one column more where its times are shorter.
    """
    rest = [f"{shape(line)} " for line in printed.splitlines()]
    absent = []
    for line in (line for line in shown if line != "..."):
        place = next((place for place, one in enumerate(rest) if one.startswith(f"{shape(line)} ")), None)
        if place is None:
            absent.append(line)
        else:
            del rest[: place + 1]
    return absent


@pytest.mark.slow
def test_the_readme_shows_what_its_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the network that comes with the project, as after ``make demo``."""
    monkeypatch.chdir(tmp_path)
    for name in ("models", "calibration"):
        (tmp_path / name).symlink_to(ROOT / name)
    (block,) = [block for block in blocks((ROOT / "README.md").read_text("utf-8")) if block.language == "console"]
    shown = [part.splitlines()[1:] for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]]
    for command, lines, printed in zip(block.commands, shown, run(block, {}), strict=True):
        assert differences(lines, printed) == [], f"{command}\n{printed}"


def test_an_output_that_is_not_printed_is_noticed() -> None:
    printed = "verified\nmodel.onnx   1.28 MB  1.0 s\nmodel.int8.onnx  427.6 kB\n"
    assert differences(["verified", "...", "model.onnx 9 MB 30 s"], printed) == []
    assert differences(["verified", "...", "model.onnx 9 MB"], printed) == []
    assert differences(["verified", "model.onnx 9 kB 30 s"], printed) == ["model.onnx 9 kB 30 s"]
    assert differences(["model.int8.onnx 1 kB", "verified"], printed) == ["verified"]


def test_a_block_that_says_what_it_needs_does_need_it() -> None:
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.needs is not None:
                body = block.text.partition("\n")[2]
                assert re.search(NEEDS[block.needs], body), f"{named(page)}, line {block.line}"


@pytest.mark.parametrize(
    "text",
    [
        "```sh\nskdeploy inspect build/absent\n```\n",
        "```sh\necho fine\nfalse | true\n```\n",
        "```python\nimport skdeploy as sk\nsk.load_bundle('build/absent')\n```\n",
        "```console\n$ skdeploy doctor --jsn\nfine\n```\n",
    ],
)
def test_a_broken_block_fails(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(text)
    with pytest.raises((AssertionError, Exception)):
        run(block, {})
