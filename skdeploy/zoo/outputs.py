"""The outputs of a network by name, whatever its forward gives: a tensor, a sequence, a mapping, or these inside each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Final

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

ONE: Final = "output"  # the name of the only output


def named_tensors(made: object, shown: str) -> dict[str, Tensor]:
    """The tensors in what a network gave, in order.

    A single tensor is ``output``. Keys of a mapping and fields of a named tuple or dataclass are names; places in a sequence
    are numbers: ``output_0``. None and complex numbers are left out. Raises UsageError, naming ``shown``, for another type.
    """
    import torch

    if isinstance(made, torch.Tensor):
        return {ONE: made}
    found = {name: tensor for name, tensor in _leaves(made, "", shown) if not tensor.is_complex()}
    if not found:
        raise UsageError(f"{shown} returns no tensor", advice="its forward must return what is deployed")
    return found


def tensors_given(made: object, spec: ModelSpec, shown: str) -> dict[str, Tensor]:
    """The outputs of the spec in what its network gave, in the spec's order. Raises UsageError where one is missing."""
    import torch

    if not spec.outputs:
        if not isinstance(made, torch.Tensor):
            raise UsageError(f"{shown} returns a {type(made).__name__}, but returned a tensor before")
        return {spec.given[0].name: made}
    tensors = named_tensors(made, shown)
    missing = [wanted.name for wanted in spec.outputs if wanted.name not in tensors]
    if missing:
        raise UsageError(
            f"{shown} returns {', '.join(tensors)}, but not the output {missing[0]}",
            advice="it must return the same outputs for any input",
        )
    return {wanted.name: tensors[wanted.name] for wanted in spec.outputs}


def with_named_outputs(network: nn.Module, spec: ModelSpec) -> nn.Module:
    """The network with its outputs as the spec has them: a tuple in its order, which exporters can name."""
    from torch import nn

    class NamedOutputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            return tuple(tensors_given(self.network(*inputs), spec, spec.name).values())

    return NamedOutputs()


def with_outputs_in_order(network: nn.Module, spec: ModelSpec) -> nn.Module:
    """The network with the names of the spec for its outputs, which has given them other ones or none: in the same order."""
    from torch import nn

    class OutputsInOrder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
            made = named_tensors(self.network(*inputs), spec.name)
            return dict(zip((wanted.name for wanted in spec.outputs), made.values(), strict=True))

    return OutputsInOrder()


def are_unnamed(names: Iterable[str]) -> bool:
    """Whether these are the names of tensors that the network itself gave none: of a single one, or of places in a sequence."""
    return all(name == ONE or name.removeprefix(f"{ONE}_").isdecimal() for name in names)


def _leaves(made: object, name: str, shown: str) -> Iterator[tuple[str, Tensor]]:
    import torch

    if isinstance(made, torch.Tensor):
        yield name, made
    elif made is None:
        return
    elif isinstance(made, Mapping):
        for key, value in made.items():
            yield from _leaves(value, f"{name}_{key}" if name else str(key), shown)
    elif is_dataclass(made) and not isinstance(made, type):
        for each in fields(made):
            yield from _leaves(getattr(made, each.name), f"{name}_{each.name}" if name else each.name, shown)
    elif isinstance(made, tuple | list):
        keys = getattr(made, "_fields", None) or range(len(made))
        for key, value in zip(keys, made, strict=True):
            own = key if isinstance(key, str) and not name else f"{name or ONE}_{key}"
            yield from _leaves(value, own, shown)
    else:
        raise UsageError(
            f"{shown} returns a {type(made).__name__}, not tensors",
            advice="return a tensor, or a tuple, list or dictionary of tensors",
        )
