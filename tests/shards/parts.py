"""Parts of a job that nobody ran."""

from __future__ import annotations

from typing import Any

import numpy as np

from skdeploy.shards.part import Header, Job, Part

JOB = Job(
    verb="evaluate",
    made_of={"model.onnx on onnxruntime": "a" * 64},
    data="eval",
    data_sha256="d" * 64,
    samples=40,
    options={"batch": 8},
    versions={"onnxruntime": "1.0"},
)


def part_of(index: int, count: int = 3, cpu: str = "x86_64 A", **changes: Any) -> Part:
    """A part of ``JOB`` with ``changes``, named as its shard."""
    job = JOB.model_copy(update=changes)
    header = Header(job=job, index=index, count=count, cpu=cpu, seconds=1.0, facts={"rows": [index]})
    return Part(header, {"logits0": np.full((2, 5), index, np.float32)}, f"part-{index}")
