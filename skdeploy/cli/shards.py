"""Making a part, and finding the parts of a job, for every verb that can be divided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skdeploy.core.errors import UsageError
from skdeploy.core.panel import Panel

if TYPE_CHECKING:
    from skdeploy.core.progress import Progress
    from skdeploy.shards.division import DivisionOptions
    from skdeploy.shards.part import Job, Part
    from skdeploy.shards.shard import Shard

PartOutput = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write the result to this file, and nothing to the bundle, which may be read-only. With --shard: the file of its "
        "part.  [default: the bundle's evidence/]",
        rich_help_panel=Panel.OUTPUT,
    ),
]
FreshParts = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Make parts of an earlier run again, instead of going on with them.",
        rich_help_panel=Panel.SHARDS,
    ),
]


def check_division(
    division: DivisionOptions, output: Path | None, *, fresh: bool = False, stepwise: bool = False
) -> None:
    """Raises UsageError for options of shards that do not belong together; ``fresh`` is that of parts."""
    division.check_division(output, stepwise=stepwise)
    if fresh and division.shard is None and division.farm is None:
        raise UsageError("--fresh requires --shard, --workers or --cluster: only parts are kept from earlier runs")


def require_no_gate(given: Mapping[str, object]) -> None:
    """Raises UsageError for options that only the merge can follow; ``given`` are flags with their values."""
    flags = [flag for flag, value in given.items() if value not in (None, False)]
    if flags:
        raise UsageError(
            f"{', '.join(flags)} cannot be used with --shard: a part decides nothing",
            advice="give it with --parts, where all images are there",
        )


def collector(division: DivisionOptions, tell: Progress, *, computes: bool = False) -> Callable[[Job], Sequence[Part]]:
    """A function that gives the parts of a job, from the files of --parts; ``computes``: the merge does the last step."""
    from skdeploy.shards.collect import collect
    from skdeploy.shards.machine import machine_kind

    here, mixed = machine_kind() if computes else None, division.allow_mixed_cpus
    return lambda job: collect(division.parts, job, tell, allow_mixed_cpus=mixed, here=here)


def write_shard(
    division: DivisionOptions,
    output: Path,
    make: Callable[[Shard, Progress, Part | None], Part],
    *,
    fresh: bool,
    as_json: bool,
) -> None:
    """Makes a part, writes and prints it; one that is there already is left as it is.

    Raises as ``make``; UsageError where the file has another shard of the same division.
    """
    from skdeploy.cli.console import write_json
    from skdeploy.core.files import require_places
    from skdeploy.report.progress import ConsoleProgress
    from skdeploy.report.terminal import Terminal
    from skdeploy.shards.part import earlier_part, refuse_other_shard, write_part

    one = division.one
    assert one is not None
    require_places(output)
    earlier = None if fresh else earlier_part(output)
    with ConsoleProgress() as progress:
        part = make(one, progress, earlier)
    if part is not earlier:
        if not fresh:  # another run may have written to the same file meanwhile
            refuse_other_shard(earlier_part(output), part.header.job, one)
        write_part(output, part.encode())
    job, header = part.header.job, part.header
    if as_json:
        write_json(
            {
                "part": str(output),
                "shard": str(one),
                "samples": job.samples,
                "reused": part is earlier,
                "cpu": header.cpu,
                "seconds": header.seconds,
            }
        )
        return
    reused = ": it is there already; --fresh makes it again" if part is earlier else f", {header.seconds:.1f} s"
    Terminal().headline(f"shard {one} of {job.samples:,} samples of {job.data}  ->  {output}{reused}")
