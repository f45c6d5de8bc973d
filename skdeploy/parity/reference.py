"""The reference of artifacts: torch's network, or the first FP32 graph if there is no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from skdeploy.backends import onnxruntime
from skdeploy.backends import torch as torch_backend
from skdeploy.backends.base import Array, Session
from skdeploy.backends.logits import run_images
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle
from skdeploy.core.architecture import ModuleSpec
from skdeploy.core.errors import ParityError
from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import Pixels
from skdeploy.parity.tasks import judged, task_of

if TYPE_CHECKING:
    from torch import nn

TORCH_REFERENCE: Final = "torch float32, training form"
GRAPH_REFERENCE: Final = "{graph} on {backend}, the bundle's own first {precision} graph, not torch"


@dataclass(frozen=True)
class Author:
    """A network as its author's own code builds it, with its weights, float32 and in eval mode."""

    name: str
    network: nn.Module

    @property
    def reference(self) -> str:
        """The name in a report."""
        return f"{self.name}, the author's own code"


@dataclass(frozen=True)
class Reference:
    """``open`` gives a session for the input size that a spec says."""

    name: str
    open: Callable[[ModelSpec], Session]

    def tried(self, pixels: Pixels, spec: ModelSpec) -> tuple[dict[str, Array] | None, tuple[str, ...]]:
        """The outputs of crops that the card's task compares, or None and what is wrong with them."""
        task = task_of(spec)
        with self.open(spec) as session:
            outputs = run_images(session, pixels, spec)
        problems = task.check(outputs, len(pixels), spec)
        return (None if problems else judged(spec, outputs)), problems

    def outputs(self, pixels: Pixels, spec: ModelSpec) -> dict[str, Array]:
        """The same. Raises ParityError for outputs that are not finite, or have another shape than they should."""
        outputs, problems = self.tried(pixels, spec)
        if outputs is None:
            raise ParityError(
                f"the reference, {self.name}, cannot be used: {problems[0]}", advice="check the weights and the images"
            )
        return outputs


def reference_of(
    bundle: Bundle,
    base: Artifact | None,
    network: nn.Module | None,
    author: Author | None = None,
    elsewhere: Callable[[ModelSpec], Session] | None = None,
) -> Reference:
    """The author's network, else ours, which may run ``elsewhere``, else ``base``: one of them must be there."""
    if author is not None:
        return Reference(
            author.reference, lambda spec: torch_backend.open_session(author.network, spec, own=author.name)
        )
    if elsewhere is not None:
        return Reference(TORCH_REFERENCE, elsewhere)
    if network is not None:
        described = bundle.manifest.model.network
        own = (described.factory or "") if isinstance(described, ModuleSpec) else ""
        return Reference(TORCH_REFERENCE, lambda spec: torch_backend.open_session(network, spec, own=own))
    assert base is not None  # the caller checked
    path = bundle.check(base)
    name = GRAPH_REFERENCE.format(graph=base.path, backend=onnxruntime.NAME, precision=base.words)
    return Reference(name, lambda _: onnxruntime.open_session(path))
