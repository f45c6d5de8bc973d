"""Arrays that a program, or the author's code, feeds a network: taken as they are, of any size that the network has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec
from skdeploy.images.samples import Samples, check_counts, checked, stacked_rows, typed

Arrays = Mapping[str, NDArray[Any]]


def by_name(given: object, spec: ModelSpec, shown: str) -> dict[str, NDArray[Any]]:
    """The arrays of all inputs by name; one array alone is that of the only input.

    Raises UsageError: a name is missing or unknown, or something is not an array.
    """
    names = [each.name for each in spec.inputs]
    wanted = f"{spec.name} takes {spec.shown_inputs}"
    if not isinstance(given, Mapping):
        if len(names) > 1 or not isinstance(given, np.ndarray):
            raise UsageError(
                f"{shown}: {type(given).__name__} instead of arrays by name", advice=f"give a dict: {wanted}"
            )
        given = {names[0]: given}
    missing = [name for name in names if name not in given]
    unknown = [str(name) for name in given if name not in names]
    if missing or unknown:
        said = [f"no array named {missing[0]!r}"] if missing else []
        said += [f"an array named {unknown[0]!r}, which is not an input"] if unknown else []
        raise UsageError(f"{shown}: {' and '.join(said)}", advice=wanted)
    arrays = {name: np.asarray(given[name]) for name in names}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise UsageError(f"{shown}: {name} is {array.dtype}, not numbers", advice=wanted)
    return arrays


def sample_rows(given: object, spec: ModelSpec, shown: str) -> Samples:
    """One sample or several stacked, (N, ...), prepared as those of a file are: free sizes are cut to the usual.

    Raises UsageError: other names, ranks, types or sizes; values that are not finite.
    """
    rows = stacked_rows(by_name(given, spec, shown), spec, shown)
    for at, row in enumerate(rows):
        checked(np.asarray(row), f"{shown}[{at}]")
    return rows


def fed_rows(given: object, spec: ModelSpec, shown: str) -> Samples:
    """Arrays (N, ...) as a session takes them: nothing is cut or put in another order.

    Raises UsageError: other names, ranks, types, numbers of samples or fixed sizes; a free size that is not a multiple of what
    the card says, or differs between inputs.
    """
    arrays = by_name(given, spec, shown)
    sizes: dict[str, int] = {}
    for each in spec.inputs:
        array = arrays[each.name]
        form = f"({', '.join(map(str, ('N', *each.shape)))})"
        if array.ndim != len(each.shape) + 1:
            raise UsageError(
                f"{shown}: {each.name} has shape {array.shape}, of rank {array.ndim}; rank {len(each.shape) + 1} is needed",
                advice=f"give {form}, also for one sample",
            )
        for size, wanted in zip(array.shape[1:], each.shape, strict=True):
            fixed = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
            if size != fixed:
                other = f", but another input has {wanted} {fixed}" if isinstance(wanted, str) else ""
                raise UsageError(f"{shown}: {each.name} has shape {array.shape}{other}", advice=f"give {form}")
        arrays[each.name] = typed(array, each, shown)
    check_sizes(sizes, spec, shown)
    count = check_counts(arrays, shown)
    rows = np.zeros(count, [(each.name, each.dtype, arrays[each.name].shape[1:]) for each in spec.inputs])
    for each in spec.inputs:
        rows[each.name] = arrays[each.name]
    return rows


def check_sizes(sizes: Mapping[str, int], spec: ModelSpec, shown: str) -> None:
    """Raises UsageError for free sizes that the network does not take: none, or not a multiple of what its card says."""
    for name, size in sizes.items():
        multiple = spec.sizes[name].multiple
        if size < 1 or size % multiple:
            raise UsageError(
                f"{shown}: {name} {size} is not a multiple of {multiple}" if size > 0 else f"{shown}: {name} is {size}",
                advice=f"give {name} {max(1, -(-size // multiple)) * multiple}, or correct [sizes.{name}] of the card",
            )


def sizes_of(rows: Samples, spec: ModelSpec) -> dict[str, int]:
    """The free sizes that samples have, by name."""
    return {
        name: size
        for each in spec.inputs
        for name, size in zip(each.shape, rows[each.name].shape[1:], strict=True)
        if isinstance(name, str)
    }
