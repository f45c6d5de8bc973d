"""The passes for hardware that an export runs when their flag is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from skdeploy.line.station import RewriteOptions, Station
from skdeploy.line.stations.average_pool import AveragePool, PoolOptions
from skdeploy.line.stations.regroup import Regrouped, RegroupOptions


@dataclass(frozen=True)
class Rewrite:
    """A pass for hardware that an export runs when its flag is given: its station, and the options that carry the flag."""

    station: type[Station[Any, Any]]
    options: type[RewriteOptions]


# Run on the lowered graph, in this order. A new one is its pass, its station, and a line here.
REWRITES: Final[dict[str, Rewrite]] = {
    "regroup": Rewrite(Regrouped, RegroupOptions),
    "average pool": Rewrite(AveragePool, PoolOptions),
}
