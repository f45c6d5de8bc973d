"""``skdeploy ci-init``: a bundle's export, parity check and accuracy gate as a job in the user's own repository."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from skdeploy.accuracy.baseline import baseline_text
from skdeploy.accuracy.evaluate import EvaluationOptions, evaluate, labelled_images
from skdeploy.accuracy.gate import Evaluation
from skdeploy.bundle.contents import RANGES
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.runners import fp32_graph, last_graph
from skdeploy.core.architecture import DescribedSpec, GraphSpec, ModuleSpec
from skdeploy.core.errors import AccuracyError, CardError, IntegrityError, UsageError
from skdeploy.core.files import digest_file, require_places, written_whole
from skdeploy.core.packaged import packaged
from skdeploy.core.packages import require_export
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import ClassOrder
from skdeploy.core.version import __version__
from skdeploy.images.dataset import EVALUATION
from skdeploy.line.reproduce import options_that_made, weights_that_made
from skdeploy.line.verification import VerifyOptions, verify
from skdeploy.quant.ranges import Ranges
from skdeploy.serve.repository import Repository, repository_here
from skdeploy.serve.workflow import PLACES, SUITES, Job, Provider, text_of
from skdeploy.zoo.assumed import require_preprocessing
from skdeploy.zoo.cards import load_card
from skdeploy.zoo.write_card import card_text

FOLDER: Final = "deploy"  # for what the workflow reads and `ci-init` makes: card, ranges, baseline
EXTRAS: Final = ("cpu", "export", "report")


@dataclass(frozen=True)
class CiOptions:
    """Options of ``skdeploy ci-init``, by the same names. Without ``data`` the job measures parity and no accuracy."""

    data: Path | None = None
    max_drop: float | None = None
    class_order: ClassOrder | None = None
    provider: Provider = "github"
    force: bool = False

    def check(self) -> None:
        """Raises UsageError for options that need another one."""
        for name, given in (("--max-drop", self.max_drop), ("--class-order", self.class_order)):
            if given is not None and self.data is None:
                raise UsageError(f"{name} requires --data", advice="give the labelled images with --data")


@dataclass(frozen=True)
class CiFiles:
    """The files that were written, below ``root``. ``evaluation`` is that of the baseline. ``uncommitted`` are files that the
    workflow reads and a checkout would not have, ``ignored`` if .gitignore has one of them; ``notes`` are what else to see to.
    """

    root: Path
    written: tuple[str, ...]
    evaluation: Evaluation | None
    uncommitted: tuple[str, ...]
    ignored: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """The words that name the network, the files that they read, and the card to write if no other file has it."""

    words: tuple[str, ...]
    files: tuple[Path, ...] = ()
    card: str = ""
    note: str = ""


def init_ci(folder: Path, options: CiOptions, progress: Progress | None = None) -> CiFiles:
    """Evaluate and verify the bundle as the job will, then write the workflow and the files it reads: all of them or none.

    Raises UsageError if there is no repository here, or for a file that exists already or that CI would not find;
    IntegrityError for a bundle that may not be deployed, or a checkpoint that has changed since; AccuracyError, ParityError
    if the job would fail at once.
    """
    options.check()
    bundle = load_bundle(folder)
    bundle.check_deployable()
    repository = repository_here()
    spec, precision = bundle.manifest.model, bundle.manifest.precision
    stem = f"{FOLDER}/{spec.name.replace('/', '-')}"
    card, ranges, baseline = f"{stem}.toml", f"{stem}-{precision}.ranges.json", f"{stem}-{precision}.baseline.json"
    source = _source(bundle, repository, card)
    words = [*source.words, *options_that_made(bundle.manifest, Path(ranges), engines=False)]
    texts: dict[str, str] = {card: source.card} if source.card else {}
    if (measured := bundle.artifact(RANGES)) is not None:
        bundle.read_report(measured, Ranges)
        texts[ranges] = bundle.read_checked(measured).decode()
    files, evaluation, images = list(source.files), None, ""
    evaluate_words: list[str] | None = None
    if options.data is not None:
        data = repository.inside(options.data, "the data")
        images = repository.inside(_images(options.data), "the data")
        words += ["--images", images]
        evaluate_words = ["--data", data, "--baseline", baseline]
        evaluate_words += ["--class-order", options.class_order] if options.class_order else []
        evaluate_words += ["--max-drop", f"{options.max_drop:g}"] if options.max_drop is not None else []
        files += _files_of(options.data, bundle, repository, options.class_order)
        texts[baseline] = ""  # known after the evaluation; that it can be written is asked before
    texts[PLACES[options.provider]] = ""
    _require_free(repository.root, texts, options.force)
    if options.data is not None:
        evaluation = _evaluated(bundle, options, progress or Silent())
        texts[baseline] = baseline_text(evaluation)
    verify(folder, VerifyOptions(Path(images) if images else None, suites=SUITES), progress).check()
    requirement, note = _requirement("hub" if bundle.manifest.weights.repo else "")
    job = Job(requirement, tuple(words), None if evaluate_words is None else tuple(evaluate_words), images)
    texts[PLACES[options.provider]] = text_of(job, options.provider)
    _write(repository.root, texts)
    uncommitted = repository.uncommitted(files)
    return CiFiles(
        repository.root,
        tuple(texts),
        evaluation,
        tuple(uncommitted),
        repository.ignored([*uncommitted, *texts]),
        tuple(text for text in (source.note, note) if text),
    )


def _source(bundle: Bundle, repository: Repository, card: str) -> _Source:
    """How the job names the network: as the export did, and by a card of its own where no packaged card is the same."""
    manifest = bundle.manifest
    spec, weights = manifest.model, manifest.weights
    local = weights.source == "checkpoint" and not weights.repo
    if isinstance(spec.network, DescribedSpec):
        try:
            known, place = load_card(spec.name)
        except CardError:
            known, place = None, Path()
        named = spec.weights is not None and spec.weights.sha256 == weights.sha256
        if known == spec and place.is_relative_to(packaged("models")):
            card = ""
            if named:
                return _Source((spec.name,))
    text = ""
    if card:
        require_export("tomli_w")
        text = card_text(spec.model_copy(update={"weights": None}))
    file = _checkpoint(bundle, repository) if local else Path()
    shown = repository.inside(file, "the weights") if local else ""
    files = (file,) if local else ()
    if isinstance(spec.network, GraphSpec):
        return _Source((shown, "--card", card), (*files, *_external_data(file)), text)
    words = weights_that_made(weights, shown)
    if isinstance(spec.network, ModuleSpec):
        factory = spec.network.factory or ""  # an export has recorded it
        note = f"commit the code of {factory}, and add the packages that it imports to the step Install"
        return _Source((factory, "--card", card, *words), files, text, note)
    return _Source((card or spec.name, *words), files, text)


def _checkpoint(bundle: Bundle, repository: Repository) -> Path:
    """The file that the weights came from, from here or from the top of the repository. Raises UsageError, IntegrityError."""
    weights = bundle.manifest.weights
    assert weights.file is not None  # a checkpoint that is not from a hub
    found = [path for path in (Path(weights.file), repository.root / weights.file) if path.is_file()]
    if not found:
        raise UsageError(
            f"{weights.file}, which {bundle.folder} was made from, is not here",
            advice="run this where the export ran, or export again from a checkpoint in the repository",
        )
    same = next((path for path in found if digest_file(path) == weights.sha256), None)
    if same is None:
        raise IntegrityError(
            f"{found[0]} is not the file that {bundle.folder} was made from: its sha256 is another",
            advice="export again, then run this again",
        )
    return same


def _external_data(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold its weights."""
    import onnx_ir as ir

    values = [value.const_value for value in ir.load(path).graph.initializers.values()]
    return sorted({Path(value.path) for value in values if isinstance(value, ir.ExternalTensor)})


