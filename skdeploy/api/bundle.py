"""A bundle as a program holds it: its verdict, its numbers as numpy arrays, and what can be asked of it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skdeploy.accuracy.facts import read_facts
from skdeploy.accuracy.verdict import Verdict, decide_verdict
from skdeploy.api.progress import told
from skdeploy.backends.base import Session
from skdeploy.backends.logits import run_images
from skdeploy.bundle import folder as folders
from skdeploy.bundle.manifest import Manifest
from skdeploy.bundle.runners import last_graph, runner_named, runner_on
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import normalise
from skdeploy.images.decoding import crop_array, crop_file
from skdeploy.images.fed import fed_rows, sample_rows
from skdeploy.images.named import Named, check_readable, named_rows, named_samples

if TYPE_CHECKING:
    from skdeploy.accuracy.gate import Evaluation
    from skdeploy.accuracy.predict import ImagePrediction
    from skdeploy.accuracy.quality import Quality
    from skdeploy.bench.report import BenchReport
    from skdeploy.line.verification import Verification
    from skdeploy.planning.report import PlanReport
    from skdeploy.tuning.report import TuneReport

Place = str | Path
Image = Place | NDArray[np.uint8]
Arrays = Mapping[str, NDArray[Any]]
Sample = Place | NDArray[Any] | Arrays
Batch = NDArray[Any] | Arrays


class Logits(AbstractContextManager["Logits"]):
    """An artifact that is ready to run: call it with what ``Bundle.preprocess`` gives. ``session`` has every output."""

    def __init__(self, session: Session, spec: ModelSpec) -> None:
        self.session = session
        self._spec = spec

    def __call__(self, inputs: Batch) -> NDArray[np.float32]:
        """Logits, float32 (N, classes), of any number of images or samples; of another network its output.

        Raises UsageError for inputs of another kind or shape, and for a network of several outputs.
        """
        names = [output.name for output in self._spec.given]
        if len(names) > 1:
            raise UsageError(f"{self._spec.name} has the outputs {', '.join(names)}", advice="call outputs() instead")
        return np.asarray(self.outputs(inputs)[names[0]])

    def outputs(self, inputs: Batch) -> dict[str, NDArray[Any]]:
        """All outputs of the artifact by name, (N, ...) each.

        ``inputs``: an array, or arrays by input name, (N, ...) each. Their free sizes may be any that the network has. float64
        and float16 are rounded to float32. Raises UsageError for a name that is missing or unknown, and for another type, rank
        or size.
        """
        if not self._spec.takes_images:
            return run_images(self.session, fed_rows(inputs, self._spec, "inputs"), self._spec)
        if not isinstance(inputs, np.ndarray):
            raise UsageError(f"{self._spec.name} takes one array of images, not {type(inputs).__name__}")
        wanted = self.session.inputs[0]
        if inputs.ndim != len(wanted.shape):
            raise UsageError(f"inputs have shape {inputs.shape}, but the artifact takes {wanted}")
        return run_images(self.session, inputs, self._spec)

    def close(self) -> None:
        """Frees what the session holds."""
        self.session.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class Bundle:
    """A finished export. ``skdeploy.export`` and ``skdeploy.load_bundle`` give one; nothing here changes its artifacts."""

    def __init__(self, opened: folders.Bundle) -> None:
        self._opened = opened

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._opened.folder

    @property
    def manifest(self) -> Manifest:
        """The manifest as it is on disk now: the files, and how they were made."""
        return folders.load_bundle(self.folder).manifest

    @property
    def spec(self) -> ModelSpec:
        """Which network it is: input size, preprocessing, labels."""
        return self.manifest.model

    @property
    def verdict(self) -> Verdict:
        """The verdict that every verb prints: ``verdict.state``, ``verdict.text``, ``verdict.next``."""
        return decide_verdict(read_facts(folders.load_bundle(self.folder)))

    def preprocess(self, images: Sample | Iterable[Sample]) -> Any:
        """Make a batch for the last graph, one row per image or sample.

        Of images, files or raw pixels, uint8 (H, W, 1 or 3): float32 (N, C, H, W), normalised as the card says; uint8
        (N, H, W, C) where the graph normalises. Of a network that takes arrays, files, folders, or arrays by input name of one
        sample or several stacked: a dict of them, (N, ...) each, free sizes cut to the card's usual ones.

        Raises UsageError naming what cannot be used.
        """
        spec = self.spec
        if not spec.takes_images:
            found = _named(images, spec)
            rows = np.stack([each.read(spec) for each in found])
            return {each.name: np.ascontiguousarray(rows[each.name]) for each in spec.inputs}
        several = list(_several(images))
        if not several:
            raise UsageError("no images to preprocess", advice="give files, or uint8 arrays (H, W, channels)")
        pixels = np.stack([_crop(image, spec) for image in several])
        takes = last_graph(self._opened).artifact.inputs[0].dtype
        return pixels if takes == "uint8" else normalise(pixels, spec.preprocess)

    def session(self, artifact: str | None = None, *, backend: str | None = None) -> Logits:
        """The last graph, an artifact by its path in the bundle, or what ``backend`` runs; checked against its digest.

        Raises UsageError, IntegrityError, DependencyError, EngineError.
        """
        if artifact is not None and backend is not None:
            raise UsageError(
                "artifact and backend cannot be used together: both choose what runs", advice="give one of them"
            )
        runner = last_graph(self._opened)
        if artifact is not None:
            runner = runner_named(self._opened, artifact)
        elif backend is not None:
            runner = runner_on(self._opened, backend)
        return Logits(runner.open(), self.spec)

    def predict(self, images: Sample | Iterable[Sample], *, backend: str | None = None) -> tuple[ImagePrediction, ...]:
        """The five likeliest classes of each image file or sample, by the last graph or by a backend.

        Samples are files, or arrays by input name. Raises UsageError for a network without classes, and as ``predict``.
        """
        from skdeploy.accuracy.predict import predict_classes
        from skdeploy.accuracy.predict_images import gives_pictures
        from skdeploy.parity.tasks import task_of

        spec = self.spec
        if not task_of(spec).has_classes:
            instead = "pictures() or outputs()" if gives_pictures(spec) else "outputs()"
            raise UsageError(f"{spec.name} has no classes to predict", advice=f"call {instead} instead")
        self._opened.check_complete()
        return predict_classes(self._opened, _named(images, spec), backend=backend).images

    def pictures(
        self, images: Sample | Iterable[Sample], *, backend: str | None = None
    ) -> tuple[NDArray[np.uint8], ...]:
        """The image or mask that the network makes of each image file, as ``skdeploy predict -o`` writes them.

        uint8 (H, W, 3), or (H, W) of grey or of class numbers. Raises UsageError for a network that gives neither, and for
        files that cannot be used; ParityError for outputs that are not finite.
        """
        from skdeploy.accuracy.predict_images import gives_pictures, pictures

        spec = self.spec
        if not gives_pictures(spec):
            raise UsageError(f"{spec.name} gives no images or masks of images", advice="call outputs() instead")
        self._opened.check_complete()
        return pictures(self._opened, _named(images, spec), backend=backend)

    def outputs(
        self, images: Sample | Iterable[Sample], *, backend: str | None = None
    ) -> tuple[dict[str, NDArray[Any]], ...]:
        """All outputs by name of each image file or sample, without the batch, by the last graph or by a backend.

        Samples are files, folders, or arrays by input name. Raises UsageError naming what cannot be used, ParityError for
        outputs that are not finite.
        """
        from skdeploy.accuracy.predict_outputs import chosen_runner, outputs_of

        self._opened.check_complete()
        found = _named(images, self.spec)
        check_readable(found, self.spec)
        return tuple(outputs for _, outputs in outputs_of(chosen_runner(self._opened, backend), found))

    def evaluate(self, data: Place, *, progress: bool = True, **options: Any) -> Evaluation | Quality:
        """Accuracy on labelled images, or on pairs for other tasks, compared with the FP32 graph. ``options``: ``max_drop`` and
        others of ``EvaluationOptions``.

        Does not raise where the budget is not met: ask ``.verdict`` of what it gives, or ``Bundle.verdict``.
        """
        from skdeploy.accuracy.evaluate import EvaluationOptions
        from skdeploy.accuracy.evaluate_quality import evaluate_any

        given = {name: Path(options[name]) for name in ("output",) if options.get(name) is not None}
        with told(progress) as tell:
            return evaluate_any(self.folder, _options(EvaluationOptions, **options | given, data=Path(data)), tell)

    def tune(
        self,
        data: Place,
        *,
        max_drop: float | None = None,
        calib: Place | None = None,
        progress: bool = True,
        **options: Any,
    ) -> TuneReport:
        """Tries every way to calibrate INT8, and writes the recipe of the best; options of ``TuneOptions``. Without
        ``max_drop`` FP32's outputs judge, and no labels or pairs are needed; ``min_sqnr`` may limit their error, in dB.

        Does not raise where the budget is not met: ask ``.confirmed.decision``, or call ``.check()``.
        """
        from skdeploy.tuning.options import TuneOptions
        from skdeploy.tuning.tune import tune

        given = {name: Path(options[name]) for name in ("output",) if options.get(name) is not None}
        asked = _options(
            TuneOptions,
            **options | given,
            data=Path(data),
            max_drop=max_drop,
            calib=None if calib is None else Path(calib),
        )
        with told(progress) as tell:
            return tune(self.folder, asked, tell)

    def verify(self, images: Place | None = None, *, progress: bool = True, **options: Any) -> Verification:
        """Digests, receipts, and parity measured again; options of ``VerifyOptions``. ``Verification.check`` raises."""
        from skdeploy.line.verification import VerifyOptions, verify

        asked = _options(VerifyOptions, images=None if images is None else Path(images), **options)
        with told(progress) as tell:
            return verify(self.folder, asked, tell)

    def bench(self, *, batches: Sequence[int] = (1,), progress: bool = True, **options: Any) -> BenchReport:
        """Latency and throughput on this machine, each batch; options of ``BenchOptions``."""
        from skdeploy.bench.measure import BenchOptions, bench

        with told(progress) as tell:
            return bench(self.folder, _options(BenchOptions, batches=tuple(batches), **options), tell)

    def plan(
        self, device: str | Sequence[str], *, batch: int | None = None, sizes: Mapping[str, int] | None = None
    ) -> PlanReport:
        """An estimate for a device of the table, before there is one: a floor of the latency, and what limits it.

        ``sizes``: those of free dimensions, by name; the card's usual ones for the rest.
        """
        from skdeploy.planning.report import plan

        return plan(self.folder, [device] if isinstance(device, str) else list(device), batch=batch, sizes=sizes)

    def report(self, output: Place | None = None) -> Path:
        """Writes all that is known as one HTML file, into the bundle or to ``output``, and returns where it is."""
        from skdeploy.report.page import write_report

        return write_report(folders.load_bundle(self.folder), None if output is None else Path(output))

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"<bundle {self.folder}: {manifest.model.name} {manifest.precision}, {self.verdict.text}>"

    def _repr_html_(self) -> str:
        """Show the verdict, then the artifacts with their parity, in a notebook."""
        from skdeploy.report.parity import artifacts_table

        facts = read_facts(folders.load_bundle(self.folder))
        verdict, table = decide_verdict(facts), artifacts_table(facts.bundle, facts.parity)
        heads = "".join(f"<th>{html.escape(column.label)}</th>" for column in table.columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell.whole)}</td>" for cell in row) + "</tr>" for row in table.rows
        )
        steps = "".join(f"<li>{html.escape(step)}</li>" for step in verdict.next)
        return (
            f"<p><b>{html.escape(verdict.text)}</b></p>{f'<ul>{steps}</ul>' if steps else ''}"
            f"<p>{html.escape(f'{self.spec.name}, {facts.manifest.precision.words}: {self.folder}')}</p>"
            f"<table><tr>{heads}</tr>{rows}</table>"
        )


def load_bundle(folder: Place) -> Bundle:
    """Opens a bundle. Raises UsageError where there is none, IntegrityError for a manifest that is broken."""
    return Bundle(folders.load_bundle(Path(folder)))


def _several(images: Any) -> Iterable[Any]:
    """One image or many: an array of three dimensions is one, of four many."""
    if isinstance(images, str | Path) or (isinstance(images, np.ndarray) and images.ndim == 3):
        return [images]
    return images if isinstance(images, Iterable) else [images]


def _named(given: object, spec: ModelSpec) -> list[Named]:
    """Samples from files and folders, and of a network that takes arrays from those of a program too."""
    if isinstance(given, str | Path | Mapping | np.ndarray):
        given = [given]
    found: list[Named] = []
    for at, one in enumerate(given if isinstance(given, Iterable) else [given]):
        if isinstance(one, str | Path):
            found += named_samples([Path(one)], spec)
        elif spec.takes_images:
            raise UsageError(f"images are given as files, not {type(one).__name__}", advice="session() takes arrays")
        else:
            found += named_rows(sample_rows(one, spec, f"sample {at}"), len(found))
    if not found:
        raise UsageError("no samples", advice=f"{spec.name} takes {spec.shown_inputs}")
    return found


def _crop(image: object, spec: ModelSpec) -> NDArray[np.uint8]:
    if isinstance(image, str | Path):
        return crop_file(Path(image), spec).pixels
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        said = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UsageError(f"an image is a file or uint8 pixels (H, W, 1 or 3), not {said}")
    return crop_array(image, spec).pixels


def _options(kind: type[Any], **given: Any) -> Any:
    """The options that a verb takes. Raises UsageError naming one that it has not."""
    unknown = sorted(given.keys() - kind.__dataclass_fields__.keys())
    if unknown:
        raise UsageError(
            f"unknown option {', '.join(unknown)}", advice=f"choose from {', '.join(sorted(kind.__dataclass_fields__))}"
        )
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
