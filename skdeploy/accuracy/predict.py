"""``skdeploy predict``: the classes that a bundle's artifacts see in some images or samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from skdeploy.accuracy.gate import NotEvaluated, class_names
from skdeploy.accuracy.predictions import top_classes
from skdeploy.accuracy.streaming import logits_of, open_all
from skdeploy.backends.base import Array
from skdeploy.bundle import contents
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.runners import RUNS, TORCH, last_graph, runner_named, runner_on
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import Assumption, Frozen
from skdeploy.images.feeds import RUN_BATCH, batches_of
from skdeploy.images.named import Named, check_readable, named_samples
from skdeploy.parity.tasks import require_classes


class Guess(Frozen):
    """A class and its probability, the softmax of the logits; None where the network gives class numbers only."""

    number: int
    label: str
    probability: float | None


class ArtifactPrediction(Frozen):
    """The up to 5 best classes of one image, best first, by one artifact; one, if the network gives class numbers."""

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
    """The best classes of images or samples, files or all in a folder, by the last graph.

    ``everything``: by torch, every graph and every engine that runs here. ``backend``: by that one instead, see
    ``runners.runner_on``. Raises UsageError for a file that cannot be used, naming it; IntegrityError; ParityError for logits
    that are not finite; DependencyError, EngineError for a backend that cannot run it.
    """
    bundle = load_bundle(folder)
    bundle.check_complete()
    given = named_samples(images, bundle.manifest.model)
    return predict_classes(bundle, given, everything=everything, backend=backend, backend_options=backend_options)


def predict_classes(
    bundle: Bundle,
    given: Sequence[Named],
    *,
    everything: bool = False,
    backend: str | None = None,
    backend_options: Sequence[str] = (),
) -> Predicted:
    """The same of samples that are named already. Raises as ``predict``."""
    if everything and backend is not None:
        raise UsageError(
            "--all and --backend cannot be used together: both choose what runs", advice="give one of the two"
        )
    if backend_options and backend is None:
        raise UsageError("--backend-option requires --backend")
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
    if not spec.takes_images:
        check_readable(given, spec)
    crops = [each.read(spec) for each in given] if spec.takes_images else None
    names = class_names(spec.labels, spec.network.classes)
    found: list[list[ArtifactPrediction]] = [[] for _ in given]
    with open_all(wanted, optional) as (opened, absent):
        for runner, session in opened:
            fed = crops if crops is not None else (each.read_whole(spec) for each in given)
            logits = logits_of(
                runner, session, batches_of(fed, spec, session.inputs, RUN_BATCH), lambda n: given[n].name
            )
            known = None if spec.gives_numbers else softmax(logits)
            for at, (of_image, top) in enumerate(zip(found, top_classes(logits, spec), strict=True)):
                chances = [None if known is None else float(known[at, number]) for number in top]
                guesses = tuple(
                    Guess(number=int(number), label=names[number], probability=chance)
                    for number, chance in zip(top, chances, strict=True)
                )
                of_image.append(ArtifactPrediction(artifact=runner.name, backend=runner.backend, top=guesses))
    return Predicted(
        images=tuple(
            ImagePrediction(image=each.name, predictions=tuple(predictions))
            for each, predictions in zip(given, found, strict=True)
        ),
        not_run=tuple(absent),
        assumptions=bundle.manifest.assumptions,
    )


def softmax(logits: Array) -> NDArray[np.float64]:
    """(N, classes) -> (N, classes), each row of sum 1; exact for logits of any size, as the largest is taken off first."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
