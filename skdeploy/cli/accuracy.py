"""Options that ``evaluate`` shares with other verbs, and what it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

if TYPE_CHECKING:
    from skdeploy.accuracy.gate import Evaluation
    from skdeploy.accuracy.verdict import Verdict

READABLE_CLASSES: Final = 20

Data = Annotated[
    Path,
    typer.Option(
        help="Labelled images: class folders, a .txt list of `path,label`, an .npz with images and labels, or a folder that "
        "holds an evaluation.npz."
    ),
]
ClassOrder = Annotated[
    Literal["number", "name"] | None,
    typer.Option(
        help="How class folders are counted: by the number that is a folder's name, or by name, as torchvision's ImageFolder "
        "does.  [default: the card's labels, its class_order, or the only order there is]"
    ),
]
NumImages = Annotated[
    int | None, typer.Option(help="How many images, evenly spread over the classes' order.  [default: all]")
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        help="The budget in percentage points of top-1: pass (0) if the drop is within it with the confidence asked for, "
        "fail (10) if it is beyond it; where the images are too few to tell, 10 too, unless --allow-inconclusive."
    ),
]
Confidence = Annotated[
    float, typer.Option(help="Of each bound of the drop, one-sided, and of the intervals, in per cent.")
]
AllowInconclusive = Annotated[
    bool, typer.Option("--allow-inconclusive", help="Too few images to decide is no failure: exit with 0, and say so.")
]
BatchSize = Annotated[int, typer.Option("--batch", help="Images that are run at a time.")]
AssumeImagenet = Annotated[
    bool,
    typer.Option(
        "--assume-imagenet",
        help="Confirm that ImageNet's preprocessing is right, where neither card nor user gave one.",
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Predict anew what an earlier run of the same has predicted.")]
Junit = Annotated[Path | None, typer.Option(help="Write the checks as JUnit XML to this file.")]
Markdown = Annotated[Path | None, typer.Option(help="Write a summary for a job's page to this file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]


def finish(
    evaluation: Evaluation,
    verdict: Verdict,
    *,
    as_json: bool,
    junit: Path | None,
    markdown: Path | None,
    allow_inconclusive: bool,
) -> None:
    """Writes and prints all, and only then lets the gate fail: with --json, the error is a key of the one object on stdout."""
    from skdeploy.cli.console import end_with, error_json, error_of, print_verdict
    from skdeploy.report.ci import write_evaluation

    write_evaluation(
        evaluation, junit=junit, summary=markdown, allow_inconclusive=allow_inconclusive, verdict=verdict.text
    )
    if not as_json:
        print_verdict(verdict)
        print_evaluation(evaluation)
        evaluation.check(allow_inconclusive=allow_inconclusive)
        return
    content = evaluation.model_dump(mode="json") | {"decision": evaluation.verdict, "verdict": verdict.json()}
    error = error_of(lambda: evaluation.check(allow_inconclusive=allow_inconclusive))
    content |= error_json(error)
    # a confusion matrix of 1,000 classes is a million numbers, each on a line of its own
    json.dump(content, sys.stdout, indent=2 if len(evaluation.classes) <= READABLE_CLASSES else None)
    sys.stdout.write("\n")
    end_with(error)


def print_evaluation(evaluation: Evaluation) -> None:
    """The table of artifacts, the weakest classes, the pairs, and what is not covered."""
    from rich.markup import escape
    from rich.table import Table

    from skdeploy.cli.console import output_console
    from skdeploy.report.ci import evaluation_notes, share_text

    console = output_console()
    console.print(
        escape(f"{evaluation.kind} on {evaluation.images:,} images of {evaluation.dataset}"),
        style="italic",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    for column in ("artifact", "backend", "precision", "top-1", "top-5"):
        table.add_column(column, overflow="fold", justify="right" if column.startswith("top") else "left")
    for report in evaluation.accuracies:
        top5 = share_text(report.top5) if report.top5 else ""
        table.add_row(escape(report.artifact), report.backend, report.precision, share_text(report.top1), top5)
    console.print(table)
    last = evaluation.accuracies[-1]
    seen = [row for row in last.per_class if row.top1.accuracy is not None]
    weakest = sorted(seen, key=lambda row: row.top1.accuracy or 0)[:3]
    console.print(
        escape(
            f"weakest classes of {last.artifact}: "
            + "; ".join(f"{row.label} {share_text(row.top1)}" for row in weakest)
        ),
        soft_wrap=True,
    )
    marks = {"pass": "[green]✓[/green] ", "fail": "[red]✗[/red] ", "inconclusive": "[yellow]?[/yellow] ", None: ""}
    for pair in evaluation.pairs:
        console.print(f"{marks[pair.decision]}{escape(pair.sentence)}", soft_wrap=True)
        counts = pair.pairs
        logits = (
            f"; logits within {pair.logits.max_rel_error:.1e}, SQNR {pair.logits.sqnr_db:.1f} dB" if pair.logits else ""
        )
        console.print(
            f"  both right {counts.both_right:,}, only the first {counts.only_first:,}, "
            f"only the second {counts.only_second:,}, both wrong {counts.both_wrong:,}; "
            f"McNemar p {pair.mcnemar_p:.2g}; same class {pair.agreement:.2%}{logits}",
            soft_wrap=True,
        )
    for row in evaluation.baseline.rows if evaluation.baseline else ():
        console.print(f"{marks[row.verdict]}{escape(row.sentence)}", soft_wrap=True)
    for note in evaluation_notes(evaluation):
        console.print(f"[yellow]![/yellow] {escape(note)}", soft_wrap=True)
    for absent in evaluation.not_evaluated:
        console.print(
            f"[yellow]not evaluated here:[/yellow] {escape(absent.artifact)}: {escape(absent.reason)}", soft_wrap=True
        )
