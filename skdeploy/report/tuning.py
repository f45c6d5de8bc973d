"""The findings of ``skdeploy tune``: every way that was tried, in a table, and the verdict on the best."""

from __future__ import annotations

from skdeploy.accuracy.quality import QualityDrop
from skdeploy.core.significant import significant
from skdeploy.report.blocks import (
    Block,
    Cell,
    Finding,
    Outcome,
    Section,
    Table,
    Text,
    columns,
    counted,
    decibels,
    percent,
)
from skdeploy.tuning.error import ErrorReport
from skdeploy.tuning.report import Tried, TunePlan, TuneReport

OUTCOMES: dict[str | None, Outcome] = {"pass": "pass", "fail": "fail", "inconclusive": "undecided", None: "note"}


def tune_findings(report: TuneReport) -> Section:
    """The winner's verdict, every way that was tried, and how to export the winner."""
    pair = report.confirmed
    judged = "the rest" if isinstance(pair, ErrorReport) else "the drop"
    blocks: list[Block] = [
        Finding("tune", report.winner, OUTCOMES[pair.decision], pair.sentence),
        _table(report),
        Text(
            "* chosen; + no other is better in both cost and accuracy. SQNR is on "
            f"{counted(report.screening, report.one)}, {judged} on the {report.choosing:,} that choose; the "
            f"{report.confirming:,} that judge the winner chose nothing"
        ),
    ]
    if isinstance(pair, ErrorReport) and pair.decision is None:
        blocks.append(
            Text("give --min-sqnr DB to set a limit; without it, the cheapest way with the highest SQNR wins")
        )
    blocks += [Text(f"{row.name} cannot be made: {row.refused}", "warn") for row in report.tried if row.refused]
    if report.device is None:
        blocks.append(Text("give --device NAME to choose by predicted latency; without it, by what is INT8"))
    if report.recipe is not None:
        blocks += [Text(f"recipe: {report.recipe}"), Text(f"next: {report.export}")]
    else:
        blocks.append(Text(f"no recipe is written; the winner again: {report.export}"))
    lead = f"{counted(len(report.tried), 'way')} tried on {counted(report.images, report.sample)} of {report.dataset}"
    return Section("tune", "Tuning", lead, tuple(blocks))


def plan_findings(plan: TunePlan) -> Section:
    """The ways that a run would try, and on which images."""
    rows = tuple((Cell(str(number)), Cell(name)) for number, name in enumerate(plan.candidates, 1))
    lead = (
        f"{counted(len(plan.candidates), 'way')} would be screened on {counted(plan.screening, plan.one)}, the best run on "
        f"{plan.choosing:,} and the winner on {plan.confirming:,} others; units are kept in the fallback only if needed"
    )
    return Section("tune", "Tuning", lead, (Table("what would be tried", columns(">number", "way"), rows),))


def _table(report: TuneReport) -> Table:
    by_error = isinstance(report.confirmed, ErrorReport)
    through = "where the way came through the screening"
    heads = columns(
        "",
        "way",
        ">SQNR",
        (">on all", f"SQNR on all that choose, {through}")
        if by_error
        else (">drop", f"{report.unit[0].upper()}{report.unit[1:]}, {through}"),
        (">at least", "Lower bound of the SQNR") if by_error else (">at most", "Upper bound of the drop"),
        (">INT8", "Share of the multiply-accumulates"),
        (">predicted", "The planner's floor, ms"),
        (">measured", "Median on this machine, ms"),
    )
    rows = tuple(_row(row) for row in report.tried)
    empty = [
        label
        for label, values in (
            ("predicted", [row.predicted_ms for row in report.tried]),
            ("measured", [row.measured_ms for row in report.tried]),
        )
        if all(value is None for value in values)
    ]
    return Table("every way that was tried, the best first", heads, rows, least=5).without(*empty)


def _row(row: Tried) -> tuple[Cell, ...]:
    mark = "*" if row.chosen else "+" if row.on_front else ""
    pair = row.pair
    if row.refused:
        return (Cell("!"), Cell(row.name), *(Cell("") for _ in range(6)))
    form = "+.3g" if isinstance(pair, QualityDrop) else "+.2f"
    if isinstance(pair, ErrorReport):
        drop = (decibels(pair.sqnr_db), decibels(pair.low_db))
    else:
        drop = (Cell(""), Cell("")) if pair is None else (_signed(pair.drop, form), _signed(pair.drop_high, form))
    return (
        Cell(mark),
        Cell(row.name),
        decibels(row.sqnr_db),
        *drop,
        percent(row.int8_mac_share),
        _ms(row.predicted_ms),
        _ms(row.measured_ms),
    )


def _signed(value: float, form: str) -> Cell:
    return Cell(format(value, form), value)


def _ms(value: float | None) -> Cell:
    return Cell("") if value is None else Cell(f"{significant(value)} ms", value)
