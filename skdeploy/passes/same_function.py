"""Two graphs, one function: run on the same random images and compared, output by output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from skdeploy.backends.base import Array
from skdeploy.backends.culprit import about, not_finite, told
from skdeploy.backends.metrics import largest_difference
from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.core.errors import ExportError, PassError
from skdeploy.core.spec import TensorSpec
from skdeploy.ir.large import Portable

# Float32 sums in another order: with 1e6 terms at most, n * eps stays below this, relative to the largest value.
MAX_REL_CHANGE: Final = 1e-4
# Where the batch is free: neither 1 nor the 2 that exporters are shown, so that a batch that was baked in must show.
EXAMPLE_BATCH: Final = 3
EXAMPLE_SIZE: Final = 64  # pixels where height and width are free
REPLACE: Final = "replace this operator in the network and export it again, or export it with another opset"
FINITE: Final = (
    "the network must give finite numbers for any image: bound what this operator reads, and export it again"
)


def random_images(
    inputs: tuple[TensorSpec, ...],
    seed: int,
    *,
    free: int = EXAMPLE_BATCH,
    size: int = EXAMPLE_SIZE,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Array]:
    """Random inputs (N, ...): ``free`` images where the batch is free, ``size`` where any other dimension is, unless ``sizes``
    has it by name.

    Normal numbers, any pixel where the input is uint8, 0 or 1 where it is another integer.
    """
    generator = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        shape = [
            known if isinstance(known, int) else (sizes or {}).get(known, size if axis else free)
            for axis, known in enumerate(spec.shape)
        ]
        if spec.dtype == "uint8":
            feeds[spec.name] = generator.integers(0, 256, shape, dtype=np.uint8)
        elif np.dtype(spec.dtype).kind in "biu":
            feeds[spec.name] = generator.integers(0, 2, shape).astype(spec.dtype)
        else:
            feeds[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return feeds


@dataclass(frozen=True)
class Expected:
    """The interface of a graph, what it was fed, and the outputs that it gave, by name. The graph itself may be gone."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    feeds: dict[str, Array]
    values: dict[str, Array]

    @property
    def shown(self) -> str:
        return f"{_shown(self.inputs)} -> {_shown(self.outputs)}"


def expected_of(
    graph: Portable, *, feeds: dict[str, Array] | None = None, sizes: Mapping[str, int] | None = None
) -> Expected:
    """Runs a graph in ONNX Runtime on random images, if it is fed nothing else, with ``sizes`` for free dimensions by name.

    Raises ExportError if it does not run, or its outputs are not finite: which node is the cause.
    """
    try:
        with OnnxRuntimeSession(graph, "cpu", None) as session:
            feeds = feeds or random_images(session.inputs, 0, sizes=sizes)
            expected = Expected(session.inputs, session.outputs, feeds, session.run(feeds))
    except ExportError as error:
        raise ExportError(about(error.message, graph.proto), advice=REPLACE) from error
    for name, values in expected.values.items():
        if not bool(np.isfinite(values).all()):
            raise ExportError(
                f"{name} holds NaN or infinity for random images{_cause(graph, feeds, name)}", advice=FINITE
            )
    return expected


def require_same_function(
    before: Portable | Expected,
    after: Portable,
    step: str,
    advice: str,
    *,
    feeds: dict[str, Array] | None = None,
    sizes: Mapping[str, int] | None = None,
    at_most: float = MAX_REL_CHANGE,
) -> dict[str, Array]:
    """Runs both in ONNX Runtime and gives the outputs of the second, by name. ``before`` may have run already; ``feeds`` and
    ``sizes`` are for one that has not: see ``expected_of``.

    Raises PassError, blaming ``step``, if their interfaces differ, or an output does: in shape, or by more than ``at_most`` of
    its largest value. Raises what ``expected_of`` raises.
    """
    known = expected_of(before, feeds=feeds, sizes=sizes) if isinstance(before, Portable) else before
    try:
        with OnnxRuntimeSession(after, "cpu", None) as new:
            if known.inputs != new.inputs or [s.name for s in known.outputs] != [s.name for s in new.outputs]:
                interface = f"{_shown(new.inputs)} -> {_shown(new.outputs)}"
                raise PassError(f"{step} changed the interface from {known.shown} to {interface}", advice=advice)
            found = new.run(known.feeds)
    except ExportError as error:
        said = about(error.message, after.proto)
        raise PassError(f"{step} broke the graph: {said}", advice=advice) from error
    for name, reference in known.values.items():
        kinds = [f"{array.dtype}{list(array.shape)}" for array in (reference, found[name])]
        if kinds[0] != kinds[1]:
            raise PassError(f"{step} changed the output {name} from {' to '.join(kinds)}", advice=advice)
        change = largest_difference({name: reference}, found)
        if change <= at_most:
            continue
        said = f"{name} differs by {change:.2e} of its largest value"
        if not np.isfinite(change):
            said = f"{name} now holds NaN or infinity{_cause(after, known.feeds, name)}"
        raise PassError(f"{step} changed the function: {said}", advice=advice)
    return found


def _cause(graph: Portable, feeds: dict[str, Array], output: str) -> str:
    node = not_finite(graph, feeds, output)
    return f": {told(node)} is the first to make it" if node is not None else ""


def _shown(specs: tuple[TensorSpec, ...]) -> str:
    return "; ".join(map(str, specs))
