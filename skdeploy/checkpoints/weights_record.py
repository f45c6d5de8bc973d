"""Where the weights of a bundle came from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from skdeploy.core.spec import Frozen


class WeightsRecord(Frozen):
    """Where the weights came from: a checkpoint by name and digest, or a seed, which means an untrained network.

    ``repo``, ``revision`` and ``commit`` are of a checkpoint from the Hugging Face Hub: the repository, what was asked for
    (null: its default branch), and the commit that this was then. ``data``: the digests of the files beside an ONNX file that
    hold its weights, by name.
    """

    source: Literal["checkpoint", "random"]
    file: str | None = None
    sha256: str | None = None
    data: Annotated[dict[str, str], Field(exclude_if=lambda data: not data)] = Field(default={})
    seed: int | None = None
    repo: str | None = None
    revision: str | None = None
    commit: str | None = None
