"""``skdeploy triton``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skdeploy.cli.arguments import BundleFolder, Json
from skdeploy.core.panel import Panel


def triton(
    bundle: BundleFolder,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Model repository to write to. Its other models and versions are not changed.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ],
    backend: Annotated[
        str,
        typer.Option(
            help="Backend of Triton: onnxruntime, tensorrt (the bundle's engine) or python (ONNX Runtime as here).",
            rich_help_panel=Panel.ENGINE,
        ),
    ] = "onnxruntime",
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model in Triton.  [default: the card's]", rich_help_panel=Panel.OUTPUT),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(
            metavar="N|next",
            help="Version to write; next is the highest that is there plus 1.  [default: 1]",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            help="Largest batch that Triton makes of requests.  [default: the engine's profile, or 32]",
            rich_help_panel=Panel.ENGINE,
        ),
    ] = None,
    instances: Annotated[
        int, typer.Option(help="Instances of the model that run at the same time.", rich_help_panel=Panel.ENGINE)
    ] = 1,
    image: Annotated[
        bool,
        typer.Option(
            "--image",
            help="Also write NAME-images, which takes encoded images (JPEG, PNG) and preprocesses them as the card says.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = False,
    kserve: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write a KServe InferenceService to this file.", rich_help_panel=Panel.OUTPUT
        ),
    ] = None,
    storage_uri: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Where the cluster finds the repository, such as pvc://claim/models; required by --kserve.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write a bundle as a model of a Triton model repository, with digests that are checked when it is served.

    Then start Triton on the repository, and check what it answers: skdeploy verify BUNDLE --server URL.

    Examples:
        skdeploy triton build/mynet-fp16 -o models
        skdeploy triton build/mynet-int8 -o models --version next --image
    """
    import shlex

    from skdeploy.cli.console import write_json
    from skdeploy.cli.documents import TritonDocument
    from skdeploy.core.files import require_places
    from skdeploy.report.terminal import Terminal
    from skdeploy.serve.triton.repository import TritonOptions, write_repository

    require_places(kserve)
    options = TritonOptions(output, backend, name, version, max_batch, instances, image, kserve, storage_uri)
    written = write_repository(bundle, options)
    if json:
        write_json(
            TritonDocument(
                repository=str(written.repository),
                models=list(written.models),
                version=written.version,
                artifact=written.artifact,
                sha256=written.sha256,
                max_batch=written.max_batch,
                notes=list(written.notes),
                kserve=None if written.kserve is None else str(written.kserve),
            )
        )
        return
    terminal = Terminal()
    network = written.models[0]
    terminal.headline(f"wrote {network}, version {written.version}, to {written.repository}")
    terminal.say(
        f"it serves {written.artifact} with {backend}, in batches up to {written.max_batch or 'its fixed one'}"
    )
    for other in written.models[1:]:
        terminal.say(f"and {other}")
    if written.kserve is not None:
        terminal.say(f"and the InferenceService in {written.kserve}")
    for note in written.notes:
        terminal.warn(note)
    terminal.say(f"next: tritonserver --model-repository={shlex.quote(str(written.repository.absolute()))}", whole=True)
    terminal.say(
        f"then: skdeploy verify {shlex.quote(str(bundle))} --server http://127.0.0.1:8000 --server-model {network}"
    )
