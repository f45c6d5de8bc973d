"""The options that divide a verb's work among machines, and what is printed of a part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skdeploy.core.errors import UsageError
from skdeploy.core.panel import Panel
from skdeploy.shards.shard import Shard

if TYPE_CHECKING:
    from skdeploy.core.progress import Progress
    from skdeploy.shards.cluster import Cluster
    from skdeploy.shards.part import Job, Part

ShardText = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="INDEX/COUNT",
        help="Do only this share of the images, such as 3/64, and write it to -o for --parts.",
        rich_help_panel=Panel.SHARDS,
    ),
]
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
Parts = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILES",
        help="Merge these parts instead of running anything: a file or a quoted pattern, repeatable.",
        rich_help_panel=Panel.SHARDS,
    ),
]
AllowMixedCpus = Annotated[
    bool,
    typer.Option(
        "--allow-mixed-cpus",
        help="Merge parts of machines of different kinds, which may round differently.",
        rich_help_panel=Panel.SHARDS,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Divide the images among N processes of this machine, of one thread each.",
        rich_help_panel=Panel.SHARDS,
    ),
]
ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="Divide the images among the workers of this Dask scheduler: tcp://HOST:8786. They need the bundle and the data "
        "at the same paths.",
        rich_help_panel=Panel.SHARDS,
    ),
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        "--cluster-tls-ca", metavar="FILE", help="Authority of a cluster tls://HOST:PORT.", rich_help_panel=Panel.SHARDS
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        "--cluster-tls-cert", metavar="FILE", help="Certificate to show to that cluster.", rich_help_panel=Panel.SHARDS
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option("--cluster-tls-key", metavar="FILE", help="Key of that certificate.", rich_help_panel=Panel.SHARDS),
]


def check_division(
    shard: str | None, output: Path | None, parts: Sequence[str] | None, cluster: Cluster | None, *, mixed: bool
) -> None:
    """Raises UsageError for options of shards that do not belong together."""
    if cluster is not None:
        cluster.check()
    if cluster is not None and (shard is not None or parts):
        raise UsageError("--workers and --cluster make and merge all shards: leave --shard and --parts out")
    if shard is not None and parts:
        raise UsageError("--shard and --parts cannot be used together: one makes a part, the other merges parts")
    if shard is not None and output is None:
        raise UsageError("--shard needs -o FILE for its part", advice="give both, or neither")
    if mixed and not parts and cluster is None:
        raise UsageError(
            "--allow-mixed-cpus requires --parts or --cluster", advice="give it where the parts are merged"
        )


def cluster_of(
    workers: int | None, address: str | None, ca: Path | None, cert: Path | None, key: Path | None
) -> Cluster | None:
    """The cluster that the options describe; None without any of them."""
    from skdeploy.shards.cluster import Cluster

    given = Cluster(workers, address, ca, cert, key)
    return None if given == Cluster() else given


def require_no_gate(given: Mapping[str, object]) -> None:
    """Raises UsageError for options that only the merge can follow; ``given`` are flags with their values."""
    flags = [flag for flag, value in given.items() if value not in (None, False)]
    if flags:
        raise UsageError(
            f"{', '.join(flags)} cannot be used with --shard: a part decides nothing",
            advice="give it with --parts, where all images are there",
        )


def collector(parts: Sequence[str], tell: Progress, *, mixed: bool) -> Callable[[Job], Sequence[Part]]:
    """A function that gives the parts of a job."""
    from skdeploy.shards.collect import collect

    return lambda job: collect(parts, job, tell, allow_mixed_cpus=mixed)


def write_shard(
    shard: str,
    output: Path,
    make: Callable[[Shard, Progress, Part | None], Part],
    *,
    fresh: bool,
    as_json: bool,
) -> None:
    """Makes a part, writes and prints it; one that is there already is left as it is. Raises as ``make``."""
    from skdeploy.cli.console import write_json
    from skdeploy.core.files import require_places
    from skdeploy.report.progress import ConsoleProgress
    from skdeploy.report.terminal import Terminal
    from skdeploy.shards.part import earlier_part, write_part

    one = Shard.parse(shard)
    require_places(output)
    earlier = None if fresh else earlier_part(output)
    with ConsoleProgress() as progress:
        part = make(one, progress, earlier)
    if part is not earlier:
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
