"""Which samples a shard has: whole batches in a row, so that each batch is the one that it is without shards."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from skdeploy.core.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """The ``index``-th of ``count`` shards, from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """``3/64``. Raises UsageError."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(
                f"--shard {text}: this is not a shard", advice="write INDEX/COUNT, from 1/COUNT to COUNT/COUNT: 3/64"
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def span(self, items: int, batch: int) -> range:
        """The shard's samples of ``items``, in whole batches but for the last; none if there are more shards than batches."""
        batches = -(-items // batch)
        first, last = (at * batches // self.count * batch for at in (self.index - 1, self.index))
        return range(min(first, items), min(last, items))
