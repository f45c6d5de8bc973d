"""The options that divide a verb's work among machines: the same for every verb that can be divided."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from skdeploy.core.errors import UsageError
from skdeploy.core.options import Flag, StationOptions
from skdeploy.core.panel import Panel
from skdeploy.shards.shard import Shard

if TYPE_CHECKING:
    from skdeploy.shards.cluster import Cluster


class DivisionOptions(StationOptions):
    """One shard, the merge of parts, or all shards by workers; nothing of it means one run."""

    panel = Panel.SHARDS
    shard: Annotated[
        str | None,
        Flag(
            "Do only this share of the work, such as 3/64, and write it to -o for --parts.",
            metavar="INDEX/COUNT",
            kept=False,
        ),
    ] = None
    parts: Annotated[
        tuple[str, ...],
        Flag(
            "Merge these parts instead of making them: a file or a quoted pattern, repeatable.",
            metavar="FILES",
            kept=False,
        ),
    ] = ()
    allow_mixed_cpus: Annotated[
        bool, Flag("Merge parts of machines of different kinds, which may round differently.", kept=False)
    ] = False
    workers: Annotated[
        int | None,
        Flag("Divide the work among N processes of this machine, of one thread each.", metavar="N", kept=False),
    ] = None
    cluster: Annotated[
        str | None,
        Flag(
            "Divide the work among the workers of this Dask scheduler: tcp://HOST:8786. They need the files that you name at "
            "the same paths.",
            metavar="ADDRESS",
            kept=False,
        ),
    ] = None
    cluster_tls_ca: Annotated[
        Path | None, Flag("Authority of a cluster tls://HOST:PORT.", metavar="FILE", kept=False)
    ] = None
    cluster_tls_cert: Annotated[
        Path | None, Flag("Certificate to show to that cluster.", metavar="FILE", kept=False)
    ] = None
    cluster_tls_key: Annotated[Path | None, Flag("Key of that certificate.", metavar="FILE", kept=False)] = None

    @property
    def farm(self) -> Cluster | None:
        """The workers; None where none were asked for."""
        from skdeploy.shards.cluster import Cluster  # help needs no arrays

        given = Cluster(self.workers, self.cluster, self.cluster_tls_ca, self.cluster_tls_cert, self.cluster_tls_key)
        return None if given == Cluster() else given

    @property
    def one(self) -> Shard | None:
        """The shard to make. Raises UsageError for a text that names none."""
        return None if self.shard is None else Shard.parse(self.shard)

    def check_division(self, output: Path | None, *, stepwise: bool = False) -> None:
        """Raises UsageError for options that do not belong together; ``output`` is the file of -o. ``stepwise``: a shard may
        take the parts of an earlier step.
        """
        farm = self.farm
        if farm is not None:
            farm.check()
        if farm is not None and (self.shard is not None or self.parts):
            raise UsageError("--workers and --cluster make and merge all shards: leave --shard and --parts out")
        if self.shard is not None and self.parts and not stepwise:
            raise UsageError("--shard and --parts cannot be used together: one makes a part, the other merges parts")
        if self.shard is not None and output is None:
            raise UsageError("--shard needs -o FILE for its part", advice="give both, or neither")
        if self.allow_mixed_cpus and not self.parts and farm is None:
            raise UsageError(
                "--allow-mixed-cpus requires --parts or --cluster", advice="give it where the parts are merged"
            )
