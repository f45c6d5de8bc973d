"""``skdeploy compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skdeploy.cli.accuracy import (
    AllowInconclusive,
    AsJson,
    AssumeImagenet,
    BatchSize,
    ClassOrder,
    Confidence,
    Data,
    Fresh,
    Junit,
    Markdown,
    MaxDrop,
    NumImages,
)


def compare(
    old: Annotated[Path, typer.Argument(help="The bundle that is replaced.")],
    new: Annotated[Path, typer.Argument(help="The bundle that replaces it.")],
    data: Data,
    class_order: ClassOrder = None,
    num_images: NumImages = None,
    max_drop: MaxDrop = None,
    confidence: Confidence = 95.0,
    allow_inconclusive: AllowInconclusive = False,
    batch: BatchSize = 8,
    fresh: Fresh = False,
    assume_imagenet: AssumeImagenet = False,
    junit: Junit = None,
    markdown: Markdown = None,
    json: AsJson = False,
) -> None:
    """Compare the last graphs of two bundles on the same labelled images. The models may differ, their classes may not."""
    from skdeploy.accuracy.evaluate import EvaluationOptions
    from skdeploy.accuracy.evaluate import compare as run
    from skdeploy.cli.accuracy import finish
    from skdeploy.cli.console import ConsoleProgress
    from skdeploy.core.files import require_places

    options = EvaluationOptions(
        data=data,
        class_order=class_order,
        num_images=num_images,
        max_drop=max_drop,
        confidence=confidence,
        batch=batch,
        fresh=fresh,
        assume_imagenet=assume_imagenet,
    )
    require_places(junit, markdown)
    with ConsoleProgress() as progress:
        evaluation = run(old, new, options, progress)
    finish(evaluation, as_json=json, junit=junit, markdown=markdown, allow_inconclusive=allow_inconclusive)
