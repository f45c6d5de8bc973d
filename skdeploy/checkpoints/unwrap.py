"""Where in a training script's checkpoint the network's weights are: the wrappers around them and what lies beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skdeploy.core.errors import WeightsError
from skdeploy.core.listing import some

if TYPE_CHECKING:
    from torch import Tensor

Content = Mapping[Any, Any]

MAX_WRAPPERS: Final = 3

# Weights averaged over the training, which are the better ones; taken before the others where they are as many.
AVERAGED: Final = (
    "params_ema",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "model_ema",
    "ema_model",
    "ema",
)
WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "params", "net", "network", "resnet")
NOT_WEIGHTS: Final = ("optim", "sched", "scaler", "loss", "criterion", "metric", "amp", "rng", "callback", "hyper")
COUNTERS: Final = ("n_averaged", "total_ops", "total_params")  # torch's AveragedModel, thop


def unwrapped(content: Any, path: Path) -> tuple[Content, list[str], list[Any]]:
    """Return the dict in which the tensors are, the wrappers around it, and what lay beside them. Raises WeightsError.

    A known name is taken first, averaged weights before others; else the only entry that holds tensors and is not something
    else's, such as an optimizer's.
    """
    peeled: list[str] = []
    dropped: list[Any] = []
    if isinstance(content, list | tuple):
        content, position = _from_sequence(content, path)
        peeled.append(position)
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{path} holds a {type(content).__name__}, not a state_dict", advice="save model.state_dict()"
        )
    inner: Content = content
    for _ in range(MAX_WRAPPERS):
        wrapper = _wrapper(inner)
        if wrapper is None:
            break
        dropped += [key for key in inner if key != wrapper]
        peeled.append(label(wrapper))
        inner = inner[wrapper]
    if not any(map(is_tensor, inner.values())):
        raise _without_weights(content, inner, path)
    return inner, peeled, dropped


def without_counters(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors without the scalars in which averaging and profiling count, and one name for each kind of these."""
    counters = {
        key: key.rpartition(".")[2]
        for key, tensor in tensors.items()
        if key.rpartition(".")[2] in COUNTERS and tensor.numel() == 1
    }
    kept = {key: tensor for key, tensor in tensors.items() if key not in counters}
    return (kept, sorted(set(counters.values()))) if kept else (dict(tensors), [])


def _from_sequence(content: Sequence[Any], path: Path) -> tuple[Content, str]:
    """The one state_dict in a list, such as [state_dict, epoch]."""
    inside = {id(value): value for value in content if isinstance(value, Mapping)}
    filled = {identity for identity, value in inside.items() if next(_tensors(value), None) is not None}
    found = [index for index, value in enumerate(content) if id(value) in filled]
    if len(found) != 1:
        held = f"with {len(found)} dicts of tensors" if found else "without a dict of tensors"
        raise WeightsError(
            f"{path} holds a {type(content).__name__} of {len(content)} entries, {held}",
            advice="save only model.state_dict()",
        )
    return content[found[0]], f"entry {found[0]} of a {type(content).__name__}"


def _wrapper(content: Content) -> Any:
    """The key under which the weights are; None if they are here, or if nothing tells where."""
    if "param_groups" in content:
        return None
    inside = {id(value): value for value in content.values() if isinstance(value, Mapping)}
    counts = {identity: sum(1 for _ in _tensors(value)) for identity, value in inside.items()}  # each dict once
    filled = {key: count for key, value in content.items() if (count := counts.get(id(value), 0))}
    averaged = next((name for name in AVERAGED if name in filled), None)
    plain = next((name for name in WRAPPERS if name in filled), None)
    if averaged is not None and (plain is None or filled[averaged] >= filled[plain]):
        return averaged
    if plain is not None:
        return plain
    here = [value for value in content.values() if is_tensor(value) and value.ndim]
    candidates = [key for key in filled if not _is_something_else(key, content[key])]
    return candidates[0] if len(candidates) == 1 and not here else None


def _is_something_else(key: object, value: Content) -> bool:
    return "param_groups" in value or not isinstance(key, str) or any(word in key.lower() for word in NOT_WEIGHTS)


def _tensors(content: Content) -> Iterator[Any]:
    """The tensors of a dict, and of dicts in it; each dict once, since a file may hold one in a million places."""
    seen: set[int] = set()
    level: list[Content] = [content]
    for _ in range(MAX_WRAPPERS):
        following: list[Content] = []
        for one in level:
            if id(one) in seen:
                continue
            seen.add(id(one))
            for value in one.values():
                if is_tensor(value):
                    yield value
                elif isinstance(value, Mapping):
                    following.append(value)
        level = following


def _without_weights(content: Content, inner: Content, path: Path) -> WeightsError:
    """Why there are none, by what there is instead."""
    folders = {key: value for key, value in inner.items() if isinstance(value, Mapping)}
    distinct = {id(value): value for value in folders.values()}
    filled = {identity for identity, value in distinct.items() if any(map(is_tensor, value.values()))}
    elsewhere = [
        label(key) for key, value in folders.items() if id(value) in filled and not _is_something_else(key, value)
    ]
    if elsewhere:
        return WeightsError(
            f"{path} has several groups of tensors, and their names do not show which one is the network: "
            f"{some(elsewhere, 10)}",
            advice=f"save only that group, or save it under one of the keys {', '.join(WRAPPERS)}",
        )
    if "param_groups" in content or any("param_groups" in value for value in folders.values()):
        return WeightsError(
            f"{path} holds the state of an optimizer, but no weights",
            advice="save model.state_dict(), not the optimizer's",
        )
    held = [f"{label(key)}: {_kind(value)}" for key, value in inner.items()]
    return WeightsError(
        f"{path} holds no weights, {'only ' + some(held, 10) if held else 'it is an empty dict'}",
        advice="save model.state_dict()",
    )


def _kind(value: object) -> str:
    return "dict without tensors" if isinstance(value, Mapping) and value else type(value).__name__


def is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def label(key: object) -> str:
    """A key for a message: keys come from the file, so no control characters, and no ``repr`` of anything nested."""
    if isinstance(key, str):
        return key if key.isprintable() else ascii(key)
    return str(key) if isinstance(key, int) else f"a {type(key).__name__}"
