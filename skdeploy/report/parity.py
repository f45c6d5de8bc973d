"""How near each artifact is to torch, on images and other inputs, run again and built again."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Final

from skdeploy.backends.metrics import decibels_text
from skdeploy.bundle.contents import PARITY
from skdeploy.bundle.folder import Bundle
from skdeploy.core.spec import ModelSpec, Tolerance
from skdeploy.parity.report import MEMORY, Comparison, ParityReport, Rebuild, SuiteResult, suite_name
from skdeploy.parity.tasks import task_of, tolerance_of
from skdeploy.parity.worst_image import WorstImage
from skdeploy.report.blocks import (
    JUDGED,
    Block,
    Cell,
    Figure,
    Finding,
    Fold,
    Legend,
    Pictures,
    Section,
    Table,
    Text,
    columns,
    counted,
    decibels,
    digest,
    judged,
    name,
    number,
    size,
)
from skdeploy.report.findings import Findings
from skdeploy.report.plots import Axis, Row, rows_figure
from skdeploy.report.task_figures import FigureColumns, outputs_tables, unknown_margins
from skdeploy.report.worst import worst_pictures

FLAT_DB = 160.0  # float32 has 24 bits, 144 dB: what is above is no difference that can be seen, and not drawn
NOTHING = Cell("", math.nan)
OF_THE_LINE = ("precision", "size", "time", "sha256")  # what the page tells of each artifact in the section above


def parity_section(found: Findings) -> Section:
    """The findings of what was compared, and the SQNR of each artifact as a drawing."""
    report = found.parity
    if report is None:
        command = f"skdeploy verify {found.shell_folder}"
        text = "No parity is recorded for these artifacts."
        if found.bundle.manifest.verdict == "incomplete":
            command, text = "", "The export did not come to the comparison with torch."
        return found.absent("parity", "Parity", text, command, of=PARITY)
    section = parity_findings(found.bundle, report)
    artifacts = artifacts_table(found.bundle, report).without(*OF_THE_LINE)
    compared = replace(artifacts, rows=tuple(row for row in artifacts.rows if row[1].text))
    measured = [c for c in report.comparisons if c.metrics is not None]
    figure = (_parity_figure(measured, found.bundle.manifest.model),) if measured else ()
    worst = (_worst(report.worst, report),) if report.worst is not None else ()
    return replace(section, blocks=(compared, *figure, *worst, *section.blocks[1:]))


def _worst(worst: WorstImage, report: ParityReport) -> Pictures:
    said = f"is the worst of {counted(report.images, report.sample)}: {worst.pictures.apart}"
    return worst_pictures(worst, f"The worst {report.sample}", said)


def parity_findings(
    bundle: Bundle, report: ParityReport | None, *, reused: Collection[str] = (), required: bool = False
) -> Section:
    """The table of artifacts with their errors and limits; why some failed or did not run; then all else that was compared.

    ``reused`` were kept by this export. With ``required``, an engine that ran neither here nor on a device failed.
    """
    table = artifacts_table(bundle, report, reused, required)
    if report is None:
        return Section("parity", "Parity", "no parity is recorded for these artifacts", (table,))
    blocks: list[Block] = [table, *outputs_tables(report)]
    blocks += [Text(reason, JUDGED[_state(c)][1]) for c in report.comparisons for reason in c.reasons]
    blocks += [Text(said) for said in unknown_margins(report)]
    if (batch := report.batch_invariance) is not None:
        sizes = ", ".join(map(str, batch.batches))
        text = batch.problem or f"batch size does not change the result ({sizes} tried)"
        by = f"within {batch.max_rel_error:.1e} of the largest value; " if not batch.problem else ""
        limit = f": {by}{batch.tolerance:g} is allowed" if batch.max_rel_error else ""
        said = f"{batch.artifact}: {text}{limit}"
        blocks.append(Finding("batch", batch.artifact, JUDGED[batch.verdict][2], said))
    repeated = [*_run_to_run(report), *map(_rebuild, report.rebuilds)]
    blocks += [finding for finding in repeated if finding.outcome == "fail"]
    if report.reference_sqnr_db is not None:
        blocks.append(Text(f"torch's own float32 is {decibels_text(report.reference_sqnr_db)} from its float64"))
    others: list[Block] = [finding for finding in repeated if finding.outcome != "fail"]
    if report.suites:
        others += _suites(report)
    if others:
        runs = len(report.suites) + len(report.run_to_run) + len(report.rebuilds)
        blocks.append(Fold(f"Other inputs, runs and builds: {counted(runs, 'comparison')}", tuple(others)))
    return Section("parity", "Parity", f"against {report.reference}, on {report.images_text}", tuple(blocks))


def receipt_findings(report: ParityReport) -> Iterator[Finding]:
    """Records of devices about the artifacts."""
    told = set()
    for c in report.comparisons:  # an artifact that ran on two backends has two rows with the same receipts
        for receipt in (each for each in c.receipts if each.path not in told):
            told.add(receipt.path)
            text = f"{c.artifact}: {receipt.kind} {JUDGED[receipt.verdict][0]} on {receipt.place}"
            yield Finding("receipt", receipt.path, JUDGED[receipt.verdict][2], text)


ERRORS: Final = (
    (">SQNR", "Signal to noise of the worst {}: 10 log10(sum ref^2 / sum error^2)"),
    (">max error", "Largest error of any value, relative to the largest value"),
)
OTHER_ERRORS: Final = (
    (">SQNR, all", "Signal to noise of all {}s together"),
    (">cosine", "Of the worst {}"),
)


def _of(word: str, heads: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Columns with what one input is called in their hints."""
    return tuple((label, hint.format(word)) for label, hint in heads)


