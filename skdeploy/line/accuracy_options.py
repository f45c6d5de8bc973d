"""The labelled images that an export is judged on, and what lower precision may cost on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from skdeploy.core.errors import UsageError
from skdeploy.core.options import Flag, StationOptions
from skdeploy.core.panel import Panel
from skdeploy.core.precision import PRECISIONS, Precision
from skdeploy.core.spec import ClassOrder, ModelSpec


class AccuracyOptions(StationOptions):
    """Options of ``skdeploy export`` about accuracy, by the same names.

    ``data`` are labelled images or pairs: the export ends with their accuracy, as ``skdeploy evaluate`` measures it.
    ``max_drop``, in percentage points of top-1 or the unit of what is measured of pairs, is what the lower precision may cost
    on them; INT8 keeps the worst units in the fallback until it holds. ``class_order``: how class folders are counted.
    """

    panel = Panel.ACCURACY
    data: Annotated[
        Path | None,
        Flag(
            "Measure accuracy on these images with labels at the end: class folders, .npz or a list. For networks without "
            "classes, pairs: folders input/ and target/, or images/ and masks/.",
            kept=False,
        ),
    ] = None
    max_drop: Annotated[
        float | None,
        Flag(
            "Percentage points of top-1 that the lower precision may lose on --data; for pairs dB of PSNR, points of mIoU, or "
            "the unit of --metric. With --int8, the units that lose most stay in --int8-fallback.",
            kept=False,
        ),
    ] = None
    metric: Annotated[
        str | None,
        Flag(
            "Measure --data with a function of yours: `metric(outputs, target)` of one sample. Runs your code.",
            kept=False,
        ),
    ] = None
    allow_inconclusive: Annotated[
        bool,
        Flag(
            "Exit with 0 where --data cannot decide on --max-drop.",
            ("--allow-inconclusive",),
            kept=False,
        ),
    ] = False
    class_order: Annotated[
        ClassOrder | None,
        Flag(
            "Order of the class folders: by the number in their names, or by name as torchvision's ImageFolder does.  "
            "[default: from the card]",
            kept=False,
        ),
    ] = None

    def takes_pairs(self, spec: ModelSpec) -> bool:
        """Whether ``data`` are inputs with what should come out, and not labelled images."""
        from skdeploy.parity.tasks import task_of

        return self.metric is not None or not task_of(spec).has_classes

    def check_for(self, precision: Precision) -> None:
        """Raises UsageError for what cannot be, contradicts itself, or is not there."""
        from skdeploy.images.dataset import require_there

        if self.max_drop is not None and self.data is None:
            raise UsageError("--max-drop requires images with labels", advice="add --data with a folder, .npz or .txt")
        if self.metric is not None and self.data is None:
            raise UsageError("--metric requires --data", advice="add --data with pairs")
        if self.class_order is not None and self.data is None:
            raise UsageError("--class-order requires --data", advice="give --data")
        if self.allow_inconclusive and self.max_drop is None:
            raise UsageError("--allow-inconclusive requires --max-drop", advice="add --max-drop, such as 1")
        if self.max_drop is not None and precision is Precision.FP32:
            named = " or ".join(each.flag for each in PRECISIONS.values() if each is not Precision.FP32)
            raise UsageError(
                "--max-drop compares a lower precision with FP32, but this export is FP32",
                advice=f"add {named}, or leave --max-drop out",
            )
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UsageError(
                f"--max-drop {self.max_drop:g}: must be from 0 to 100, in points of top-1 or the unit measured"
            )
        if self.data is not None:
            require_there(self.data)
