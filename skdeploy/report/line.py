"""The artifacts in the order they were made, what made them, and how to make and check them again."""

from __future__ import annotations

import shlex

from pydantic import JsonValue

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.contents import RANGES
from skdeploy.core.architecture import DescribedSpec
from skdeploy.core.spec import ModelSpec
from skdeploy.line.export import words_of
from skdeploy.line.reproduce import options_that_made, weights_that_made
from skdeploy.report.blocks import (
    Block,
    Cell,
    Command,
    Facts,
    Fold,
    Line,
    Section,
    Station,
    Table,
    Text,
    columns,
    digest,
    judged,
    name,
    size_text,
)
from skdeploy.report.bundle import engine_texts
from skdeploy.report.findings import Findings
from skdeploy.report.verdict import comparisons_of, state_of


def line_section(found: Findings) -> Section:
    """Every artifact with its digest, size, precision, what it was made from and in what time."""
    artifacts = found.bundle.manifest.artifacts
    largest = max((a.size_bytes for a in artifacts), default=1)
    names = {a.path for a in artifacts}
    stations = tuple(_station(found, a, names, largest) for a in artifacts)
    seconds = sum(a.provenance.seconds for a in artifacts)
    lead = (
        f"{len(artifacts)} artifacts, {size_text(sum(a.size_bytes for a in artifacts))} together, made in {seconds:.1f} s. "
        "Each is bound to its SHA-256 digest, and all digests were checked when this report was made."
    )
    if not artifacts:
        return Section("line", "The line", "No artifact was made before the export was cut off.", ())
    return Section("line", "The line", lead, (Line(stations), *engine_texts(found.bundle)))


def _station(found: Findings, artifact: Artifact, names: set[str], largest: int) -> Station:
    runs = artifact.format in ("onnx", "engine")
    state = judged(state_of(found, artifact.path)) if runs else Cell("")
    backends = ", ".join(c.backend for c in comparisons_of(found, artifact.path) if c.verdict != "unproven")
    return Station(
        path=artifact.path,
        does=words_of(artifact.station),
        made_from=tuple(parent for parent in artifact.provenance.parents if parent in names)[:3] if runs else (),
        precision=artifact.words,
        size=size_text(artifact.size_bytes),
        share=artifact.size_bytes / max(largest, 1),
        sha256=artifact.sha256,
        seconds=f"{artifact.provenance.seconds:.1f} s",
        state=f"{state.text} on {backends}" if backends else state.text,
        tone=state.tone,
        minor=artifact.format in ("json", "cache"),
    )


def provenance_section(found: Findings) -> Section:
    """The card, the weights, and for every artifact the versions and options that it was made with."""
    manifest = found.bundle.manifest
    spec, weights = manifest.model, manifest.weights
    origin = {
        "random": f"random, seed {weights.seed}",
        "checkpoint": f"{weights.repo or ''} {weights.file or 'checkpoint'}".strip(),
    }[weights.source]
    facts = [
        ("Network", f"{spec.name}: {spec.summary}"),
        ("Source", f"{spec.source.paper} {spec.source.url}"),
        ("Licence", spec.source.licence),
        ("Weights", origin + (f", commit {weights.commit}" if weights.commit else "")),
        ("Weights SHA-256", weights.sha256 or "none"),
        *_inputs(spec),
        ("Exported", f"{manifest.created} by skdeploy {manifest.skdeploy}"),
    ]
    rows = [_provenance(artifact) for artifact in manifest.artifacts]
    heads = columns("artifact", "stage", "options", "tools", "key")
    table = Table("What each artifact was made with", heads, tuple(rows), "manifest.json")
    return Section("provenance", "Provenance", "", (Facts(tuple(facts)), Fold("Options and versions", (table,))))


def _inputs(spec: ModelSpec) -> list[tuple[str, str]]:
    if not spec.takes_images:
        sizes = [
            (f"Size {name}", f"{size.usual}, from {size.smallest} to {size.largest} in steps of {size.multiple}")
            for name, size in spec.sizes.items()
        ]
        return [("Input", str(each)) for each in spec.inputs] + sizes
    image, preprocess = spec.input, spec.preprocess
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
    resized = f"shorter side to {preprocess.resize} px ({preprocess.interpolation})"
    if preprocess.resize is None:
        resized = "not resized"
    return [
        ("Input", f"{image.channels} x {image.height} x {image.width} (channels, height, width)"),
        (
            "Preprocessing",
            f"{resized}, centre crop, 0..1, mean {mean}, std {std}",
        ),
    ]


def _provenance(artifact: Artifact) -> tuple[Cell, ...]:
    made = artifact.provenance
    tools = ", ".join(f"{tool} {version}" for tool, version in made.tools.items() if version != "absent")
    options = ", ".join(f"{key}: {_option(value)}" for key, value in made.options.items() if not _is_long(value))
    return (
        name(artifact.path),
        Cell(artifact.station),
        Cell(options or "none"),
        Cell(tools),
        digest(made.key),
    )


def _option(value: JsonValue) -> str:
    match value:
        case dict():
            return "(" + ", ".join(f"{key} {_option(inner)}" for key, inner in value.items()) + ")"
        case list():
            return ", ".join(map(_option, value)) or "none"
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _is_long(value: JsonValue) -> bool:
    """Whether an option is a table that the card has already."""
    return isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values())


def reproduce_section(found: Findings) -> Section:
    """Commands that check this bundle, and that make the same graphs again."""
    blocks: list[Block] = [
        Command("Check every digest, and measure parity again", f"skdeploy verify {found.shell_folder}"),
        Command("Make this report again", f"skdeploy report {found.shell_folder}"),
    ]
    again = export_command(found)
    if again is None:
        blocks.insert(
            0, Text("The network came as a file or a function of your own: export that again, with the options below.")
        )
    else:
        blocks.insert(0, Command("Make the same graphs again, with the tools' versions as under Provenance", again))
    return Section("reproduce", "Reproduce", "", tuple(blocks))


def export_command(found: Findings) -> str | None:
    """The export that made the graphs, if it is recorded; None for a network that no card describes."""
    manifest = found.bundle.manifest
    spec, weights = manifest.model, manifest.weights
    if not isinstance(spec.network, DescribedSpec):
        return None
    named = spec.weights is not None and spec.weights.sha256 == weights.sha256
    words = [
        *([] if named else weights_that_made(weights, weights.file or "CHECKPOINT")),
        *options_that_made(manifest, found.bundle.folder / RANGES),
    ]
    return shlex.join(["skdeploy", "export", spec.name, *words, "--output", "build/again"])