def artifacts_table(
    bundle: Bundle, report: ParityReport | None, reused: Collection[str] = (), required: bool = False
) -> Table:
    """A row for each backend that an artifact was run on. The columns that decide come first: a terminal may be narrow."""
    comparisons = report.comparisons if report is not None else ()
    measured = [c.metrics for c in comparisons if c.metrics is not None]
    spec, figures = bundle.manifest.model, FigureColumns.of(measured)
    classes = task_of(spec).has_classes and (not measured or any(each.same_class is not None for each in measured))
    floats = not measured or any(metrics.max_rel_error is not None for metrics in measured)
    before, after = figures.heads[: figures.deciding], figures.heads[figures.deciding :]
    heads = (
        *columns("artifact", "parity"),
        *before,
        *(columns(*_of(spec.sample_word, ERRORS)) if floats else ()),
        *(columns((">same class", f"{spec.sample_word.capitalize()}s with the same top class")) if classes else ()),
        *after,
        *columns(
            "precision",
            ">size",
            ">time",
            "backend",
            *(_of(spec.sample_word, OTHER_ERRORS) if floats else ()),
            "sha256",
        ),
    )
    rows = []
    for artifact in bundle.manifest.artifacts:
        if artifact.format == "json":
            continue
        time = "kept" if artifact.path in reused else f"{artifact.provenance.seconds:.1f} s"
        path, precision = name(artifact.path), Cell(artifact.words)
        tail = (precision, size(artifact.size_bytes), Cell(time, artifact.provenance.seconds))
        runs = [c for c in comparisons if c.artifact == artifact.path]
        for c in runs:
            state = judged(_state(c), c.proof.device if c.proof and not c.metrics else "", "; ".join(c.reasons))
            if required and state.outcome == "skip":
                state = replace(state, tone="bad", outcome="fail")
            allowed = tolerance_of(spec, c.precision)
            worst, error, same, sqnr, cosine = _figures(c, allowed)
            own = figures.cells(c.metrics, allowed)
            first = (path, state, *own[: figures.deciding], *((worst, error) if floats else ()))
            last = (Cell(c.backend), *((sqnr, cosine) if floats else ()), digest(artifact.sha256))
            rows.append((*first, *((same,) if classes else ()), *own[figures.deciding :], *tail, *last))
        if not runs:
            empty = (NOTHING,) * ((2 if floats else 0) + bool(classes) + len(figures.names))
            others = (NOTHING,) * (2 if floats else 0)
            rows.append((path, Cell(""), *empty, *tail, Cell(""), *others, digest(artifact.sha256)))
    place = next(place for place, column in enumerate(heads) if column.label == "backend")
    case = f"{{0}} on {{{place}}}"
    return Table("artifacts", heads, tuple(rows), PARITY, least=2, notes_last=True, group="parity", case=case)


