"""The text of a CI job: the same commands as a GitHub workflow and as a GitLab pipeline."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import indent
from typing import Final, Literal

from skdeploy.core.version import __version__

Provider = Literal["github", "gitlab"]

SUITES: Final = ("all",)  # what an export has not tried yet
FOLDER: Final = "build/skdeploy-ci"
BUNDLE: Final = f"{FOLDER}/bundle"
PLACES: Final[dict[Provider, str]] = {"github": ".github/workflows/skdeploy.yml", "gitlab": ".gitlab-ci.yml"}
PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
HEAD: Final = f"# Written by `skdeploy ci-init`, skdeploy {__version__}. Change it as you like.\n"

_SUMMARY: Final = f"""\
for page in {FOLDER}/verify.md {FOLDER}/evaluate.md; do
  if [ -f "$page" ]; then cat "$page" >> "$GITHUB_STEP_SUMMARY"; fi
done
"""


@dataclass(frozen=True)
class Job:
    """The parts of a job. ``requirement`` is what pip installs; ``export`` and ``evaluate`` are the words after the verb,
    those of ``evaluate`` None without labelled images; ``images`` are for parity, the card's own if empty.
    """

    requirement: str
    export: tuple[str, ...]
    evaluate: tuple[str, ...] | None = None
    images: str = ""

    @property
    def commands(self) -> dict[str, str]:
        """The steps that pass or fail, by their names, as text for a shell."""
        images = ["--images", self.images] if self.images else []
        found = {
            "Install": command("python", "-m", "pip", "install", self.requirement),
            "Export": command("skdeploy", "export", *self.export, "--output", BUNDLE),
            "Verify": command(
                "skdeploy",
                "verify",
                BUNDLE,
                *(word for suite in SUITES for word in ("--suite", suite)),
                *images,
                *_pages("verify"),
            ),
        }
        if self.evaluate is not None:
            found["Evaluate"] = command("skdeploy", "evaluate", BUNDLE, *self.evaluate, *_pages("evaluate"))
        return found


def _pages(name: str) -> tuple[str, ...]:
    return ("--junit", f"{FOLDER}/{name}.xml", "--markdown", f"{FOLDER}/{name}.md")


def command(*words: str) -> str:
    """A command for a shell, each option on a line of its own."""
    text = ""
    for word in words:
        text += (" \\\n  " if word.startswith("--") else " ") + shlex.quote(word)
    return text.strip() + "\n"


def text_of(job: Job, provider: Provider) -> str:
    """The file for the provider, as YAML."""
    return HEAD + {"github": _github, "gitlab": _gitlab}[provider](job)


def _github(job: Job) -> str:
    steps = [_step(name, text) for name, text in job.commands.items()]
    report = command("skdeploy", "report", BUNDLE, "--output", f"{FOLDER}/report.html")
    exported = "${{ !cancelled() && steps.export.outcome == 'success' }}"
    steps += [_step("Report", report, exported), _step("Summary", _SUMMARY, "${{ !cancelled() }}")]
    return f"""\
name: skdeploy
on: [push, pull_request]
permissions:
  contents: read
jobs:
  skdeploy:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
        with:
          lfs: true # weights and images may be in Git LFS
      - uses: actions/setup-python@v5
        with:
          python-version: "{PYTHON}"
{indent("".join(steps), " " * 6)}\
      - name: Upload
        if: ${{{{ !cancelled() }}}}
        uses: actions/upload-artifact@v4
        with:
          name: skdeploy
          path: {FOLDER}
"""


def _step(name: str, text: str, condition: str = "") -> str:
    lines = [f"- name: {name}", f"  id: {name.lower()}"]
    lines += [f"  if: {condition}"] if condition else []
    return "\n".join([*lines, "  run: |", indent(text, " " * 4)])


def _gitlab(job: Job) -> str:
    return f"""\
skdeploy:
  image: python:{PYTHON}
  script:
{_lines(job.commands.values())}\
  after_script:
{_lines([command("skdeploy", "report", BUNDLE, "--output", f"{FOLDER}/report.html")])}\
  artifacts:
    when: always
    paths: [{FOLDER}]
    reports:
      junit: {FOLDER}/*.xml
"""


def _lines(commands: Iterable[str]) -> str:
    return "".join(f"    - |\n{indent(text, ' ' * 6)}" for text in commands)
