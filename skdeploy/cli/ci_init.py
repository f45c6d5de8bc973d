"""``skdeploy ci-init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from skdeploy.cli.arguments import BundleFolder, ClassOrder
from skdeploy.core.panel import Panel


def ci_init(
    bundle: BundleFolder,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Labelled images in the repository, as for `evaluate`. Without them the job checks parity only.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    class_order: ClassOrder = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Largest allowed drop against the FP32 graph, in percentage points of top-1.  [default: not checked]",
            rich_help_panel=Panel.ACCURACY,
        ),
    ] = None,
    provider: Annotated[
        Literal["github", "gitlab"], typer.Option(help="The CI that runs the job.", rich_help_panel=Panel.OUTPUT)
    ] = "github",
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite existing files.", rich_help_panel=Panel.OUTPUT)
    ] = False,
) -> None:
    """Write a CI job that checks the parity and accuracy of this bundle's network in your own repository.

    Run it in the repository. The job exports the network again, verifies it, and compares its accuracy with a baseline
    that is measured now. Nothing is committed.

    Examples:
        skdeploy ci-init build/mynet-int8 --data eval/
        skdeploy ci-init build/mynet-int8 --data eval/ --max-drop 1 --provider gitlab
    """
    from skdeploy.core.listing import some
    from skdeploy.report.progress import ConsoleProgress
    from skdeploy.report.terminal import Terminal
    from skdeploy.serve.ci import CiOptions, init_ci
    from skdeploy.serve.workflow import command

    with ConsoleProgress() as progress:
        found = init_ci(bundle, CiOptions(data, max_drop, class_order, provider, force), progress)
    terminal = Terminal()
    terminal.headline(f"wrote {', '.join(found.written)}")
    for one in found.evaluation.accuracies if found.evaluation else ():
        terminal.say(f"baseline: {one.artifact} has {one.top1.correct:,} of {one.images:,} images right")
    if found.evaluation is None:
        terminal.warn("no --data: the job checks parity, and no accuracy")
    for note in found.notes:
        terminal.warn(note)
    if found.uncommitted:
        terminal.warn(
            f"CI reads {len(found.uncommitted)} files that are not committed: {some(found.uncommitted)}. "
            "Commit them, large ones with `git lfs track`, or let a step before Export fetch them"
        )
    force_words = ["--force"] if found.ignored else []
    terminal.say(
        "next: " + " ".join(command("git", "-C", str(found.root), "add", *force_words, *found.written).split("\\\n")),
        whole=True,
    )
