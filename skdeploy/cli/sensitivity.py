"""``skdeploy sensitivity``, and the table of what ``export --max-drop`` kept out of INT8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skdeploy.cli.arguments import AssumeImagenet, ClassOrder, Json
from skdeploy.core.panel import Panel

if TYPE_CHECKING:
    from skdeploy.quant.mixed import MixedPrecision
    from skdeploy.quant.sensitivity import Effect, SensitivityReport


def sensitivity(
    bundle: Annotated[Path, typer.Argument(help="Folder that `skdeploy export --int8` made.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Images: a folder, .npz, .npy or .txt; top-1 needs labels.  [default: the card's]",
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    class_order: ClassOrder = None,
    assume_imagenet: AssumeImagenet = False,
    num_images: Annotated[
        int, typer.Option(help="Use at most this many images, balanced over classes.", rich_help_panel=Panel.INPUT)
    ] = 256,
    json: Json = False,
) -> None:
    """Measure how much accuracy each unit of the network loses in INT8: alone in INT8, and alone not in INT8.

    Examples:
        skdeploy sensitivity build/mynet-int8 --data eval/evaluation.npz
        skdeploy sensitivity build/mynet-int8 --num-images 8
    """
    import time

    from skdeploy.bundle.folder import load_bundle
    from skdeploy.cli.console import write_json
    from skdeploy.parity.tasks import require_classes
    from skdeploy.quant.sensitivity import sensitivity_of
    from skdeploy.report.progress import ConsoleProgress

    with ConsoleProgress() as progress:
        started = time.perf_counter()
        opened = load_bundle(bundle)
        require_classes(opened.manifest.model, "sensitivity")
        progress.begin("sensitivity")
        report = sensitivity_of(
            opened, data, num_images, progress, class_order=class_order, assume_imagenet=assume_imagenet
        )
        progress.end("sensitivity", time.perf_counter() - started, reused=False)
    if json:
        write_json(report)
    else:
        print_sensitivity(report)


def print_sensitivity(report: SensitivityReport) -> None:
    """The units, the costliest first, the totals, and how to read them."""
    from skdeploy.report.terminal import Terminal

    terminal = Terminal()
    accuracy = "same class" if report.fp32.top1 is None else "top-1"
    terminal.title(f"{report.model} in INT8 against FP32, on {report.images} images of {report.dataset}")
    rows = [
        (
            row.unit or "(top level)",
            f"{row.only_on.sqnr_db:.1f} dB",
            _change(row.only_on, report.fp32),
            f"{row.only_off.sqnr_db:.1f} dB",
            _change(row.only_off, report.all_int8),
            f"{row.mac_share:.1%}",
            f"{row.parameters:,}",
        )
        for row in report.units
    ]
    parts = (">only it: SQNR", f">{accuracy}", ">all but it: SQNR", f">{accuracy}", ">MACs", ">parameters")
    terminal.table(("unit", *parts), rows)
    all_int8 = report.all_int8
    totals = f"everything in INT8: {all_int8.sqnr_db:.1f} dB, same class as FP32 on {all_int8.agreement:.2%}"
    if report.fp32.top1 is not None and all_int8.top1 is not None:
        totals += f", top-1 {all_int8.top1:.2%}; FP32 {report.fp32.top1:.2%}"
    terminal.headline(totals)
    terminal.say(
        "only it: the noise that this unit brings; fewer dB cost more, 6 dB are twice the error. all but it: what is left once "
        f"it stays in the fallback. {accuracy}: points against FP32, and against everything in INT8; one image is "
        f"{100 / report.images:.2g} points, so trust the dB where few images differ."
    )
    terminal.say(f"to keep the first: skdeploy export ... --int8-keep '{report.units[0].pattern}'")


def print_mixed(mixed: MixedPrecision) -> None:
    """What stayed in the fallback under ``--max-drop``, why, and what it saved."""
    from skdeploy.report.terminal import Terminal

    terminal, drop = Terminal(), mixed.drop
    terminal.say(
        f"top-1 {mixed.top1:.2%}, FP32 {mixed.fp32_top1:.2%}: a drop of {drop.points:.2f} points (standard error "
        f"{drop.standard_error:.2f}), allowed {mixed.max_drop:g}, on {mixed.images:,} images of {mixed.dataset}: "
        f"{drop.lost} lost, {drop.gained} gained"
    )
    if mixed.kept:
        rows = [
            (
                unit.unit or "(top level)",
                f"{unit.sqnr_db:.1f} dB",
                f"{unit.noise_share:.1%}",
                f"{unit.mac_share:.1%}",
                f"{unit.sqnr_before:.1f} dB",
                f"{mixed.sqnr_db - unit.sqnr_before:.1f} dB",
                "" if unit.drop_before is None else f"{unit.drop_before:.2f}",
            )
            for unit in mixed.kept
        ]
        terminal.table(("kept out of INT8", ">alone", ">noise", ">MACs", ">in INT8 too", ">saved", ">drop"), rows)
        terminal.say(
            "alone: SQNR with only this unit in INT8; noise: its part of all units'. in INT8 too: SQNR with this unit added to "
            f"the INT8 ones; saved: from there to the mix's {mixed.sqnr_db:.1f} dB; drop: in points with it added, where run."
        )
        terminal.say("to ask for the same again: " + " ".join(f"--int8-keep '{pattern}'" for pattern in mixed.keep))
    terminal.say(
        f"{mixed.int8_mac_share:.1%} of the MACs are INT8; {len(mixed.kept)} of {mixed.units} units kept; "
        f"{mixed.evaluations} run{'s' if mixed.evaluations > 1 else ''} of INT8 on all images"
        + (f", {mixed.units} units on {mixed.ranking_images}" if mixed.evaluations > 1 else "")
    )
    for note in mixed.notes:
        terminal.warn(note)


def _change(effect: Effect, against: Effect) -> str:
    """Points of top-1, or without labels of images with FP32's class."""
    if effect.top1 is not None and against.top1 is not None:
        return f"{100 * (effect.top1 - against.top1):+.2f}"
    return f"{100 * (effect.agreement - against.agreement):+.2f}"
