"""``skdeploy evaluate``."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from skdeploy.cli.arguments import AssumeImagenet, BundleFolder, ClassOrder, Json, Junit, Markdown, Metric
from skdeploy.cli.backend import Backend, BackendOption
from skdeploy.cli.flags import FlagsOf, flattened
from skdeploy.cli.shards import PartOutput
from skdeploy.core.panel import Panel
from skdeploy.shards.division import DivisionOptions

if TYPE_CHECKING:
    from skdeploy.accuracy.gate import Evaluation
    from skdeploy.accuracy.quality import Quality
    from skdeploy.accuracy.verdict import Verdict

READABLE_CLASSES: Final = 20


def _evaluate(
    bundle: BundleFolder,
    division: Annotated[dict[str, Any], FlagsOf(DivisionOptions)],
    data: Annotated[
        Path,
        typer.Option(
            help="Labelled images: class folders, a .txt list of `path,label`, an .npz with images and labels, or a folder "
            "with an evaluation.npz. For other tasks, and with --metric, pairs: folders input/ and target/, or images/ and "
            "masks/, with files of the same names.",
            rich_help_panel=Panel.INPUT,
        ),
    ],
    class_order: ClassOrder = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            help="Use this many images, spread evenly over the classes.  [default: all]", rich_help_panel=Panel.INPUT
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Largest allowed drop: percentage points of top-1, dB of PSNR, points of mIoU, or the unit of --metric. "
            "Exit 0 if the drop is smaller, 10 if it is larger. "
            "Exit 10 also if the images cannot tell, unless --allow-inconclusive: too few, or labels that the reference "
            "only guesses.",
            rich_help_panel=Panel.ACCURACY,
        ),
    ] = None,
    metric: Metric = None,
    confidence: Annotated[
        float,
        typer.Option(
            help="Confidence in percent, for the bound of the drop (one-sided) and for the intervals.",
            rich_help_panel=Panel.ACCURACY,
        ),
    ] = 95.0,
    allow_inconclusive: Annotated[
        bool,
        typer.Option(
            "--allow-inconclusive",
            help="Exit with 0 and a warning if the images cannot decide.",
            rich_help_panel=Panel.ACCURACY,
        ),
    ] = False,
    artifact: Annotated[
        list[str] | None,
        typer.Option(
            help="File of the bundle to evaluate, or torch; repeatable.  [default: the last graph, and engines that run here]",
            rich_help_panel=Panel.ACCURACY,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Compare with this: a file of the bundle, torch, or another bundle.  [default: the FP32 graph]",
            rich_help_panel=Panel.ACCURACY,
        ),
    ] = None,
    require_engine: Annotated[
        bool,
        typer.Option(
            "--require-engine", help="Fail with exit code 3 if an engine cannot run here.", rich_help_panel=Panel.ENGINE
        ),
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="File of --save-baseline; fail if an artifact is worse than in it, on the same images or pairs.",
            rich_help_panel=Panel.ACCURACY,
        ),
    ] = None,
    baseline_drop: Annotated[
        float | None,
        typer.Option(
            help="Largest allowed drop below --baseline: percentage points of top-1, dB of PSNR, points of mIoU, or the "
            "unit of --metric, which needs it.  [default: 0.2]",
            rich_help_panel=Panel.ACCURACY,
        ),
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option(
            help="Write the number of images that each artifact has right, or its first figure of pairs, to this file; "
            "commit it.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    receipt: Annotated[
        bool,
        typer.Option(
            "--receipt",
            help="Save the accuracy measured on this device in the bundle's receipts/.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = False,
    backend: Backend = None,
    backend_option: BackendOption = None,
    batch: Annotated[int, typer.Option("--batch", help="Images or samples per run.", rich_help_panel=Panel.ENGINE)] = 8,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Do not reuse the predictions of an earlier run.", rich_help_panel=Panel.OUTPUT),
    ] = False,
    assume_imagenet: AssumeImagenet = False,
    output: PartOutput = None,
    junit: Junit = None,
    markdown: Markdown = None,
    json: Json = False,
) -> None:
    """Measure accuracy on labelled images or pairs, compare it with the FP32 graph, and fail if the drop is too large.

    Writes the result to the bundle's evidence/. Keeps the predictions of each artifact in ~/.cache/skdeploy:
    an interrupted run continues where it stopped, and FP32 runs once for all that is compared with it.

    Examples:
        skdeploy evaluate build/mynet-int8 --data eval/ --max-drop 1
        skdeploy evaluate build/mynet-int8 --data eval/ --against build/mynet-fp16
    """
    from skdeploy.accuracy.baseline import BASELINE_DROP, Baseline, compare_with_baseline, read_baseline, write_baseline
    from skdeploy.accuracy.evaluate import EvaluationOptions
    from skdeploy.accuracy.evaluate_cluster import evaluate_on
    from skdeploy.accuracy.evaluate_quality import counts_classes, evaluate_any
    from skdeploy.accuracy.evaluate_shards import evaluate_shard, merge_evaluation
    from skdeploy.accuracy.facts import read_facts
    from skdeploy.accuracy.gate import Evaluation
    from skdeploy.accuracy.quality_baseline import QualityBaseline, compare_quality
    from skdeploy.accuracy.quality_shards import merge_quality, quality_on, quality_shard
    from skdeploy.accuracy.verdict import decide_verdict
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.cli.shards import check_division, collector, require_no_gate, write_shard
    from skdeploy.core.errors import UsageError
    from skdeploy.core.files import require_places
    from skdeploy.report.progress import ConsoleProgress

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
        metric=metric,
        output=output,
    )
    divided = DivisionOptions(**division)
    check_division(divided, output)
    if divided.shard is not None and output is not None:
        gates = {"--max-drop": max_drop, "--baseline": baseline, "--save-baseline": save_baseline, "--receipt": receipt}
        require_no_gate(gates | {"--junit": junit, "--markdown": markdown})
        write_shard(
            divided,
            output,
            lambda one, tell, earlier: (evaluate_shard if counts_classes(bundle, options) else quality_shard)(
                bundle, options, one, tell, earlier=earlier
            ),
            fresh=fresh,
            as_json=json,
        )
        return
    if baseline_drop is not None and baseline is None:
        raise UsageError("--baseline-drop requires --baseline")
    if baseline_drop is not None and not 0 <= baseline_drop < math.inf:
        raise UsageError(f"--baseline-drop {baseline_drop:g}: must be a number, and at least 0")
    known = read_baseline(baseline) if baseline is not None else None
    if known is not None and metric is not None and baseline_drop is None:
        raise UsageError(
            "--baseline with --metric needs --baseline-drop: nobody knows how much of your figure is little",
            advice="add --baseline-drop, in the unit of the metric",
        )
    allowed = BASELINE_DROP if baseline_drop is None else baseline_drop
    require_places(junit, markdown, save_baseline, output)
    with ConsoleProgress() as progress:
        by, by_pairs = None, None
        if divided.parts:
            found = collector(divided, progress)
            by, by_pairs = partial(merge_evaluation, collect=found), partial(merge_quality, collect=found)
        elif divided.farm is not None:
            farm, mixed = divided.farm, divided.allow_mixed_cpus
            by = partial(evaluate_on, cluster=farm, allow_mixed_cpus=mixed)
            by_pairs = partial(quality_on, cluster=farm, allow_mixed_cpus=mixed)
        counted = None if known is None else isinstance(known, Baseline)
        evaluation = evaluate_any(bundle, options, progress, counted=counted, by=by, by_pairs=by_pairs)
    facts = read_facts(load_bundle(bundle))
    if baseline is not None and isinstance(evaluation, Evaluation) and isinstance(known, Baseline):
        compared = compare_with_baseline(evaluation, known, allowed, baseline)
        evaluation = evaluation.model_copy(update={"baseline": compared})
    elif baseline is not None and not isinstance(evaluation, Evaluation) and isinstance(known, QualityBaseline):
        then = compare_quality(evaluation, known, allowed, baseline)
        evaluation = evaluation.model_copy(update={"baseline": then})
    if save_baseline is not None:
        write_baseline(save_baseline, evaluation)
    if isinstance(evaluation, Evaluation):
        facts.accuracy, facts.outdated = evaluation, [name for name in facts.outdated if name != "accuracy"]
    else:
        facts.quality, facts.outdated = evaluation, [name for name in facts.outdated if name != "quality"]
    verdict = decide_verdict(facts)
    finish(evaluation, verdict, as_json=json, junit=junit, markdown=markdown, allow_inconclusive=allow_inconclusive)


evaluate = flattened(_evaluate)


def finish(
    evaluation: Evaluation | Quality,
    verdict: Verdict,
    *,
    as_json: bool,
    junit: Path | None,
    markdown: Path | None,
    allow_inconclusive: bool,
) -> None:
    """Writes and prints all, and only then lets the gate fail."""
    from skdeploy.accuracy.gate import Evaluation
    from skdeploy.cli.console import conclude, print_verdict
    from skdeploy.report.accuracy import accuracy_findings
    from skdeploy.report.junit import write_junit
    from skdeploy.report.markdown import write_markdown
    from skdeploy.report.quality import quality_findings
    from skdeploy.report.terminal import Terminal

    if isinstance(evaluation, Evaluation):
        found, kind = accuracy_findings(evaluation, allow_inconclusive=allow_inconclusive), evaluation.kind
        few = len(evaluation.classes) <= READABLE_CLASSES
    else:
        found, kind, few = quality_findings(evaluation, allow_inconclusive=allow_inconclusive), "evaluation", True
    if junit is not None:
        write_junit(junit, f"skdeploy {kind}", found.blocks, evaluation.seconds, verdict.text)
    if markdown is not None:
        write_markdown(markdown, verdict.text, found)

    def show(advised: bool) -> None:
        print_verdict(verdict, advised=advised)
        Terminal().section(found)

    conclude(
        lambda: evaluation.check(allow_inconclusive=allow_inconclusive),
        show=show,
        content=lambda: (
            evaluation.model_dump(mode="json", exclude={"worst"})
            | {"decision": evaluation.verdict, "verdict": verdict.json()}
        ),
        as_json=as_json,
        # a confusion matrix of 1,000 classes is a million numbers, each on a line of its own
        indent=2 if few else None,
    )
