"""A backend as somebody else's package would bring it: onnx's own reference implementation, slow and plain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from skdeploy.backends.base import Array, Session
from skdeploy.core.packages import Availability
from skdeploy.core.spec import TensorSpec


@dataclass(frozen=True)
class Options:
    """``verbose``: how much the evaluator prints."""

    READERS: ClassVar = {"verbose": ("verbose", int)}

    verbose: int = 0


NAME: Final = "onnx-reference"
FORMAT: Final = "onnx"
DEVICE: Final = "cpu"
DISTRIBUTIONS: Final = ("onnx",)
EXTRA: Final = "cpu"
HELP: Final = "verbose=0/1"
OPTIONS: Final = Options


def probe() -> Availability:
    import onnx

    return Availability(NAME, True, onnx.__version__, device="CPU, in Python")


class ReferenceSession(Session):
    def __init__(self, artifact: Path, options: Options) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        model = onnx.load(artifact)
        self._evaluator = ReferenceEvaluator(model, verbose=options.verbose)
        self.inputs, self.outputs = (tuple(map(_spec, values)) for values in (model.graph.input, model.graph.output))

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._evaluator.run(names, dict(feeds)), strict=True))


def open_session(artifact: Path, *, options: Options | None = None) -> Session:
    return ReferenceSession(artifact, options or Options())


def _spec(value: object) -> TensorSpec:
    import onnx

    assert isinstance(value, onnx.ValueInfoProto)  # typed as object, since onnx is imported inside functions
    tensor = value.type.tensor_type
    shape = tuple(size.dim_param or size.dim_value for size in tensor.shape.dim)
    return TensorSpec(
        name=value.name, dtype=np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name, shape=shape
    )
