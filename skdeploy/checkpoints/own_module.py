"""A module of the user's own: built by their function, its weights loaded, run once."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.errors import UsageError, WeightsError
from skdeploy.core.spec import ModelSpec, TensorSpec
from skdeploy.zoo.outputs import named_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn


def load_checkpoint(module: nn.Module, path: Path, factory: str) -> None:
    """Load the weights in ``path`` by the module's own keys, each of them. Raises WeightsError."""
    from skdeploy.checkpoints.prefixes import without_prefix
    from skdeploy.checkpoints.read import read_checkpoint

    own = module.state_dict()
    checkpoint = read_checkpoint(path)
    prefix = _own_prefix(checkpoint.peeled, list(own))
    if not prefix:  # else the module holds another, as the checkpoint's did
        checkpoint = without_prefix(checkpoint, lambda keys: sum(key in own for key in keys), path)
    try:
        module.load_state_dict({prefix + key: tensor for key, tensor in checkpoint.tensors.items()})
    except RuntimeError as error:
        raise WeightsError(
            f"{path} does not fit {factory}: {_misfit(own, checkpoint.tensors, prefix, error)}",
            advice="give a checkpoint whose keys are those of the module",
        ) from error


def _misfit(own: Mapping[str, Tensor], given: Mapping[str, Tensor], prefix: str, error: RuntimeError) -> str:
    """The first key of each kind that does not fit: a checkpoint has hundreds."""
    there = {prefix + key for key in given}
    lacking, unknown = [key for key in own if key not in there], sorted(there - own.keys())
    said = [f"{len(lacking)} keys are missing, the first is {lacking[0]!r}"] if lacking else []
    said += [f"{len(unknown)} keys are not in the module, the first is {unknown[0]!r}"] if unknown else []
    return "; ".join(said) or str(error).splitlines()[-1].strip()


def ready(module: nn.Module) -> nn.Module:
    """The module in float32 and eval mode, its parameters frozen."""
    module = module.float().eval()
    for parameter in module.parameters():  # a ScriptModule has no requires_grad_
        parameter.requires_grad_(False)
    return module


def require_finite(module: nn.Module, shown: str) -> None:
    """Raises WeightsError for NaN, and for an infinite parameter: a buffer may be a mask of infinities."""
    parameters = [(name, tensor, tensor.isfinite()) for name, tensor in module.named_parameters()]
    buffers = [(name, tensor, ~tensor.isnan()) for name, tensor in module.named_buffers()]
    for name, tensor, good in (*parameters, *buffers):
        if not bool(good.all()):
            raise WeightsError(
                f"{shown}: {int((~good).sum()):,} of the {tensor.numel():,} values of {name} are NaN or infinite",
                advice="the training diverged, or the file is damaged: give an earlier checkpoint",
            )


def _own_prefix(peeled: tuple[str, ...], keys: list[str]) -> str:
    """Find the peeled prefix that belongs to the module, such as that of a module that holds another as ``model``."""
    prefixes = [name for name in peeled if name.endswith(".")]
    candidates = ["".join(prefixes[first:]) for first in range(len(prefixes) + 1)]
    return next(prefix for prefix in candidates if all(key.startswith(prefix) for key in keys))


def build_module(factory: str) -> nn.Module:
    from torch import nn

    name, _, attribute = factory.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: the user's package is where the user is
    try:
        module: Any = importlib.import_module(name)
        build = getattr(module, attribute)
        built = build()
    except SystemExit as error:
        raise UsageError(
            f"{factory} did not build a network: its code ended with sys.exit({error.code!r})",
            advice="put code that only a script runs, such as reading the command line, under `if __name__ == "
            '"__main__":`',
        ) from error
    except Exception as error:  # the user's own code can raise anything, and the traceback is theirs to read
        raise UsageError(
            f"{factory} did not build a network: {type(error).__name__}: {error}",
            advice="check that it can be imported from here and called without arguments",
        ) from error
    if not isinstance(built, nn.Module):
        raise UsageError(f"{factory} returned a {type(built).__name__}, not a torch.nn.Module")
    return built


Shown = dict[str, TensorSpec]  # outputs by name, with the shapes that 2 images gave


