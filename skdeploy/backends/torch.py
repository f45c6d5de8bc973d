"""PyTorch: runs the network itself, the reference for all others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np

from skdeploy.backends.base import Array, Deployed, Session
from skdeploy.core.errors import DependencyError, UsageError
from skdeploy.core.packages import EXTRAS, Availability, export_advice, require
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.zoo.outputs import tensors_given

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME: Final = "torch"
FORMAT: Final = "module"
DEVICE: Final = "cpu"
DISTRIBUTIONS: Final = ("torch",)
EXTRA: Final = EXTRAS
HELP: Final = ""
OPTIONS: Final = None


def probe() -> Availability:
    """Whether PyTorch works here, and on which device."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Availability(NAME, False, reason=str(error), install=export_advice())
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return Availability(NAME, True, str(torch.__version__), device=device)


class TorchSession(Session):
    """A network in eval mode on one device: the inputs of the spec, in its order, to its outputs."""

    def __init__(self, network: nn.Module, spec: ModelSpec, device: str, own: str) -> None:
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise DependencyError("torch sees no CUDA device here", advice="see `skdeploy doctor`")
        self._network = network.eval().to(device)
        self._device, self._own = device, own
        dtype = str(next((p.dtype for p in network.parameters()), torch.float32)).removeprefix("torch.")
        self.inputs = tuple(
            each.model_copy(update={"dtype": dtype}) if each.dtype == "float32" else each for each in spec.taken
        )
        self.outputs = tuple(
            wanted.model_copy(update={"dtype": dtype}) if wanted.is_floating else wanted for wanted in spec.given
        )
        self._spec = spec

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        # torch has no negative strides
        given = [torch.tensor(np.ascontiguousarray(feeds[each.name])) for each in self.inputs]
        with torch.inference_mode():
            try:
                made = self._network(*(tensor.to(self._device) for tensor in given))
            except (Exception, SystemExit) as error:
                if not self._own:
                    raise
                raise UsageError(
                    f"{self._own} fails on {_shown(given, self._spec)}: {type(error).__name__}: {error}",
                    advice="it must take any number of images at once, and be callable many times",
                ) from error
        made = tensors_given(made, self._spec, self._own or self._spec.name)
        return {name: tensor.cpu().numpy() for name, tensor in made.items()}


def _shown(given: list[Tensor], spec: ModelSpec) -> str:
    if spec.takes_images:
        return f"images of shape {tuple(given[0].shape)}"
    return ", ".join(f"{each.name} {tuple(tensor.shape)}" for each, tensor in zip(spec.taken, given, strict=True))


def open_session(network: nn.Module, spec: ModelSpec, *, device: str = "cpu", own: str = "") -> TorchSession:
    """Opens a network of ``zoo/``, or one of the user's ``own`` code, named so: what that raises is a UsageError.

    Raises DependencyError for a device that is not here.
    """
    require("torch", extra=EXTRAS)
    return TorchSession(network, spec, device, own)


@contextmanager
def open_deployed(network: nn.Module, spec: ModelSpec, *, precision: Precision, threads: int) -> Iterator[Deployed]:
    """The same, with ``threads`` threads while it is open."""
    del precision
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with open_session(network, spec) as session:
            yield Deployed(session, "torch's eager mode, float32, on the CPU", threads)
    finally:
        torch.set_num_threads(before)
