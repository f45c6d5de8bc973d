"""Options from skdeploy.toml or pyproject.toml: which apply, which win, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skdeploy.cli import VERBS, Verb
from tests.cli.conftest import QUICK, Run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which has a file if the test writes one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(text: str, name: str = "skdeploy.toml") -> None:
    Path(name).write_text(text, encoding="utf-8")


def exported(run: Run, *arguments: object) -> tuple[str, dict[str, object], str]:
    """Precision, the options of the trace, and stderr."""
    result = run("export", *arguments, "-o", "new", "--json")
    assert result.code == 0, result.err
    manifest = json.loads(Path("new/manifest.json").read_text(encoding="utf-8"))
    traced = next(row for row in manifest["artifacts"] if "opset" in row["provenance"]["options"])
    return result.json["precision"], traced["provenance"]["options"], result.err


@pytest.mark.parametrize("name", ["skdeploy.toml", "pyproject.toml"])
def test_options_of_the_file_apply_and_one_line_says_so(
    name: str, run: Run, card: Path, weights: Path, images: Path
) -> None:
    prefix = "" if name == "skdeploy.toml" else "tool.skdeploy."
    write(
        f'[{prefix}export]\nfp16 = true\nexporter = "torchscript"\ntarget = "onnx"\nimages = "{images}"\n'
        f'weights = "{weights}"\nopset = 20\nkeep-fp32 = ["^stem"]\nsimplify = false\n',
        name,
    )
    precision, traced, err = exported(run, card)
    assert precision == "fp16"
    assert traced["opset"] == 20
    said = [line for line in err.splitlines() if "from " + name in line]
    assert len(said) == 1
    for words in ("--fp16", "--exporter torchscript", "--opset 20", "--keep-fp32 ^stem", "--no-simplify"):
        assert words in said[0]


def test_the_command_line_wins_also_with_another_precision(run: Run, card: Path, images: Path) -> None:
    write(f'[export]\nint8 = true\ncalib = "{images}"\nequalize = false\nopset = 20\n')  # of INT8: waits for --int8
    precision, traced, err = exported(run, card, *QUICK, "--images", images, "--fp16", "--opset", 19)
    assert precision == "fp16"
    assert traced["opset"] == 19
    assert "--opset 20" not in err
    refused = run("export", card, *QUICK, "--fp16", "--calib-num", 3)
    assert (refused.code, "--calib" in refused.err) == (2, True)


def test_an_environment_variable_wins_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write('[start]\nbundle = "of-the-file"\nbackend = "onnxruntime"\n')
    monkeypatch.setenv("SKDEPLOY_BUNDLE", "of-the-environment")
    result = run("start", "predict", "x.png")
    assert "of-the-environment" in result.err
    assert "of-the-file" not in result.err


def test_skdeploy_toml_comes_before_pyproject(run: Run, bundle: Path) -> None:
    write("[inspect]\n")
    write('[tool.skdeploy.inspect]\nlayers = "no"\n', "pyproject.toml")
    assert run("inspect", bundle).code == 0
    Path("skdeploy.toml").unlink()
    assert run("inspect", bundle).code == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[exprot]\n", ("exprot", "export")),
        ("export = 3\n", ("export is not a table",)),
        ("[inspect]\nlayer = true\n", ("[inspect]", "'layer'", "layers")),
        ('[inspect]\nlayers = "yes"\n', ("[inspect] layers", "true or false")),
        ("[inspect]\npath = 'x'\n", ("'path'",)),
        ("[inspect]\nhelp = true\n", ("'help'",)),
        ("[inspect\n", ("cannot read skdeploy.toml", "line 1")),
    ],
)
def test_what_is_wrong_is_refused_with_file_key_and_near_matches(
    text: str, told: tuple[str, ...], run: Run, bundle: Path
) -> None:
    write(text)
    result = run("inspect", bundle)
    assert result.code == 2
    assert "skdeploy.toml" in result.err
    for part in told:
        assert part in result.err


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("max-drop = '1'", "a number"),
        ("num-images = 1.5", "a whole number"),
        ("num-images = true", "a whole number"),
        ("data = 3", "a text"),
        ("artifact = 'torch'", "not a list"),
        ("artifact = [1]", "a text"),
        ("class-order = 'names'", "name"),
    ],
)
def test_a_value_of_another_type_is_refused(option: str, told: str, run: Run, bundle: Path) -> None:
    write(f"[evaluate]\n{option}\n")
    result = run("evaluate", bundle, "--data", "x")
    assert result.code == 2
    assert f"[evaluate] {option.partition(' ')[0]}" in result.err
    assert told in result.err


def test_a_required_option_may_come_from_the_file(run: Run, bundle: Path, evaluation: Path) -> None:
    write(f'[evaluate]\ndata = "{evaluation}"\nmax-drop = 20\n')
    assert run("evaluate", bundle).code == 0
    write("[evaluate]\nmax-drop = 20\n")
    assert run("evaluate", bundle).code == 2


def test_no_file_of_a_parent_folder_is_read(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("[exprot]\n")
    assert run("inspect", bundle).code == 2
    Path("below").mkdir()
    monkeypatch.chdir("below")
    assert run("inspect", bundle).code == 0


def test_a_verb_from_outside_has_a_table(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "sizes", Verb("tests.outside.toy_verb:sizes", "Print the size of each file."))
    write(f"[sizes]\nat-least = {1 << 40}\n")
    result = run("sizes", bundle)
    assert (result.code, result.out) == (0, "")
    assert "--at-least" in result.err


def test_the_help_says_where_options_may_be_and_shows_the_files_defaults(run: Run) -> None:
    assert "skdeploy.toml" in run("-h").out
    write("[export]\nopset = 20\n")
    assert "[default: 20]" in run("export", "-h").out


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("skdeploy.toml", b"a = " + b"[" * 3000, "cannot read skdeploy.toml: values are nested too deeply"),
        ("skdeploy.toml", b"a = " + b"9" * 5000, "cannot read skdeploy.toml: "),
        ("skdeploy.toml", b"\xff", "cannot read skdeploy.toml: "),
        ("pyproject.toml", b"a = " + b"[" * 3000, "cannot read pyproject.toml: values are nested too deeply"),
    ],
    ids=["deep", "long number", "no text", "somebody else's"],
)
def test_a_file_that_is_no_toml_is_refused(
    name: str, content: bytes, words: str, run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle)
    (bundle / name).write_bytes(content)
    ended = run("inspect", bundle)
    assert ended.code == 2
    assert words in ended.err


def test_a_tool_that_is_no_table_is_somebody_elses(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)
    (bundle / "pyproject.toml").write_text("tool = 3\n", encoding="utf-8")
    assert run("inspect", bundle).code == 0