def _figures(c: Comparison, allowed: Tolerance) -> tuple[Cell, ...]:
    """SQNR of the worst image, largest error, agreement, SQNR of all and cosine, with the limits."""
    metrics = c.metrics
    if metrics is None:
        return (NOTHING,) * 5
    same = metrics.same_class
    agreed = f"{same:,} of {metrics.images:,}" if same is not None else ""
    share = Cell(agreed, math.nan if metrics.top1_agreement is None else metrics.top1_agreement)
    if metrics.max_rel_error is None or metrics.min_cosine is None:
        return (NOTHING, NOTHING, share, NOTHING, NOTHING)
    return (
        replace(decibels(metrics.min_sqnr_db), note=f"at least {allowed.min_sqnr_db:g}"),
        replace(number(metrics.max_rel_error, ".1e"), note=f"at most {allowed.max_rel_error:g}"),
        share,
        decibels(metrics.sqnr_db),
        replace(number(metrics.min_cosine, ".6f"), note=f"at least {allowed.min_cosine:g}"),
    )


def _state(c: Comparison) -> str:
    return "receipt" if c.verdict == "unproven" and c.proof is not None else c.verdict


def _run_to_run(report: ParityReport) -> Iterator[Finding]:
    """How much two runs of the same batch differ."""
    for run in report.run_to_run:
        place = f"{run.artifact} on {run.backend}"
        differ = f"{run.differing:,} of {run.values:,} values differ, by {run.max_rel_error:.1e} of the largest"
        said = run.problem or (f"run twice, {differ}" if run.differing else "run twice, the same bits")
        yield Finding("run_to_run", place, run.verdict, f"{place}: {said}")


def _rebuild(again: Rebuild) -> Finding:
    """How much two builds of an engine differ."""
    versions = "" if again.built_by == again.rebuilt_by else f" ({again.built_by} then, {again.rebuilt_by} now)"
    if again.sha256 == again.rebuilt_sha256:
        found = "the same bytes"
    else:
        sizes = f"{again.size_bytes:,} and {again.rebuilt_size_bytes:,}"
        found = f"another file: {again.differing_bytes:,} bytes differ, of {sizes}"
    logits = ""
    if again.logits is not None:
        error = again.logits.max_rel_error
        logits = again.logits.figures_text if error is None else f"logits within {error:.1e} of the largest"
    logits = "; ".join(again.problems) or logits or f"logits not compared: {again.reason}"
    text = f"{again.artifact}, built again with {again.compiler}{versions}: {found}; {logits}"
    return Finding("rebuild", again.artifact, "fail" if again.problems else JUDGED[again.verdict][2], text)


def _suites(report: ParityReport) -> Iterator[Block]:
    """Inputs other than images, and why some of them are not judged."""
    heads = columns("inputs", "artifact", "verdict", ">error", ">allowed", "backend")
    rows = tuple(
        (
            Cell(suite_name(result)),
            name(result.artifact),
            judged(result.verdict, hint="; ".join(result.problems)),
            _error(result),
            NOTHING if result.allowed is None else number(result.allowed),
            Cell(result.backend),
        )
        for result in report.suites
    )
    against = (
        f", against {report.suites_reference}; the saved outputs are of other inputs" if report.suites_reference else ""
    )
    yield Table(
        f"errors on inputs other than {report.sample}s{against}",
        heads,
        rows,
        PARITY,
        least=5,
        group="suite",
        case="{0}: {1} on {5}",
    )
    for result in report.suites:
        for problem in result.problems:
            yield Text(f"{suite_name(result)}: {result.artifact} on {result.backend}: {problem}", "bad")
    for note in dict.fromkeys(result.note for result in report.suites if result.note):
        yield Text(f"not judged: {note}")


def _error(result: SuiteResult) -> Cell:
    if result.suite == MEMORY and not result.error:
        return Cell("the same bits", 0.0)
    return Cell("finite", math.nan) if result.error is None else number(result.error, ".1e")


def _parity_figure(measured: list[Comparison], spec: ModelSpec) -> Figure:
    rows, values = [], [0.0]
    for c in measured:
        assert c.metrics is not None  # chosen so
        limit = tolerance_of(spec, c.precision).min_sqnr_db
        worst, every = (min(db or 0.0, FLAT_DB) for db in (c.metrics.min_sqnr_db, c.metrics.sqnr_db))
        values += [worst, every, limit]
        text = decibels_text(c.metrics.min_sqnr_db)
        rows.append(
            Row(c.artifact, text, bar=(None, worst), marks=((0, every),), limit=limit, tone=JUDGED[c.verdict][1])
        )
    axis = Axis.linear(values, f"SQNR of the {'outputs' if spec.outputs else 'logits'} (dB), more is better")
    word = spec.sample_word
    caption = f"Bar: worst {word}. Upright stroke: the least that the card allows for the precision."
    return rows_figure(
        "Signal to noise of each artifact", caption, rows, axis, legend=(Legend(0, f"all {word}s", line=False),)
    )
