"""Shards divide whole batches, and lose or double none."""

from __future__ import annotations

import pytest

from skdeploy.core.errors import UsageError
from skdeploy.shards.shard import Shard


@pytest.mark.parametrize(
    ("items", "batch", "count"), [(61, 8, 1), (61, 8, 2), (61, 8, 7), (61, 8, 64), (1, 8, 3), (64, 8, 8)]
)
def test_each_sample_is_in_one_shard_and_no_batch_is_divided(items: int, batch: int, count: int) -> None:
    spans = [Shard(index, count).span(items, batch) for index in range(1, count + 1)]
    assert [row for span in spans for row in span] == list(range(items))
    assert all(span.start % batch == 0 for span in spans if span)
    sizes = [-(-len(span) // batch) for span in spans]
    assert max(sizes) - min(sizes) <= 1  # whole batches, as even as they can be


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "1/0", "a/b", "1/2/3", "-1/4", "1 /4", "1.0/4"])
def test_what_is_not_a_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a shard"):
        Shard.parse(text)


def test_a_shard_is_read_as_it_is_written() -> None:
    assert str(Shard.parse("3/64")) == "3/64"
