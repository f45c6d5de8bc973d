"""PyTorch: runs the network itself, the reference for all others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np

from skdeploy.backends.base import Array, Deployed, Session
from skdeploy.core.errors import DependencyError, UsageError
from skdeploy.core.packages import ADVICE, EXTRAS, Availability, require
from skdeploy.core.spec import ModelSpec, Precision, TensorSpec
from skdeploy.zoo.outputs import tensors_given

if TYPE_CHECKING:
    from torch import nn

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
        return Availability(NAME, False, reason=str(error), install=ADVICE)
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return Availability(NAME, True, str(torch.__version__), device=device)


class TorchSession(Session):
    """A network in eval mode on one device: ``input`` (batch, C, H, W) to the outputs of the spec."""

    def __init__(self, network: nn.Module, spec: ModelSpec, device: str, own: str) -> None:
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise DependencyError("torch sees no CUDA device here", advice="see `skdeploy doctor`")
        self._network = network.eval().to(device)
        self._device, self._own = device, own
        dtype = str(next((p.dtype for p in network.parameters()), torch.float32)).removeprefix("torch.")
        self.inputs = (TensorSpec(name="input", dtype=dtype, shape=("batch", *spec.input.shape)),)
        self.outputs = tuple(wanted.model_copy(update={"dtype": dtype}) for wanted in spec.given)
        self._spec = spec

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        images = torch.tensor(np.ascontiguousarray(feeds["input"]))  # torch has no negative strides
        with torch.inference_mode():
            try:
                made = self._network(images.to(self._device))
            except (Exception, SystemExit) as error:
                if not self._own:
                    raise
                raise UsageError(
                    f"{self._own} fails on images of shape {tuple(images.shape)}: {type(error).__name__}: {error}",
                    advice="it must take any number of images at once, and be callable many times",
                ) from error
        made = tensors_given(made, self._spec, self._own or self._spec.name)
        return {name: tensor.cpu().numpy() for name, tensor in made.items()}


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
