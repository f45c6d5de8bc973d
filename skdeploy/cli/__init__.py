"""The command line: one verb a file. Arguments, progress and printing; no logic, and no heavy imports before a verb runs."""

import typer

from skdeploy.cli.attention import attention
from skdeploy.cli.bench import bench
from skdeploy.cli.build import build
from skdeploy.cli.calibrate import calibrate
from skdeploy.cli.compare import compare
from skdeploy.cli.convert import convert
from skdeploy.cli.doctor import doctor
from skdeploy.cli.evaluate import evaluate
from skdeploy.cli.export import export
from skdeploy.cli.init import init
from skdeploy.cli.inspect import inspect
from skdeploy.cli.models import models
from skdeploy.cli.plan import plan
from skdeploy.cli.predict import predict
from skdeploy.cli.report import report
from skdeploy.cli.sensitivity import sensitivity
from skdeploy.cli.start import start
from skdeploy.cli.verify import verify

app = typer.Typer(
    name="skdeploy",
    help="From a trained Selective Kernel Network to a verified inference engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (
    export,
    build,
    calibrate,
    convert,
    init,
    verify,
    evaluate,
    predict,
    bench,
    plan,
    compare,
    report,
    sensitivity,
    attention,
    models,
    inspect,
    doctor,
):
    app.command()(verb)
# What follows the verb that start runs is that verb's own, its options too.
app.command(context_settings={"allow_interspersed_args": False})(start)


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
    """From a trained Selective Kernel Network to a verified inference engine."""
    del version
