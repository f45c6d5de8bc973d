"""``skdeploy evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skdeploy.cli.accuracy import (
    AllowInconclusive,
    AsJson,
    AssumeImagenet,
    BatchSize,
    ClassOrder,
    Confidence,
    Data,
    Fresh,
    Junit,
    Markdown,
    MaxDrop,
    NumImages,
)
from skdeploy.cli.backend import Backend, BackendOption


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="The folder that an export made.")],
    data: Data,
    class_order: ClassOrder = None,
    num_images: NumImages = None,
    max_drop: MaxDrop = None,
    confidence: Confidence = 95.0,
    allow_inconclusive: AllowInconclusive = False,
    artifact: Annotated[
        list[str] | None,
        typer.Option(
            help="A file of the bundle, or torch; may be given again.  [default: the last graph, and engines that run here]"
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="What the drop is from: a file of the bundle, torch, or another bundle.  [default: FP32 graph]"
        ),
    ] = None,
    require_engine: Annotated[
        bool,
        typer.Option(
            "--require-engine", help="An engine that cannot run here is an error, with exit code 3, not a note."
        ),
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(help="A committed file of --save-baseline: each artifact in it must have as many images right."),
    ] = None,
    baseline_drop: Annotated[
        float, typer.Option(help="How far below --baseline is allowed, in percentage points of top-1.")
    ] = 0.2,
    save_baseline: Annotated[
        Path | None, typer.Option(help="Write how many images each artifact has right to this file, to be committed.")
    ] = None,
    receipt: Annotated[
        bool,
        typer.Option("--receipt", help="Write the accuracy measured here, on this device, to the bundle's receipts/."),
    ] = False,
    backend: Backend = None,
    backend_option: BackendOption = None,
    batch: BatchSize = 8,
    fresh: Fresh = False,
    assume_imagenet: AssumeImagenet = False,
    junit: Junit = None,
    markdown: Markdown = None,
    json: AsJson = False,
) -> None:
    """Measure accuracy on labelled images, paired with the FP32 graph, and hold the drop to a budget.

    Changes no artifact: the result goes to the bundle's evidence/. An interrupted run goes on where it was:
    predictions are in ~/.cache/skdeploy.
    """
    from skdeploy.accuracy.baseline import compare_with_baseline, read_baseline, write_baseline
    from skdeploy.accuracy.evaluate import EvaluationOptions
    from skdeploy.accuracy.evaluate import evaluate as run
    from skdeploy.accuracy.facts import read_facts
    from skdeploy.accuracy.verdict import decide_verdict
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.cli.accuracy import finish
    from skdeploy.cli.console import ConsoleProgress
    from skdeploy.core.files import require_places

    options = EvaluationOptions(
        data=data,
        class_order=class_order,
        num_images=num_images,
        max_drop=max_drop,
        confidence=confidence,
        artifacts=tuple(artifact or ()),
        against=against,
        batch=batch,
        require_engine=require_engine,
        fresh=fresh,
        receipt=receipt,
        backend=backend,
        backend_options=tuple(backend_option or ()),
        assume_imagenet=assume_imagenet,
    )
    known = read_baseline(baseline) if baseline is not None else None
    require_places(junit, markdown, save_baseline)
    with ConsoleProgress() as progress:
        evaluation = run(bundle, options, progress)
    if known is not None and baseline is not None:
        compared = compare_with_baseline(evaluation, known, baseline_drop, baseline)
        evaluation = evaluation.model_copy(update={"baseline": compared})
    if save_baseline is not None:
        write_baseline(save_baseline, evaluation)
    facts = read_facts(load_bundle(bundle))
    facts.accuracy, facts.outdated = evaluation, [name for name in facts.outdated if name != "accuracy"]
    verdict = decide_verdict(facts)
    finish(evaluation, verdict, as_json=json, junit=junit, markdown=markdown, allow_inconclusive=allow_inconclusive)
