"""``skdeploy verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from skdeploy.backends import DEFAULT, running
from skdeploy.cli.backend import BackendOption

if TYPE_CHECKING:
    from skdeploy.line.verification import Verification

SUITES: Final = "photographs (no others), noise, zeros, extremes, tiny-contrast, memory, sizes, all"


def verify(
    bundle: Annotated[Path, typer.Argument(help="The folder that an export made.")],
    images: Annotated[
        Path | None, typer.Option(help="A folder of images, .npz or .npy; default: the card's own parity images.")
    ] = None,
    num_images: Annotated[int, typer.Option(help="How many of them at most.")] = 64,
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
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"Inputs besides the images, on every artifact; may be given again: {SUITES}.  "
            "[default: one image each of noise, zeros, extremes, tiny-contrast, on the last graph and engines]",
        ),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build each engine again, and tell how much two builds differ.")
    ] = False,
    receipt: Annotated[
        bool,
        typer.Option("--receipt", help="Write what was measured here, on this device, to the bundle's receipts/."),
    ] = False,
    require_engine: Annotated[
        bool,
        typer.Option(
            "--require-engine", help="An engine verified neither here nor by a receipt is an error, with exit code 3."
        ),
    ] = False,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help=f"Run the graphs on this one too: {', '.join(n for n in running('onnx') if n != DEFAULT)}. "
            "It must run all of each, and no node on the CPU.",
        ),
    ] = None,
    backend_option: BackendOption = None,
    blame: Annotated[
        bool, typer.Option("--blame", help="Run the line stage by stage too, and say where an error enters.")
    ] = False,
    save_repro: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="With --blame: save the smallest graph that shows it, with its inputs."),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the checks as JUnit XML to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a summary for a job's page to this file.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")
    ] = False,
) -> None:
    """Check a bundle's digests and receipts and measure parity again, on every backend that works here.

    Writes nothing but what --receipt, --blame, --save-repro, --junit and --markdown ask for.
    """
    from skdeploy.blame.repro import README
    from skdeploy.cli.console import ConsoleProgress
    from skdeploy.core.errors import IntegrityError, ParityError, UsageError
    from skdeploy.core.files import require_places
    from skdeploy.line.verification import VerifyOptions
    from skdeploy.line.verification import verify as run
    from skdeploy.report.verify import write_verification

    if save_repro is not None and not blame:
        raise UsageError("--save-repro saves what --blame finds", advice="give --blame too")
    options = VerifyOptions(
        images,
        num_images,
        tuple(suite or ()),
        rebuild,
        receipt,
        require_engine,
        backend,
        tuple(backend_option or ()),
        reference,
        golden,
    )
    require_places(junit, markdown, save_repro and save_repro / README)
    failure: IntegrityError | ParityError | None = None
    with ConsoleProgress() as progress:
        try:
            verification = run(bundle, options, progress)
        except (IntegrityError, ParityError) as error:
            if not blame:
                raise
            failure = error  # of a bundle that failed in its export, too, one asks where
        else:
            write_verification(verification, junit=junit, summary=markdown)
    if blame:
        _blame(bundle, images, save_repro)
    if failure is not None:
        raise failure
    _show(verification, as_json=json)


def _show(verification: Verification, *, as_json: bool) -> None:
    """Prints it, and only then judges; with --json, an error is a key of the one object on stdout."""
    from rich.markup import escape

    from skdeploy.cli.console import end_with, error_of, output_console, print_bundle, print_json
    from skdeploy.report.verify import verification_lines

    if as_json:
        error = error_of(verification.check)
        print_json(verification.bundle, verification.report, verification.verdict, error=error)
        end_with(error)
        return
    print_bundle(verification.bundle, verification.report, verification.verdict)
    console = output_console()
    for line in verification_lines(verification):
        console.print(escape(line), soft_wrap=True)
    verification.check()


def _blame(bundle: Path, images: Path | None, repro: Path | None) -> None:
    from rich.console import Console
    from rich.markup import escape

    from skdeploy.cli.blame import blame_bundle
    from skdeploy.cli.console import ConsoleProgress

    with ConsoleProgress() as progress:
        report = blame_bundle(bundle, images, repro=repro, progress=progress)
    Console(stderr=True, highlight=False).print(escape(report.text()), soft_wrap=True)