def _images(data: Path) -> Path:
    """``data`` as parity reads it, which does not look for an evaluation's archive in a folder."""
    return data / EVALUATION if (data / EVALUATION).is_file() else data


def _files_of(data: Path, bundle: Bundle, repository: Repository, order: ClassOrder | None) -> list[Path]:
    """Every file of the labelled images. Raises UsageError for one that is outside the repository, and for no labels."""
    dataset = labelled_images(data, bundle.manifest.model, None, order)
    files = [*dataset.files, *([] if data.is_dir() and dataset.files else [_images(data)])]
    for file in files:
        repository.inside(file, "the image")
    return files


def _require_free(root: Path, names: dict[str, str], force: bool) -> None:
    """Raises UsageError for a file that is there already, unless ``force``; and as ``require_places``."""
    there = [name for name in names if (root / name).exists() or (root / name).is_symlink()]
    if there and not force:
        raise UsageError(
            f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there already and not overwritten",
            advice="rename what you want to keep, or replace all of them with --force",
        )
    require_places(*(root / name for name in names))


def _evaluated(bundle: Bundle, options: CiOptions, progress: Progress) -> Evaluation:
    """The evaluation that the job will do, of the last graph on the CPU. Raises as ``init_ci``."""
    assert options.data is not None
    advice = "export again: with --assume-imagenet if this is right, else from a card that has the true values"
    require_preprocessing({str(bundle.folder): bundle.manifest.model}, advice=advice)
    last = last_graph(bundle)
    reference = fp32_graph(bundle)
    if options.max_drop is not None and (reference is None or reference.artifact == last.artifact):
        raise UsageError(
            f"--max-drop compares with the FP32 graph, and {last.name} is it",
            advice="leave --max-drop out: the baseline holds FP32, too",
        )
    asked = EvaluationOptions(
        options.data, class_order=options.class_order, max_drop=options.max_drop, artifacts=(last.name,)
    )
    found = evaluate(bundle.folder, asked, progress)
    try:
        found.check()
    except AccuracyError as error:
        advice = "nothing was written; give more labelled images, or a wider budget with --max-drop"
        raise AccuracyError(error.message, advice=advice) from error
    return found


def _requirement(extra: str) -> tuple[str, str]:
    """The requirement that pip installs in the job, and a note if it must be checked: this skdeploy may not be a release."""
    name = f"skdeploy[{','.join((*EXTRAS, *([extra] if extra else [])))}]"
    origin = json.loads(metadata.distribution("skdeploy").read_text("direct_url.json") or "{}")
    if "vcs_info" in origin:
        return f"{name} @ {origin['vcs_info']['vcs']}+{origin['url']}@{origin['vcs_info']['commit_id']}", ""
    if "url" in origin:
        note = (
            f"this skdeploy was installed from a folder: make the step Install fetch {__version__} from where CI has it"
        )
        return f"{name}=={__version__}", note
    return f"{name}=={__version__}", ""


def _write(root: Path, texts: dict[str, str]) -> None:
    """All files, or on an error none of them."""
    with ExitStack() as stack:
        for name, text in texts.items():
            stack.enter_context(written_whole(root / name)).write_text(text, encoding="utf-8")
