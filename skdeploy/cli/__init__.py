"""The command line: one verb a file. Arguments, progress and printing; no logic. A verb is imported when it is asked for."""

from __future__ import annotations

from typing import Final

import typer

from skdeploy.cli.command import HELP_NAMES, Verb, VerbGroup

# A new verb is one module, and a line here.
VERBS: Final[dict[str, Verb]] = {
    "doctor": Verb(
        "skdeploy.cli.doctor:doctor",
        "Show which backends and compilers work here, why others do not, and what to install.",
        "Before you start",
        documents=("skdeploy.cli.documents:DoctorDocument",),
    ),
    "models": Verb(
        "skdeploy.cli.models:models",
        "List the networks that skdeploy has cards for, or show one card.",
        "Before you start",
        documents=("skdeploy.cli.documents:CardsDocument",),
    ),
    "convert": Verb(
        "skdeploy.cli.convert:convert",
        "Convert a checkpoint to skdeploy's own format and write a card for it, unless one is given.",
        "Before you start",
        documents=("skdeploy.cli.documents:ConvertDocument",),
    ),
    "init": Verb(
        "skdeploy.cli.init:init",
        "Write a card for an ONNX file or a module, for you to complete. Overwrites no file.",
        "Before you start",
    ),
    "export": Verb(
        "skdeploy.cli.export:export",
        "Export a network to ONNX and an engine, in the precision you choose, and check each step against the original.",
        "Make a bundle",
        documents=("skdeploy.cli.documents:ExportDocument",),
    ),
    "calibrate": Verb(
        "skdeploy.cli.calibrate:calibrate",
        "Measure a network's tensor ranges on images and write them to a file for `export --ranges`.",
        "Make a bundle",
        documents=("skdeploy.cli.documents:RangesDocument",),
    ),
    "build": Verb(
        "skdeploy.cli.build:build",
        "Build an engine for this device from the bundle's last graph and add it to the bundle.",
        "Make a bundle",
        documents=("skdeploy.cli.documents:BuildDocument",),
    ),
    "inspect": Verb(
        "skdeploy.cli.inspect:inspect",
        "Check the digests of a bundle or a file and show what is in it.",
        "Prove it",
        documents=(
            "skdeploy.cli.documents:BundleDocument",
            "skdeploy.cli.documents:EnginesDocument",
            "skdeploy.cli.documents:FileDocument",
        ),
    ),
    "verify": Verb(
        "skdeploy.cli.verify:verify",
        "Check a bundle's digests and receipts, and measure parity again on every backend that works here.",
        "Prove it",
        documents=("skdeploy.cli.documents:BundleDocument",),
    ),
    "evaluate": Verb(
        "skdeploy.cli.evaluate:evaluate",
        "Measure accuracy on labelled images or pairs, compare it with the FP32 graph, and fail if the drop is too large.",
        "Prove it",
        documents=(
            "skdeploy.cli.documents:EvaluationDocument",
            "skdeploy.cli.documents:QualityDocument",
            "skdeploy.cli.documents:PartDocument",
        ),
    ),
    "sensitivity": Verb(
        "skdeploy.cli.sensitivity:sensitivity",
        "Measure how much accuracy each unit of the network loses in INT8: alone in INT8, and alone not in INT8.",
        "Prove it",
        documents=("skdeploy.quant.sensitivity:SensitivityReport",),
    ),
    "tune": Verb(
        "skdeploy.cli.tune:tune",
        "Try every way to calibrate INT8 on your images, and write the recipe of the best for `export --int8 --calib`.",
        "Prove it",
        documents=("skdeploy.tuning.report:TuneReport", "skdeploy.tuning.report:TunePlan"),
    ),
    "attention": Verb(
        "skdeploy.cli.attention:attention",
        "Repeat the paper's experiment in each precision: do units choose larger kernels for larger objects?",
        "Prove it",
        documents=("skdeploy.attention.report:AttentionReport",),
    ),
    "plan": Verb(
        "skdeploy.cli.plan:plan",
        "Estimate the best possible latency of a graph on a device, what limits it, and which export options fit.",
        "Take it to a device",
        documents=("skdeploy.planning.report:PlanReport",),
    ),
    "bench": Verb(
        "skdeploy.cli.bench:bench",
        "Measure latency and throughput on this machine, or compare two artifacts.",
        "Take it to a device",
        documents=("skdeploy.bench.report:BenchReport",),
    ),
    "predict": Verb(
        "skdeploy.cli.predict:predict",
        "Print the five most likely classes of each image, or write the images or masks that the network gives.",
        "Take it to a device",
        documents=("skdeploy.accuracy.predict:Predicted", "skdeploy.accuracy.predict_images:WrittenImages"),
    ),
    "report": Verb(
        "skdeploy.cli.report:report",
        "Check a bundle's digests and write everything known about it to one HTML file.",
        "Take it to a device",
        documents=("skdeploy.cli.documents:ReportDocument",),
    ),
    "ci-init": Verb(
        "skdeploy.cli.ci_init:ci_init",
        "Write a CI job that checks the parity and accuracy of this bundle's network in your own repository.",
        "Take it to a device",
    ),
    "start": Verb(
        "skdeploy.cli.start:start",
        "Build the bundle's engine for this device, or take it from the cache, then run a verb with it.",
        "Take it to a device",
        documents=(
            "skdeploy.cli.documents:ProbeDocument",
            "skdeploy.accuracy.predict:Predicted",
            "skdeploy.cli.documents:BundleDocument",
            "skdeploy.cli.documents:EvaluationDocument",
            "skdeploy.bench.report:BenchReport",
        ),
        forwards=True,
    ),
    "triton": Verb(
        "skdeploy.cli.triton:triton",
        "Write a bundle as a model of a Triton model repository, with digests that are checked when it is served.",
        "Take it to a device",
        documents=("skdeploy.cli.documents:TritonDocument",),
    ),
    "compare": Verb(
        "skdeploy.cli.compare:compare",
        "Old name of `skdeploy evaluate NEW --against OLD`, with the same options.",
        documents=("skdeploy.cli.documents:EvaluationDocument",),
        hidden=True,
    ),
}


class Verbs(VerbGroup):
    verbs = VERBS


app = typer.Typer(
    name="skdeploy",
    cls=Verbs,
    help="Turn a trained Selective Kernel Network into a verified inference engine.",
    epilog="Options that you repeat can be in a file in the working directory: skdeploy.toml, or [tool.skdeploy] in "
    "pyproject.toml. "
    'The table [export] with calib = "calib/" gives every export --calib calib/; on or off is true or false. '
    "The command line wins. No file of a parent folder is read.",
    no_args_is_help=True,
    context_settings={"help_option_names": list(HELP_NAMES)},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        from skdeploy.core.version import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Turn a trained Selective Kernel Network into a verified inference engine."""
    del version
