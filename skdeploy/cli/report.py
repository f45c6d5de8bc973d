"""``skdeploy report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skdeploy.cli.arguments import BundleFolder, Json
from skdeploy.core.panel import Panel


def report(
    bundle: BundleFolder,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="HTML file to write.  [default: report.html in the bundle]",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check a bundle's digests and write everything known about it to one HTML file.

    Examples:
        skdeploy report build/mynet-int8
        skdeploy report build/mynet-int8 -o report.html
    """
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.cli.console import write_json
    from skdeploy.report.page import write_report
    from skdeploy.report.terminal import Terminal

    path = write_report(load_bundle(bundle), output)
    if json:
        write_json({"bundle": str(bundle), "report": str(path), "size_bytes": path.stat().st_size})
    else:
        Terminal().headline(str(path))
