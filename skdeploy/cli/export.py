"""``skdeploy export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from skdeploy.cli.accuracy import AssumeImagenet, ClassOrder
from skdeploy.cli.calibration import (
    AllowRandom,
    BiasCorrection,
    CalibBatch,
    CalibImages,
    CalibMethod,
    CalibNum,
    CalibPercentile,
    CalibSeed,
    Equalize,
    ExactInput,
    Shift,
    WeightScales,
)

Exporter = Literal["dynamo", "torchscript"]
EngineTarget = Literal["auto", "tensorrt", "tensorrt_rtx", "onnx"]


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="A card, by name or path; an .onnx file; or package.module:function that builds a network."
        ),
    ],
    card: Annotated[
        str | None, typer.Option(help="The card of an .onnx file or a module: preprocessing, labels, tolerances, size.")
    ] = None,
    assume_imagenet: AssumeImagenet = False,
    fp16: Annotated[bool, typer.Option("--fp16", "--half", help="FP16 as a strongly typed graph.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="INT8 by explicit Q/DQ, calibrated on --calib or from --ranges.")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(help="Checkpoint of any known layout, or hf://owner/name; default: the card's own, else random."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random weights that a card without weights gets.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The bundle's folder; default: build/MODEL-PRECISION.")
    ] = None,
    target: Annotated[
        EngineTarget,
        typer.Option(
            help="Which engine: auto is TensorRT on a GPU, else TensorRT-RTX ahead of time, else none; onnx makes none."
        ),
    ] = "auto",
    batch: Annotated[int | None, typer.Option(help="Fix the batch; default: dynamic.")] = None,
    min_batch: Annotated[int | None, typer.Option(help="The engine's smallest batch.  [default: 1]")] = None,
    opt_batch: Annotated[int | None, typer.Option(help="The batch that the engine is tuned for.  [default: 8]")] = None,
    max_batch: Annotated[int | None, typer.Option(help="The engine's largest batch.  [default: 32]")] = None,
    imgsz: Annotated[int | None, typer.Option(help="Input height and width in pixels; default: the card's.")] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Accept any height and width at run time.")
    ] = False,
    exporter: Annotated[Exporter, typer.Option(help="Which of torch.onnx's exporters.")] = "dynamo",
    opset: Annotated[int, typer.Option(help="ONNX opset, 19 or 20.")] = 19,
    simplify: Annotated[
        bool, typer.Option("--simplify/--no-simplify", help="Run onnx-simplifier, and check it.")
    ] = True,
    keep_fp32: Annotated[
        list[str] | None, typer.Option(metavar="REGEX", help="Modules that stay FP32 under --fp16; repeatable.")
    ] = None,
    embed_preprocess: Annotated[
        bool, typer.Option("--embed-preprocess", help="Take uint8 NHWC images; normalise inside the graph.")
    ] = False,
    attention: Annotated[bool, typer.Option("--attention", help="Add each unit's attention as an output.")] = False,
    workspace: Annotated[float | None, typer.Option(help="Limit of the builder's scratch memory, GiB.")] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(metavar="X.Y", help="GPUs that a TensorRT-RTX engine is for, such as 8.9; repeatable."),
    ] = None,
    regroup: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Merge the groups of grouped convolutions into N, by exact zeros; measure with bench."
        ),
    ] = None,
    gap: Annotated[
        Literal["average-pool"] | None,
        typer.Option(
            help="Means over the map as average pools, which a DLA has; it takes no FP32 and needs --batch, see docs/edge.md."
        ),
    ] = None,
    calib: CalibImages = None,
    ranges: Annotated[
        Path | None, typer.Option(help="A ranges file that `skdeploy calibrate` made, in place of images.")
    ] = None,
    calib_method: CalibMethod = None,
    calib_percentile: CalibPercentile = None,
    calib_num: CalibNum = None,
    calib_batch: CalibBatch = 8,
    calib_seed: CalibSeed = None,
    allow_random_calib: AllowRandom = False,
    int8_fallback: Annotated[Literal["fp16", "fp32"], typer.Option(help="The precision of what is not INT8.")] = "fp16",
    int8_keep: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Modules that stay in the fallback under --int8; repeatable."),
    ] = None,
    int8_keep_grouped: Annotated[
        bool, typer.Option("--int8-keep-grouped", help="Grouped convolutions stay in the fallback.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="Images with labels for --max-drop: class folders, .npz or a list.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Points of top-1 that INT8 may cost on --data: the worst units stay in the fallback."),
    ] = None,
    class_order: ClassOrder = None,
    equalize: Equalize = None,
    bias_correction: BiasCorrection = None,
    shift: Shift = None,
    exact_input: ExactInput = None,
    weight_scales: WeightScales = None,
    legacy_calibration_cache: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="Also write a calibration cache for weakly typed builds of this TensorRT, as 8.5.3."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Images that decide headroom and parity: a folder, .npz or .npy; default: those of --data or --calib, "
            "else the card's."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Compare with the network that your own function builds; runs that code.",
        ),
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(help="Compare with inputs and outputs that your training code saved, an .npz: docs/proof.md."),
    ] = None,
    num_images: Annotated[int, typer.Option(help="How many of them at most.")] = 64,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")
    ] = False,
) -> None:
    """Take a network through the whole line: ONNX, simplified, lower precision, engine, parity, bundle.

    Run it again and only what changed is done again.
    """
    from skdeploy.cli.console import ConsoleProgress, end_with, error_of, print_bundle, print_json
    from skdeploy.core.errors import UsageError
    from skdeploy.core.spec import CalibrationMethod, Precision, Target
    from skdeploy.line.building import gibibytes
    from skdeploy.line.export import run_line
    from skdeploy.line.int8_options import CalibrationOptions, Int8Options
    from skdeploy.line.options import DEFAULT_PROFILE, ExportOptions
    from skdeploy.passes.trace_options import TraceOptions

    if fp16 and int8:
        raise UsageError(
            "--fp16 and --int8 contradict each other", advice="--int8 keeps in FP16 what it does not quantize"
        )
    profile = None
    if (min_batch, opt_batch, max_batch) != (None, None, None):
        low, opt, high = (
            default if given is None else given
            for given, default in zip((min_batch, opt_batch, max_batch), DEFAULT_PROFILE, strict=True)
        )
        profile = (low, opt, high)
    options = ExportOptions(
        model=model,
        precision=Precision.INT8 if int8 else Precision.FP16 if fp16 else Precision.FP32,
        output=output,
        weights=weights,
        seed=seed,
        trace=TraceOptions(exporter, opset, batch, dynamic_size, attention, embed_preprocess),
        simplify=simplify,
        keep_fp32=tuple(keep_fp32 or ()),
        int8=Int8Options(
            calibration=CalibrationOptions(
                images=calib,
                allow_random=allow_random_calib,
                method=None if calib_method is None else CalibrationMethod(calib_method),
                percentile=calib_percentile,
                number=calib_num,
                seed=calib_seed,
                batch=calib_batch,
                equalize=equalize,
                bias_correction=bias_correction,
                shift=shift,
                exact_input=exact_input,
                weight_scales=weight_scales,
            ),
            ranges=ranges,
            fallback=Precision(int8_fallback),
            keep=tuple(int8_keep or ()),
            keep_grouped=int8_keep_grouped,
            data=data,
            max_drop=max_drop,
            class_order=class_order,
            legacy_cache=legacy_calibration_cache,
        ),
        target=Target(target),
        profile=profile,
        workspace_bytes=gibibytes("--workspace", workspace),
        compute_capabilities=tuple(compute_capability or ()),
        image_size=None if imgsz is None else (imgsz, imgsz),
        images=images,
        num_images=num_images,
        regroup=regroup,
        gap=gap,
        reference=reference,
        golden=golden,
        card=card,
        assume_imagenet=assume_imagenet,
    )
    with ConsoleProgress() as progress:
        result = run_line(options, progress)
    reused, seconds = result.reused, result.seconds
    if not json:
        print_bundle(result.bundle, result.parity, result.verdict, reused=reused, seconds=seconds)
        result.check()
        return
    error = error_of(result.check)
    print_json(result.bundle, result.parity, result.verdict, reused=reused, seconds=seconds, error=error)
    end_with(error)
