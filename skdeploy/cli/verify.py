"""``skdeploy verify``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from skdeploy.backends import DEFAULT, running
from skdeploy.cli.arguments import BundleFolder, Json, Junit, Markdown, Receipt
from skdeploy.cli.backend import BackendOption
from skdeploy.core.panel import Panel

if TYPE_CHECKING:
    from skdeploy.line.verification import Verification

SUITES: Final = "photographs (only the images), noise, zeros, extremes, tiny-contrast, memory, sizes, all"


def verify(
    bundle: BundleFolder,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Images: a folder, .npz or .npy.  [default: the card's parity images]", rich_help_panel=Panel.PARITY
        ),
    ] = None,
    num_images: Annotated[int, typer.Option(help="Use at most this many images.", rich_help_panel=Panel.PARITY)] = 64,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Compare with the network that your own function returns; this runs your code.",
            rich_help_panel=Panel.PARITY,
        ),
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(
            help="Compare with inputs and outputs that your training code saved as .npz; see docs/how-to/prove.md.",
            rich_help_panel=Panel.PARITY,
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"More inputs to run through every artifact; repeatable: {SUITES}.  "
            "[default: one image each of noise, zeros, extremes and tiny-contrast, on the last graph and engines]",
            rich_help_panel=Panel.PARITY,
        ),
    ] = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Build each engine again and show how much the two builds differ.",
            rich_help_panel=Panel.ENGINE,
        ),
    ] = False,
    receipt: Receipt = False,
    require_engine: Annotated[
        bool,
        typer.Option(
            "--require-engine",
            help="Fail with exit code 3 if an engine has been verified neither here nor by a receipt.",
            rich_help_panel=Panel.ENGINE,
        ),
    ] = False,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help=f"Also run the graphs on this backend: {', '.join(n for n in running('onnx') if n != DEFAULT)}. "
            "It must run every node; none may fall back to the CPU.",
            rich_help_panel=Panel.ENGINE,
        ),
    ] = None,
    backend_option: BackendOption = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Also ask a running Triton, http://HOST:8000 or grpc://HOST:8001, that serves what `triton` wrote.",
            rich_help_panel=Panel.ENGINE,
        ),
    ] = None,
    server_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --server: name of the model on the server.  [default: the card's]",
            rich_help_panel=Panel.ENGINE,
        ),
    ] = None,
    blame: Annotated[
        bool,
        typer.Option(
            "--blame",
            help="Also run the export stage by stage and show where an error enters.",
            rich_help_panel=Panel.PARITY,
        ),
    ] = False,
    save_repro: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With --blame: save the smallest graph that shows the error, with its inputs.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    junit: Junit = None,
    markdown: Markdown = None,
    json: Json = False,
) -> None:
    """Check a bundle's digests and receipts, and measure parity again on every backend that works here.

    Writes files only for --receipt, --blame, --save-repro, --junit and --markdown.

    Examples:
        skdeploy verify build/mynet-int8
        skdeploy verify build/mynet-fp16 --suite noise --junit parity.xml
    """
    from skdeploy.blame.repro import README
    from skdeploy.cli.console import bundle_json, conclude
    from skdeploy.core.errors import IntegrityError, ParityError, UsageError
    from skdeploy.core.files import require_places
    from skdeploy.line.verification import VerifyOptions
    from skdeploy.line.verification import verify as run
    from skdeploy.report.progress import ConsoleProgress

    if save_repro is not None and not blame:
        raise UsageError("--save-repro requires --blame", advice="add --blame")
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
    if server_model is not None and server is None:
        raise UsageError("--server-model requires --server")
    connect = None
    if server is not None:
        from skdeploy.serve.triton.client import read_address
        from skdeploy.serve.triton.proof import connect as connect_to

        read_address(server)  # before the digests of a large bundle
        connect = partial(connect_to, url=server, model=server_model)
    require_places(junit, markdown, save_repro and save_repro / README)
    failure: IntegrityError | ParityError | None = None
    with ConsoleProgress() as progress:
        try:
            verification = run(bundle, options, progress, connect=connect)
        except (IntegrityError, ParityError) as error:
            if not blame:
                raise
            failure = error  # of a bundle that failed in its export, too, one asks where
        else:
            write_files(verification, junit, markdown)
    if blame:
        _blame(bundle, images, save_repro)
    if failure is not None:
        raise failure
    conclude(
        verification.check,
        show=lambda advised: _show(verification, advised),
        content=lambda: bundle_json(verification.bundle, verification.report, verification.verdict),
        as_json=json,
    )


def write_files(verification: Verification, junit: Path | None, markdown: Path | None) -> None:
    """The files that were asked for. Raises UsageError, IntegrityError if they cannot be written."""
    from skdeploy.report.bundle import verification_findings
    from skdeploy.report.junit import write_junit
    from skdeploy.report.markdown import write_markdown

    found, verdict, manifest = verification_findings(verification), verification.verdict, verification.bundle.manifest
    if junit is not None:
        write_junit(junit, "skdeploy verify", found.blocks, verification.seconds, verdict.text)
    if markdown is not None:
        write_markdown(markdown, f"{manifest.model.name} {manifest.precision}: {verdict.text}", found)


def _show(verification: Verification, advised: bool) -> None:
    from skdeploy.cli.console import print_verdict
    from skdeploy.report.bundle import verification_findings
    from skdeploy.report.terminal import Terminal

    print_verdict(verification.verdict, advised=advised)
    Terminal().section(verification_findings(verification), unfold=True)


def _blame(bundle: Path, images: Path | None, repro: Path | None) -> None:
    from skdeploy.cli.blame import blame_bundle
    from skdeploy.report.blame import blame_findings
    from skdeploy.report.progress import ConsoleProgress
    from skdeploy.report.terminal import Terminal

    with ConsoleProgress() as progress:
        report = blame_bundle(bundle, images, repro=repro, progress=progress)
    Terminal(stderr=True).section(blame_findings(report))
