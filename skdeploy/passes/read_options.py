"""Options for an ONNX file made elsewhere: which of it is taken, and in which layout."""

from __future__ import annotations

from typing import Annotated

from skdeploy.core.errors import UsageError
from skdeploy.core.options import Flag, StationOptions
from skdeploy.core.panel import Panel


class ReadOptions(StationOptions):
    """Changes to the interface of an ONNX file; see ``passes/interface.py``."""

    panel = Panel.INPUT
    outputs: Annotated[
        str | None,
        Flag(
            "Outputs of an .onnx file to keep, by name, such as a,b; the nodes of others are cut off.", metavar="NAMES"
        ),
    ] = None
    nhwc: Annotated[bool, Flag("The .onnx file takes NHWC images: give it NCHW ones.")] = False
    free_batch: Annotated[bool, Flag("Free the batch of an .onnx file that fixes it.")] = False

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs to keep; none for all."""
        return tuple(name.strip() for name in (self.outputs or "").split(",") if name.strip())

    def check(self) -> None:
        """Raises UsageError for names that are not names."""
        if self.outputs is not None and len(set(self.names)) != len(self.outputs.split(",")):
            raise UsageError(
                f"--outputs {self.outputs}: a name is empty or given twice", advice="give names between commas: a,b"
            )
