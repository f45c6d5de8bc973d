"""``skdeploy.export`` and its like: what the verbs do, by keyword."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skdeploy.api.bundle import Bundle
from skdeploy.api.keywords import documentation, export_options, signature
from skdeploy.api.progress import told
from skdeploy.core.errors import UsageError
from skdeploy.core.progress import Progress


def export(model: str | Path, *, progress: bool | Progress = True, **options: Any) -> Bundle:
    """Takes a network through the whole line, and gives the bundle: ONNX, simplified, lower precision, engine, parity.

    ``model`` is a card, by name or path; a checkpoint's card; an .onnx file; or ``package.module:function``. Run it again, and
    only what changed is done again. Raises a SkdeployError, whose ``exit_code`` is that of the command line: UsageError,
    ExportError, PassError, CalibrationError, EngineError, ParityError. After a ParityError the bundle is there, and
    ``load_bundle`` opens it.

    Keywords, as the options of ``skdeploy export``:
    """
    from skdeploy.line.export import export as run

    if not isinstance(model, str | Path):
        raise UsageError(
            f"model must be a str or a Path, not {type(model).__name__}", advice="give options as keywords"
        )
    with told(progress) as tell:
        return Bundle(run(export_options(str(model), options), tell).bundle)


export.__signature__ = signature()  # type: ignore[attr-defined]  # what help() and completion read
export.__doc__ = (export.__doc__ or "").rstrip() + "\n\n" + "\n".join(documentation())
