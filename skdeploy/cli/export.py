"""``skdeploy export``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from skdeploy.cli.arguments import Imgsz, Json, MaxBatch, MinBatch, OptBatch, image_size
from skdeploy.cli.flags import FlagsOf, flattened
from skdeploy.core.options import StationOptions
from skdeploy.core.panel import Panel
from skdeploy.line.formats import FORMATS, flags_of_formats, precision_asked
from skdeploy.line.options import ExportOptions
from skdeploy.line.rewrites import REWRITES
from skdeploy.line.station import RewriteOptions


def _export(
    model: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, hf://owner/name, a card (name or path), an .onnx file, or package.module:function."
        ),
    ],
    *,
    precision: Annotated[dict[str, Any], FlagsOf(flags_of_formats())],
    options: Annotated[dict[str, Any], FlagsOf(ExportOptions)],
    lowering: dict[str, StationOptions],
    rewrites: dict[str, RewriteOptions],
    min_batch: MinBatch = None,
    opt_batch: OptBatch = None,
    max_batch: MaxBatch = None,
    imgsz: Imgsz = None,
    workspace: Annotated[
        float | None,
        typer.Option(help="Most scratch memory for a kernel of the engine, in GiB.", rich_help_panel=Panel.ENGINE),
    ] = None,
    json: Json = False,
) -> None:
    """Export a network to ONNX and an engine, in the precision you choose, and check each step against the original.

    A second run repeats only the steps whose options or inputs have changed.

    Examples:
        skdeploy export mynet.ckpt --fp16 --labels labels.txt
        skdeploy export mynet.ckpt --int8 --calib calib/ --imgsz 160
    """
    from skdeploy.cli.config import typed
    from skdeploy.cli.console import bundle_json, conclude, print_bundle, print_steps
    from skdeploy.core.errors import UsageError
    from skdeploy.core.options import all_flags_of
    from skdeploy.core.spec import Precision
    from skdeploy.line.building import gibibytes
    from skdeploy.line.export import run_line
    from skdeploy.line.options import batch_profile
    from skdeploy.report.progress import ConsoleProgress
    from skdeploy.report.terminal import Terminal

    asked_for = [name for name, value in precision.items() if value]
    given = typed(asked_for) or asked_for  # the command line wins over a file
    precisions = [precision_asked(name, precision[name]) for name in given]
    if len(precisions) > 1:
        raise UsageError(
            f"{' and '.join(each.flag for each in precisions)} cannot be used together",
            advice="give one of them; --int8 keeps in FP16 what it does not quantize",
        )
    chosen = precisions[0] if precisions else Precision.FP32
    asked = ExportOptions(
        model,
        **options,
        precision=chosen,
        # What a file says for other precisions waits until they are asked for.
        lowering={
            name: model if name == chosen or typed(key for key, *_ in all_flags_of(type(model))) else type(model)()
            for name, model in lowering.items()
        },
        rewrites=rewrites,
        profile=batch_profile(min_batch, opt_batch, max_batch),
        workspace_bytes=gibibytes("--workspace", workspace),
        image_size=image_size(imgsz),
    )
    with ConsoleProgress() as progress:
        result = run_line(asked, progress)
    found, steps = (result.bundle, result.parity, result.verdict, result.reused), result.steps

    def show(advised: bool) -> None:
        print_bundle(*found, result.accuracy, advised=advised)
        Terminal().say(f"done in {result.seconds:.1f} s")
        print_steps(steps)

    def content() -> dict[str, Any]:
        accuracy = None if result.accuracy is None else result.accuracy.model_dump(mode="json", exclude={"worst"})
        return bundle_json(*found, result.seconds) | {"accuracy": accuracy, "on_the_device": list(steps)}

    conclude(result.check, show=show, content=content, as_json=json)


export = flattened(
    _export,
    {
        "lowering": {name: lowering.options for name, lowering in FORMATS.items()},
        "rewrites": {name: rewrite.options for name, rewrite in REWRITES.items()},
    },
)