def tried(
    module: nn.Module, candidates: tuple[int, ...], size: tuple[int, int], factory: str
) -> tuple[int, dict[int, Shown]]:
    """The first number of channels that the module runs on, and for each that it runs on its outputs for 2 images.

    No layer says what reads the image: it may be declared last, or behind a space-to-depth. So the module is run.
    """
    failures, shapes = [], {}
    for channels in candidates:
        try:
            outputs = _outputs(module, channels, size)
        except UsageError as error:
            failures.append(error.message)
            continue
        shapes[channels] = _shown(outputs, factory)
    if not shapes:
        raise UsageError(
            f"{factory} does not run on 2 images\n  " + "\n  ".join(failures),
            advice="it must take one tensor of images, (N, 3 or 1, H, W): give its height and width with --imgsz; or "
            "describe its inputs with --card, other ones than images as [[inputs]]",
        )
    return next(iter(shapes)), shapes


def tried_arrays(module: nn.Module, spec: ModelSpec, factory: str) -> Shown:
    """The outputs for two samples of the inputs that a card describes, in their order. Raises UsageError."""
    import torch

    given = [torch.zeros(2, *spec.usual_shape(each.shape), dtype=getattr(torch, each.dtype)) for each in spec.inputs]
    try:
        with torch.inference_mode():
            made: object = module(*given)
    except (Exception, SystemExit) as error:  # the user's own code
        shown = ", ".join(f"{each.name} {tuple(tensor.shape)}" for each, tensor in zip(spec.inputs, given, strict=True))
        raise UsageError(
            f"{factory} does not run on {shown}: {type(error).__name__}: {error}",
            advice="the card's [[inputs]] must be those of forward, in its order, and [sizes] what it takes",
        ) from error
    return _shown(made, factory)


def _shown(made: object, factory: str) -> Shown:
    return {
        name: TensorSpec(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))
        for name, tensor in named_tensors(made, factory).items()
    }


def require_batch(shown: Shown, factory: str) -> None:
    """Raises UsageError for outputs, of 2 images, that do not begin with the batch."""
    for name, made in shown.items():
        if made.shape[:1] != (2,):
            raise UsageError(
                f"{factory} returns {name} of shape {made.shape} for 2 images: its first axis is not the batch",
                advice="return outputs whose first axis is the batch",
            )


def sizes_of(made: TensorSpec) -> tuple[int, ...]:
    """The shape of an output that an example gave."""
    return tuple(size for size in made.shape if isinstance(size, int))


def gives_logits(shown: Shown) -> bool:
    """Whether there is one output, floating point, (N, classes)."""
    return [(len(made.shape), made.is_floating) for made in shown.values()] == [(2, True)]


def classes_of(shown: Shown, factory: str) -> int:
    """The number of classes of a classifier. Raises UsageError for outputs of anything else."""
    found = [made.shape for made in shown.values()]
    if gives_logits(shown) and found[0][0] == 2 and isinstance(found[0][1], int):
        return found[0][1]
    said = ", ".join(str(made.shape) + ("" if made.is_floating else f" {made.dtype}") for made in shown.values())
    raise UsageError(
        f"{factory} returns {said} for 2 images; a classifier returns one tensor of (2, classes)",
        advice="make the function return a module whose forward gives only the logits, or say what it is for with --task",
    )


def _outputs(module: nn.Module, channels: int, size: tuple[int, int]) -> object:
    import torch

    try:
        with torch.inference_mode():
            outputs: object = module(torch.zeros(2, channels, *size))
    except (Exception, SystemExit) as error:  # the user's own code
        raise UsageError(f"on {channels} x {size[0]} x {size[1]}: {type(error).__name__}: {error}") from error
    return outputs


def digested(record: WeightsRecord, module: nn.Module) -> WeightsRecord:
    """The digest of the weights that the module has, wherever they came from."""
    if record.source == "checkpoint":
        return record
    digest = hashlib.sha256()
    for key, tensor in module.state_dict().items():
        digest.update(key.encode() + tensor.cpu().numpy().tobytes())
    return record.model_copy(update={"sha256": digest.hexdigest()})


def outputs_of(given: Shown, other: Shown) -> tuple[TensorSpec, ...]:
    """The outputs of a module as two sizes of input gave them: what differs between them is free."""
    return tuple(
        TensorSpec(
            name=name,
            dtype=made.dtype,
            shape=(
                "batch",
                *(
                    one if one == two else f"{name}_{axis}"
                    for axis, (one, two) in enumerate(zip(made.shape[1:], other[name].shape[1:], strict=True), 1)
                ),
            ),
        )
        for name, made in given.items()
    )
