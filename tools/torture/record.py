"""The JSON of a campaign that grows, and may go on from it on another machine: which machine has made how much of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import describe
from skdeploy.core.files import write_text

OF_A_PART: Final = ("date", "made")


@dataclass
class Record:
    """Of the campaign ``name``, of whose findings ``count`` takes the total. Without a path nothing is kept."""

    path: Path | None
    name: str
    count: Callable[[Mapping[str, Any]], int]
    seed: int
    found: dict[str, Any] = field(init=False, default_factory=dict)
    machines: list[dict[str, Any]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Read what an earlier run of the campaign with this seed has found, and where."""
        if self.path is None or not self.path.exists():
            return
        kept = json.loads(self.path.read_text(encoding="utf-8"))
        if kept[self.name]["seed"] == self.seed:
            self.found = kept[self.name]
            # A file from before machines were counted was made on one.
            self.machines = kept.get("machines") or [{**kept["machine"], "made": self.count(self.found)}]

    def forget(self, count: int) -> None:
        """Take what will be made again from the counts: the newest first, since no entry says which machine made it."""
        for each in reversed(self.machines):
            taken = min(count, each["made"])
            each["made"], count = each["made"] - taken, count - taken

    def save(self, found: Mapping[str, Any]) -> None:
        """Write all that is found by now: what no earlier machine has made, this one has."""
        if self.path is None:
            return
        here, others = describe(), list(self.machines)
        if others and _lasting(others[-1]) == _lasting(here):
            others.pop()
        here["made"] = self.count(found) - sum(each["made"] for each in others)
        content = {"machines": [*others, here], self.name: {"seed": self.seed, **found}}
        write_text(self.path, json.dumps(content, indent=2) + "\n")


def _lasting(machine: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in machine.items() if name not in OF_A_PART}
