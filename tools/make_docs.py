"""Writes what the documentation repeats of the code: ``docs/cli.md`` from ``--help``, ``docs/zoo.md`` from the cards, and the
manifest's JSON Schema.

python tools/make_docs.py [--check]      # --check writes nothing and fails if a file is out of date
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ |= {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}  # before typer looks at the terminal

import typer
from typer.testing import CliRunner

from skdeploy.bundle.manifest import manifest_schema
from skdeploy.cli import app
from skdeploy.zoo.cards import packaged, read_card
from skdeploy.zoo.describe import accuracy_text, count_text

ROOT = Path(__file__).resolve().parent.parent


def cli_reference() -> str:
    """All verbs with their help, as Markdown."""
    runner = CliRunner()
    verbs = [command.callback.__name__ for command in app.registered_commands if command.callback]
    parts = ["# Command line\n\nGenerated from `--help` by `make docs`.\n", _section(runner, [])]
    parts += [_section(runner, [verb]) for verb in verbs]
    return "\n".join(parts)


def _section(runner: CliRunner, verb: list[str]) -> str:
    result = runner.invoke(app, [*verb, "--help"], prog_name="skdeploy", catch_exceptions=False)
    if result.exit_code:
        raise typer.Exit(result.exit_code)
    text = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
    return f"## {' '.join(['skdeploy', *verb])}\n\n```\n{text}\n```\n"


def zoo() -> str:
    """Every card's figures and where they come from, as Markdown."""
    folder = packaged("models")
    specs = sorted((read_card(path) for path in folder.rglob("*.toml")), key=lambda spec: spec.name)
    lines = [
        "# The zoo",
        "",
        "Generated from the cards in [models/](../models/README.md) by `make docs`. A test counts the parameters and the",
        "multiply-accumulates (MACs, of one image) of every network. Top-1 is the accuracy in per cent that the source",
        "publishes, or that was measured here for weights that are here; the paper gives errors, at two input sizes, here",
        "subtracted from 100. Weights that do not come with a card are given with `--weights`.",
        "",
        "| card | parameters | MACs | input | top-1 | weights | what it is |",
        "| --- | ---: | ---: | --- | --- | --- | --- |",
    ]
    for spec in specs:
        reference = spec.reference
        parameters = f"{reference.parameters:,}" if reference.parameters else ""
        macs = count_text(reference.macs) if reference.macs else ""
        shape = "x".join(map(str, spec.input.shape))
        weights = f"[{Path(spec.weights.file).name}](../models/{spec.weights.file})" if spec.weights else "none"
        cells = (f"`{spec.name}`", parameters, macs, shape, accuracy_text(spec), weights, spec.summary)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Sources and licences", "", "| card | source | licence |", "| --- | --- | --- |"]
    for spec in specs:
        lines.append(f"| `{spec.name}` | [{spec.source.paper}]({spec.source.url}) | {spec.source.licence} |")
    return "\n".join(lines) + "\n"


GENERATED = {"docs/cli.md": cli_reference, "docs/zoo.md": zoo, "skdeploy/bundle/manifest.schema.json": manifest_schema}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name, make in GENERATED.items():
        path, text = ROOT / name, make()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if check and stale:
        raise SystemExit(f"out of date: {', '.join(stale)}; run `make docs`")


if __name__ == "__main__":
    main()
