"""``skdeploy start``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from skdeploy.backends import running
from skdeploy.cli.arguments import Json


def start(
    verb: Annotated[str | None, typer.Argument(help="predict, verify, evaluate or bench.")] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Arguments and options of the verb, without the bundle.")
    ] = None,
    bundle: Annotated[
        Path, typer.Option(envvar="SKDEPLOY_BUNDLE", help="Folder that `skdeploy export` made; it is not changed.")
    ] = Path("/bundle"),
    cache: Annotated[
        Path,
        typer.Option(envvar="SKDEPLOY_CACHE", help="Folder for engines, with a subfolder for each device and bundle."),
    ] = Path("/cache"),
    backend: Annotated[
        str | None,
        typer.Option(
            envvar="SKDEPLOY_BACKEND",
            help=f"Backend to use: {', '.join(running('engine', 'onnx', on='gpu'))}, or on the CPU "
            f"{', '.join(running('onnx', on='cpu'))}.  [default: the installed compiler; required if there is no GPU]",
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for another start that builds into the same cache.")
    ] = 1800,
    probe: Annotated[
        bool, typer.Option("--probe", help="Only run one inference with the engine that an earlier start prepared.")
    ] = False,
    json: Json = False,
) -> None:
    """Build the bundle's engine for this device, or take it from the cache, then run a verb with it.

    Put options of start before the verb, and options of the verb after it. Containers run this: see docs/how-to/docker.md.

    Examples:
        skdeploy start --bundle build/mynet-fp16 --cache cache predict cat.png
        skdeploy start --bundle build/mynet-fp16 --cache cache --probe
    """
    from skdeploy.cli.console import write_json
    from skdeploy.core.errors import UsageError
    from skdeploy.report.progress import ConsoleProgress
    from skdeploy.serve import starting

    if probe:
        if verb is not None:
            raise UsageError(f"--probe runs no verb, but {verb!r} was given", advice="leave one of them out")
        ready = starting.running() if backend is None else None
        if ready is None:
            ready = starting.find(bundle, cache, *starting.choose_backend(backend))
        found = starting.probe(ready)
        if json:
            write_json(dataclasses.asdict(found))
        else:
            print(f"{found.artifact} on {found.backend}: {found.latency_ms:.1f} ms, opened in {found.open_ms:.0f} ms")
        return
    if verb is None:
        raise UsageError("no verb to run", advice=f"give one of {', '.join(starting.VERBS)}")
    starting.check_verb(verb)
    arguments = [*(arguments or ()), *(["--json"] if json else ())]
    _check_arguments(verb, [str(bundle), *arguments])  # not after minutes of building
    chosen, device = starting.choose_backend(backend)
    with ConsoleProgress() as progress:
        ready = starting.prepare(bundle, cache, chosen, device, progress, wait_s=wait)
        where = f"on {device.name}" if device else "on the CPU"
        state = "from the cache" if ready.reused else "made ready"
        progress.note(f"{ready.artifact}, {ready.backend} {where}: {state} in {ready.seconds:.1f} s")
    from skdeploy.cli import app

    with starting.announced(ready, progress):
        code = app(starting.verb_arguments(ready, verb, arguments), standalone_mode=False)
    if code:
        raise typer.Exit(code)


def _check_arguments(verb: str, arguments: list[str]) -> None:
    """Reads them as the verb would, and runs nothing. Raises click's UsageError; shows the verb's help if that is asked for."""
    from skdeploy.cli import app

    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)  # an app of many verbs
    command.commands[verb].make_context(f"skdeploy start {verb}", arguments)
