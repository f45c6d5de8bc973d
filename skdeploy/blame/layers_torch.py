"""Looking into a PyTorch network: the output of every module, by the module's name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from skdeploy.backends.base import Array
from skdeploy.blame.layers import Own, Pair, Recording, Visit, VisitOwn
from skdeploy.core.spec import LOGITS, Precision
from skdeploy.images.dataset import Inputs, Pixels

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    Act = Callable[[str, Tensor], Tensor | None]  # a module's name and its output, to what takes the output's place

INPUT: Final = "input"  # the normalised image, which no module makes
BATCH: Final = 4  # images of 224 x 224 in float64: 0.5 GB of activations


@dataclass(frozen=True)
class TorchStage:
    """A network in one of its forms. ``make`` gives it, built when it is first asked for; it is left as it was.

    ``feed`` gives the input, float32 (N, C, H, W), that this stage is fed with for some crops.
    """

    name: str
    make: Callable[[], nn.Module]
    feed: Callable[[Pixels], Inputs]
    before: str | None = None
    folded: bool = False
    double: bool = False
    precision: Precision = Precision.FP32

    def outputs(self, pixels: Pixels) -> dict[str, Array]:
        """``logits``, (N, classes), in the network's own type: networks of cards have no other outputs."""
        chunks = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
        return {LOGITS: np.concatenate([self._run(self.make(), chunk) for chunk in chunks])}

    def stream(self, pixels: Pixels, names: frozenset[str], visit: Visit) -> None:
        """Shows the outputs of these modules, in the order that they run in, and the input."""

        def show(name: str, output: Tensor) -> None:
            visit(name, output.numpy().copy())  # a Relu in place would change it

        if INPUT in names:
            visit(INPUT, self.feed(pixels))
        self._run(self.make(), pixels, names, show)

    def stream_own(self, pixels: Pixels, pairs: tuple[Pair, ...], recording: Recording, visit: VisitOwn) -> None:
        """Each module's output, where the outputs of all modules before and inside it are replaced by recorded ones."""
        import torch

        by_module = {pair.found: pair for pair in pairs}

        def replace(name: str, output: Tensor) -> Tensor:
            pair = by_module[name]
            visit(Own(pair, output.numpy().copy()))
            recorded = recording.get(pair.reference)
            return torch.from_numpy(np.array(recorded)).to(output.dtype) if recorded.shape == output.shape else output

        self._run(self.make(), pixels, frozenset(by_module), replace)

    def modules(self) -> tuple[str, ...]:
        """The names of all modules, the network itself left out."""
        return tuple(name for name, _ in self.make().named_modules() if name)

    def names_of_folded(self) -> Mapping[str, str]:
        """For each module of the deploy form, the module here that has the same output; none where there is no such module."""
        return same_outputs(self.make()) if not self.folded else {name: name for name in self.modules()}

    def _run(
        self, network: nn.Module, pixels: Pixels, names: frozenset[str] = frozenset(), act: Act | None = None
    ) -> Array:
        import torch

        network = (copy.deepcopy(network).double() if self.double else network).eval()
        images = torch.from_numpy(np.ascontiguousarray(self.feed(pixels)))
        hooks = [] if act is None else _hook(network, names, act)
        try:
            with torch.inference_mode():
                logits: Array = network(images.double() if self.double else images).numpy()
        finally:
            for hook in hooks:
                hook.remove()
        return logits


def same_outputs(network: nn.Module) -> dict[str, str]:
    """For each module of a training form's deploy form (``zoo/fold.py``): the training form's module with the same output.

    A folded convolution gives what the normalisation after it gave. The second FC of a gate of two branches gives the
    difference of the two logits, and a normalisation that went into the convolution after it gives its own input: neither is
    in the training form.
    """
    from skdeploy.zoo.fold import OwnFold
    from skdeploy.zoo.selective_kernel import ConvNormAct, Gate

    same = {name: name for name, _ in network.named_modules() if name}
    for name, module in network.named_modules():
        if isinstance(module, ConvNormAct):
            same[f"{name}.conv"] = f"{name}.bn"
            del same[f"{name}.bn"]
        elif isinstance(module, Gate):
            if hasattr(module, "bn"):
                same[f"{name}.fc1"] = f"{name}.bn"
                del same[f"{name}.bn"]
            if module.branches == 2:
                del same[f"{name}.fc2"]
        elif isinstance(module, OwnFold):
            for child in module.absorbed:
                del same[f"{name}.{child}"]
    return same


def _hook(network: nn.Module, names: frozenset[str], act: Act) -> list[RemovableHandle]:
    """Calls ``act`` with the output of each of these modules that gives one tensor, alone or in a list; what it returns
    takes the output's place."""
    import torch

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            listed = isinstance(output, list) and len(output) == 1
            tensor = output[0] if listed else output
            if not isinstance(tensor, torch.Tensor):
                return None
            changed = act(name, tensor)
            return None if changed is None else [changed] if listed else changed

        return hook

    modules = [(name, module) for name, module in network.named_modules() if name in names]
    return [module.register_forward_hook(hook_of(name)) for name, module in modules]
