"""Options of what is not INT8 in a graph with INT8: its precision, and which modules belong to it."""

from __future__ import annotations

from typing import Annotated, Literal

from skdeploy.core.errors import UsageError
from skdeploy.core.options import Flag, StationOptions
from skdeploy.core.panel import Panel
from skdeploy.core.patterns import check_ends
from skdeploy.core.precision import Precision
from skdeploy.line.stations.half import HalfOptions


class FallbackOptions(StationOptions):
    """``fallback`` is the precision of all that is not INT8; ``keep`` are patterns of modules that stay in it."""

    panel = Panel.PRECISION
    half: HalfOptions = HalfOptions()
    fallback: Annotated[
        Literal["fp16", "fp32"], Flag("Precision of the layers that are not INT8.", ("--int8-fallback",))
    ] = "fp16"
    keep: Annotated[
        tuple[str, ...],
        Flag("Modules that stay in --int8-fallback precision; repeatable.", ("--int8-keep",), metavar="REGEX"),
    ] = ()

    def check(self) -> None:
        """Raises UsageError for what cannot be, or contradicts itself."""
        self.half.check()
        if self.half.keep_fp32 and self.fallback == Precision.FP32:
            raise UsageError(
                "--keep-fp32 with --int8-fallback fp32: what is not INT8 is FP32 already",
                advice="leave one of them out; --int8-keep keeps modules out of INT8",
            )
        for pattern in self.keep:
            check_ends(pattern, (), "--int8-keep ")
