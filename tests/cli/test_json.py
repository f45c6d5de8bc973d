"""What --json prints is what --json-schema says, and another document is refused by it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from skdeploy.cli import VERBS
from tests.cli.conftest import QUICK, Run

SPOKEN = {
    "doctor": "doctor",
    "models": "models",
    "convert": "convert official.caffemodel -o made/net.safetensors",
    "export": f"export tiny.toml --fp16 {' '.join(QUICK)} --images images --weights tiny.safetensors -o bundle",
    "calibrate": "calibrate bundle --calib images -o ranges.json",
    "inspect": "inspect int8",
    "inspect a file": "inspect bundle/model.onnx",
    "verify": "verify bundle --images images --suite noise",
    "evaluate": "evaluate bundle --data evaluation.npz --max-drop 20",
    "evaluate a shard": "evaluate bundle --data evaluation.npz --shard 1/2 -o part-1",
    "sensitivity": "sensitivity int8 --data evaluation.npz",
    "tune": "tune bundle --data evaluation.npz --calib images --max-drop 30 --calib-method mse --dry-run",
    "attention": "attention bundle --data images --scales 1,1.5,2",
    "plan": "plan bundle --device orin-nano",
    "predict": "predict bundle images/0.png --all",
    "report": "report bundle",
    "start": "start --bundle bundle --cache cache --backend onnxruntime --json predict images/0.png",
}
FAILING = {
    "no bundle": "verify images",
    "undecided": "evaluate bundle --data evaluation.npz --num-images 2 --max-drop 0.5",
    "no option": "inspect bundle --layer",
}


@pytest.fixture
def schema(run: Run) -> Callable[[str], dict[str, Any]]:
    """The published schema of a verb."""

    def read(verb: str) -> dict[str, Any]:
        found: dict[str, Any] = run(verb, "--json-schema").json
        jsonschema.Draft202012Validator.check_schema(found)
        return found

    return read


@pytest.fixture
def said(run: Run, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """The JSON of a command on a copy of the desk."""
    monkeypatch.chdir(shutil.copytree(desk, tmp_path / "folder"))

    def say(command: str) -> Any:
        json_flag = () if "--json" in command else ("--json",)
        return run(*command.split(), *json_flag).json

    return say


@pytest.mark.parametrize("name", SPOKEN)
def test_a_verbs_json_is_as_its_schema_says(
    name: str, said: Callable[[str], Any], schema: Callable[[str], dict[str, Any]]
) -> None:
    found = said(SPOKEN[name])
    assert found["schema"] == 1
    assert "error" not in found
    jsonschema.validate(found, schema(SPOKEN[name].split()[0]))


@pytest.mark.parametrize("name", FAILING)
def test_a_failure_is_in_the_schema_too(
    name: str, said: Callable[[str], Any], schema: Callable[[str], dict[str, Any]]
) -> None:
    found = said(FAILING[name])
    assert found["schema"] == 1
    assert found["error"]["exit_code"] > 0
    jsonschema.validate(found, schema(FAILING[name].split()[0]))


def test_a_build_and_its_engine_too(run: Run, built: Path, schema: Callable[[str], dict[str, Any]]) -> None:
    jsonschema.validate(run("build", built, "--target", "tensorrt_rtx", "--json").json, schema("build"))
    jsonschema.validate(run("inspect", built, "--engine", "--json").json, schema("inspect"))


def test_a_bench_too(
    run: Run, bundle: Path, schema: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skdeploy.bench.timing.WARM_UP_SECONDS_AT_MOST", 0.1)  # the figures are not what is asked here
    command = ("--backend", "onnxruntime", "--seconds", 0.02, "--json")
    jsonschema.validate(run("bench", bundle, *command).json, schema("bench"))


def spoiled(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The document without one of its keys, with another one, and with another version."""
    for key in document:
        other = copy.deepcopy(document)
        del other[key]
        yield f"without {key}", other
    yield "with another key", document | {"verdit": 1}
    yield "of another version", document | {"schema": 2}
    yield "with a number for a text", document | {"model": 3}


def test_another_document_is_refused(said: Callable[[str], Any], schema: Callable[[str], dict[str, Any]]) -> None:
    valid = jsonschema.Draft202012Validator(schema("export"))
    document = said("export tiny.toml --fp16 " + SPOKEN["export"].split("--fp16 ")[1])
    assert valid.is_valid(document)
    for what, other in spoiled(document):
        assert not valid.is_valid(other), what
    deep = json.loads(json.dumps(document))
    deep["artifacts"][0]["size_bytes"] = "many"
    assert not valid.is_valid(deep)


def test_every_verb_with_json_has_a_schema(run: Run) -> None:
    for name, verb in VERBS.items():
        out = run(name, "-h").out
        assert ("--json " in out) == bool(verb.documents), name
        assert ("--json-schema " in out) == bool(verb.documents), name


def test_a_schema_needs_no_argument_of_the_verb_and_no_file(run: Run) -> None:
    result = run("evaluate", "--json-schema")
    assert (result.code, result.err) == (0, "")
