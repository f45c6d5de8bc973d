"""``skdeploy predict``: what a bundle's artifacts see in some images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from skdeploy.accuracy.gate import NotEvaluated, class_names
from skdeploy.accuracy.predictions import best_classes
from skdeploy.accuracy.streaming import logits_of, open_all
from skdeploy.backends.base import Array
from skdeploy.bundle import contents
from skdeploy.bundle.folder import load_bundle
from skdeploy.bundle.runners import RUNS, TORCH, last_graph, runner_named, runner_on
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import Assumption, Frozen
from skdeploy.images.dataset import printable
from skdeploy.images.decoding import SUFFIXES, crop_file
from skdeploy.images.feeds import RUN_BATCH, batches_of
from skdeploy.parity.tasks import IMAGE_TO_IMAGE, SEGMENTATION, require_classes


class Guess(Frozen):
    """A class and its probability, the softmax of the logits."""

    number: int
    label: str
    probability: float


class ArtifactPrediction(Frozen):
    """The up to 5 best classes of one image, best first, by one artifact."""

    artifact: str
    backend: str
    top: Annotated[tuple[Guess, ...], Field(strict=False)]


class ImagePrediction(Frozen):
    """One image, and what each artifact sees in it."""

    image: str
    predictions: Annotated[tuple[ArtifactPrediction, ...], Field(strict=False)]


class Predicted(Frozen):
    """All images in the order given, the artifacts that do not run here, and what was assumed of the network."""

    images: Annotated[tuple[ImagePrediction, ...], Field(strict=False)]
    not_run: Annotated[tuple[NotEvaluated, ...], Field(strict=False)]
    assumptions: Annotated[tuple[Assumption, ...], Field(strict=False)] = ()


def predict(
    folder: Path,
    images: Sequence[Path],
    *,
    everything: bool = False,
    backend: str | None = None,
    backend_options: Sequence[str] = (),
) -> Predicted:
    """The best classes of image files, or of all in a folder, by the last graph.

    ``everything``: by torch, every graph and every engine that runs here. ``backend``: by that one instead, see
    ``runners.runner_on``. Raises UsageError for a file that is not an image, naming it; IntegrityError; ParityError for logits
    that are not finite; DependencyError, EngineError for a backend that cannot run it.
    """
    images = _files(images)
    if not images:
        raise UsageError("no images to predict", advice="give image files, or folders of images")
    if everything and backend is not None:
        raise UsageError(
            "--all and --backend cannot be used together: both choose what runs", advice="give one of the two"
        )
    if backend_options and backend is None:
        raise UsageError("--backend-option requires --backend")
    bundle = load_bundle(folder)
    bundle.check_complete()
    if bundle.manifest.model.task in (IMAGE_TO_IMAGE, SEGMENTATION):
        raise UsageError(
            f"{bundle.manifest.model.name} gives images, which predict writes to a folder",
            advice="give --output FOLDER",
        )
    require_classes(bundle.manifest.model, "predict")
    wanted = [last_graph(bundle) if backend is None else runner_on(bundle, backend, backend_options)]
    optional = []
    if everything:
        manifest = bundle.manifest.artifacts
        wanted = [runner_named(bundle, artifact.path) for artifact in bundle.graphs]
        optional = [runner_named(bundle, artifact.path) for artifact in manifest if artifact.format in RUNS]
        optional = [runner for runner in optional if runner not in wanted]
        if bundle.artifact(contents.WEIGHTS) is not None:
            wanted.insert(0, runner_named(bundle, TORCH))
    spec = bundle.manifest.model
    crops = [crop_file(image, spec).pixels for image in images]
    names = class_names(spec.labels, spec.network.classes)
    found: list[list[ArtifactPrediction]] = [[] for _ in images]
    with open_all(wanted, optional) as (opened, absent):
        for runner, session in opened:
            feeds = list(batches_of(crops, spec, session.inputs, RUN_BATCH))
            logits = logits_of(runner, session, feeds, lambda n: str(images[n]))
            for of_image, top, chances in zip(found, best_classes(logits), softmax(logits), strict=True):
                guesses = tuple(Guess(number=int(n), label=names[n], probability=float(chances[n])) for n in top)
                of_image.append(ArtifactPrediction(artifact=runner.name, backend=runner.backend, top=guesses))
    return Predicted(
        images=tuple(
            ImagePrediction(image=printable(str(image)), predictions=tuple(predictions))
            for image, predictions in zip(images, found, strict=True)
        ),
        not_run=tuple(absent),
        assumptions=bundle.manifest.assumptions,
    )


def softmax(logits: Array) -> NDArray[np.float64]:
    """(N, classes) -> (N, classes), each row of sum 1; exact for logits of any size, as the largest is taken off first."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _files(given: Sequence[Path]) -> list[Path]:
    """Files as they are given, and folders' images, at any depth, by name. Raises UsageError for a folder without any."""
    found: list[Path] = []
    for path in given:
        inside = (
            sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        )
        if not inside:
            raise UsageError(f"no images in the folder {path}", advice=f"looked for {', '.join(SUFFIXES)}")
        found += inside
    return found
