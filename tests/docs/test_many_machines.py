"""The jobs of docs/how-to/many-machines.md: what Slurm and Kubernetes ask of them, and that each shard is made once."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

PAGE: Final = Path(__file__).resolve().parents[2] / "docs/how-to/many-machines.md"


def block(language: str) -> str:
    """The page's only block of this language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return str(found)


def syntax(script: str) -> int:
    return subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False).returncode


def problems(job: Any) -> list[str]:
    """What batch/v1 asks of an indexed Job, and the page of its shards."""
    found = []
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    if (job["apiVersion"], job["kind"]) != ("batch/v1", "Job") or not job["metadata"].get("name"):
        found.append("not a Job of batch/v1")
    if spec.get("completionMode") != "Indexed":  # without it there is no JOB_COMPLETION_INDEX
        found.append("not indexed")
    if pod.get("restartPolicy") not in ("Never", "OnFailure"):  # a Job takes no other
        found.append("restartPolicy")
    if "backoffLimitPerIndex" in spec and pod.get("restartPolicy") != "Never":
        found.append("backoffLimitPerIndex needs restartPolicy Never")
    script = container["args"][0]
    counts = {int(count) for count in re.findall(r'--shard "\$shard/(\d+)"', script)}
    if counts != {spec["completions"]}:
        found.append("another number of shards than completions")
    if syntax(script):
        found.append("bash does not parse it")
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    if {mount["name"] for mount in container["volumeMounts"]} - volumes:
        found.append("a mount without a volume")
    return found


def test_the_kubernetes_job_has_what_its_kind_asks_for() -> None:
    assert problems(yaml.safe_load(block("yaml"))) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("completions: 64", "completions: 63", "another number of shards than completions"),
        ("completionMode: Indexed", "completionMode: NonIndexed", "not indexed"),
        ("restartPolicy: Never", "restartPolicy: Always", "restartPolicy"),
        ('"$shard/64" -o "', '"$shard/64" -o ', "bash does not parse it"),
        ("- name: work\n", "- name: other\n", "a mount without a volume"),
    ],
)
def test_a_spoilt_job_is_found(old: str, new: str, problem: str) -> None:
    text = block("yaml")
    assert old in text
    assert problem in problems(yaml.safe_load(text.replace(old, new)))


def test_the_slurm_job_is_one_task_a_shard_and_bash_parses_it() -> None:
    script = block("bash")
    assert script.startswith("#!/bin/bash\n#SBATCH ")  # sbatch reads no directive after the first command
    directives = re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", script, re.MULTILINE)
    assert len(directives) == script.count("#SBATCH")
    first, last = map(int, re.fullmatch(r"(\d+)-(\d+)", dict(directives)["array"]).groups())  # type: ignore[union-attr]  # without a match the test fails here
    assert first == 1
    assert f'--shard "$SLURM_ARRAY_TASK_ID/{last}"' in script
    assert syntax(script) == 0
    assert syntax(script.replace('-o "', "-o ")) != 0
