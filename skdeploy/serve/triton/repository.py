"""``skdeploy triton``: a bundle as models of a Triton model repository, each version there whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.files import (
    PARTIAL_SUFFIX,
    digest_file,
    partial_name,
    read_file,
    require_places,
    write_error,
    write_text,
    written_whole,
)
from skdeploy.core.spec import ModelSpec
from skdeploy.core.version import __version__
from skdeploy.images.decoding import GREY_OR_RGB
from skdeploy.parity.tasks import task_of
from skdeploy.serve.triton import kserve
from skdeploy.serve.triton.config import LABELS_FILE, MARK, ModelConfig, Step, Tensor, read_parameters
from skdeploy.serve.triton.served import TENSORRT, Served, choose

CONFIG: Final = "config.pbtxt"
NEXT: Final = "next"
MAX_CONFIG_BYTES: Final = 16 << 20
MAX_INSTANCES: Final = 1024  # each has the model in memory
LOCK: Final = ".skdeploy.lock"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MODEL: Final = "model.py"
ENCODED: Final = "image"  # the ensemble's input: encoded images
PIXELS: Final = "pixels"
PREPROCESS_SUFFIX, IMAGES_SUFFIX = "-preprocess", "-images"


@dataclass(frozen=True)
class TritonOptions:
    """Options of ``skdeploy triton``, by the same names. ``name`` None is the card's, with dashes for slashes."""

    output: Path
    backend: str = "onnxruntime"
    name: str | None = None
    version: str | None = None
    max_batch: int | None = None
    instances: int = 1
    image: bool = False
    kserve: Path | None = None
    storage_uri: str | None = None


@dataclass(frozen=True)
class Written:
    """The models that were written: ``models`` are their names, the network's first; ``version`` is the network's."""

    repository: Path
    models: tuple[str, ...]
    version: int
    artifact: str
    sha256: str
    max_batch: int
    notes: tuple[str, ...]
    kserve: Path | None = None


def write_repository(folder: Path, options: TritonOptions) -> Written:
    """Writes the models. Other models of the repository, and other versions of these, stay as they are.

    A bundle that failed parity is not served. Raises UsageError for options, names or versions that do not fit, IntegrityError
    for a damaged bundle, or a repository that could not be written; no half-written version stays.
    """
    bundle = load_bundle(folder)
    bundle.check_deployable()
    spec = bundle.manifest.model
    name = options.name or spec.name.replace("/", "-")
    if not NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r} cannot be a model of Triton",
            advice="use letters, digits, dashes, underscores and dots, and begin with a letter or digit",
        )
    if not 1 <= options.instances <= MAX_INSTANCES:
        raise UsageError(f"--instances {options.instances}: give at least 1, and at most {MAX_INSTANCES}")
    served = choose(bundle, options.backend, options.max_batch)
    companions = _companions(name, spec, served, options) if options.image else ()
    service = None
    if options.kserve is not None:
        service = kserve.service(name, options.storage_uri, gpu=served.backend == TENSORRT)
    elif options.storage_uri is not None:
        raise UsageError("--storage-uri requires --kserve")
    target = options.output / name
    with _locked(options.output):
        version = _version(target, options.version)
        config = _network(name, version, served, options, spec)
        for each in companions:
            _require_same(options.output / each.name, each, whole=True)
        older = _require_same(target, config, whole=False)
        config = replace(config, parameters={**older, **config.parameters})
        labels = _labels(spec, config.outputs)
        for each in companions:  # what the ensemble calls is there before it, and it before what is new
            if each.steps:
                continue
            _write_companion(options.output / each.name, each, labels={})
        _write_version(bundle, served, target, config, version, labels)
        for each in companions:
            if each.steps:
                _write_companion(options.output / each.name, each, labels)
    if options.kserve is not None and service is not None:
        write_text(options.kserve, service)
    return Written(
        options.output,
        (name, *(each.name for each in companions)),
        version,
        served.artifact.path,
        served.artifact.sha256,
        served.max_batch,
        served.notes,
        options.kserve,
    )


def _network(name: str, version: int, served: Served, options: TritonOptions, spec: ModelSpec) -> ModelConfig:
    digests = {f"sha256.{version}.{file}": sha256 for file, (_, sha256) in served.files.items()}
    return ModelConfig(
        name,
        served.backend,
        served.max_batch,
        served.inputs,
        served.outputs,
        {"skdeploy": __version__, "card": spec.name, f"artifact.{version}": served.artifact.path, **digests},
        options.instances,
        on_cpu=served.backend == "python",
        graph_level=served.graph_level,
    )


def _companions(name: str, spec: ModelSpec, served: Served, options: TritonOptions) -> tuple[ModelConfig, ...]:
    """The preprocessing and the ensemble of ``--image``. Raises UsageError for a network that image files cannot feed."""
    if not spec.takes_images:
        raise UsageError(
            f"--image is for networks that take images; {spec.name} takes {spec.shown_inputs}",
            advice="leave --image out: clients send the arrays",
        )
    if spec.input.channels not in GREY_OR_RGB:
        raise UsageError(
            f"--image: an image file has 1 or 3 channels, but {spec.name} takes {spec.input.channels}",
            advice="leave --image out: clients send the arrays",
        )
    (given,) = served.inputs
    card = preprocess_card(spec, given.dtype)
    rows = (1,) if served.batched else (given.dims[0],)
    encoded = Tensor(ENCODED, "bytes", rows, rows)
    pixels = Tensor(PIXELS, given.dtype, given.dims, given.usual)
    before, ensemble = name + PREPROCESS_SUFFIX, name + IMAGES_SUFFIX
    step = Step(before, {ENCODED: ENCODED}, {PIXELS: PIXELS})
    then = Step(name, {given.name: PIXELS}, {each.name: each.name for each in served.outputs})
    about = {
        "skdeploy": __version__,
        "preprocess": json.dumps(card, sort_keys=True),
        "sha256.1.model.py": digest_file(_source("preprocess")),
    }
    return (
        ModelConfig(
            before, "python", served.max_batch, (encoded,), (pixels,), about, options.instances, on_cpu=True, warm_up=False
        ),
        ModelConfig(
            ensemble, "", served.max_batch, (encoded,), served.outputs, {"skdeploy": __version__, "card": spec.name},
            steps=(step, then),
        ),
    )  # fmt: skip


def preprocess_card(spec: ModelSpec, dtype: str) -> dict[str, JsonValue]:
    """The numbers of the card that models/preprocess.py asks for; ``dtype`` is that of the graph's input."""
    resize: dict[str, JsonValue] = {"resize": None}  # not written where there is none
    preprocess = spec.preprocess.model_dump(mode="json")
    return spec.input.model_dump(mode="json") | resize | preprocess | {"exif": spec.preprocess.exif, "input": dtype}


def _source(name: str) -> Path:
    """The file of a model of the Python backend."""
    return Path(str(files("skdeploy.serve.triton.models").joinpath(f"{name}.py")))


def _labels(spec: ModelSpec, outputs: tuple[Tensor, ...]) -> dict[str, str]:
    """The labels file, one a line, if an output has labels. Raises UsageError for a label of several lines."""
    if not any(each.labels for each in outputs):
        return {}
    broken = [label for label in spec.labels if len(label.splitlines()) > 1]
    if broken:
        raise UsageError(
            f"the label {broken[0]!r} has a line break, and Triton reads one label a line", advice="correct the card"
        )
    assert task_of(spec).has_classes  # ``choose`` gives only these an output with labels
    return {LABELS_FILE: "".join(f"{label}\n" for label in spec.labels)}


def _version(target: Path, asked: str | None) -> int:
    """The version to write. Raises UsageError for one that is there, or that Triton does not take."""
    there = sorted(int(each.name) for each in target.iterdir() if each.name.isdecimal()) if target.is_dir() else []
    if asked == NEXT:
        return there[-1] + 1 if there else 1
    if asked is not None and (not re.fullmatch(r"[1-9]\d{0,17}", asked)):
        raise UsageError(f"--version {asked}: this is not a version", advice="give a whole number from 1, or next")
    version = int(asked or 1)
    if version in there:
        raise UsageError(
            f"{target / str(version)} exists already, and is not changed",
            advice="give --version next, another --name, or remove it",
        )
    return version


def _require_same(target: Path, config: ModelConfig, *, whole: bool) -> Mapping[str, str]:
    """The parameters of a model's other versions. Raises UsageError for a model that is not ours, or another network's.

    All versions of a model share one config.pbtxt. ``whole``: the file must be the same altogether.
    """
    path = target / CONFIG
    if not target.exists():
        return {}
    try:
        text = read_file(path, MAX_CONFIG_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{target} is there, and {path} cannot be read: {why}", advice="give another --name"
        ) from error
    if not text.startswith(MARK):
        raise UsageError(
            f"{path} was not written by skdeploy, so nothing of {target} is changed", advice="give another --name"
        )
    if config.interface not in text or (whole and _without_head(text) != _without_head(config.text)):
        what = "other settings, which its versions share" if whole else "another backend, or other inputs or outputs"
        raise UsageError(
            f"{path} has {what}",
            advice="give another --name; or remove the model, and write it anew",
        )
    try:
        found = read_parameters(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} was changed after skdeploy wrote it: {error}", advice="remove the model, and write it anew"
        ) from error
    return {key: value for key, value in found.items() if re.match(r"(artifact|sha256)\.\d+", key)}


def _without_head(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith((MARK, 'parameters { key: "skdeploy"'))]


def _write_version(
    bundle: Bundle, served: Served, target: Path, config: ModelConfig, version: int, labels: Mapping[str, str]
) -> None:
    """The network's version: config.pbtxt first where the model is there already, since the version needs its digests."""
    new = not target.exists()
    with _folder(target if new else target / str(version)) as partial:
        inner = partial / str(version) if new else partial
        inner.mkdir(exist_ok=True)
        for name, (path, sha256) in served.files.items():
            _copy(bundle.folder / path, inner / name, sha256)
        if served.backend == "python":
            _copy(_source("network"), inner / MODEL)
        if new:
            _write_settings(partial, config, labels)
        else:
            _write_settings(target, config, labels)


def _write_companion(target: Path, config: ModelConfig, labels: Mapping[str, str]) -> None:
    if target.exists():  # the same, as ``_require_same`` has seen
        return
    with _folder(target) as partial:
        (partial / "1").mkdir()
        if config.steps:  # a file, because object stores keep no empty folder, and Triton wants one for each version
            write_text(partial / "1" / "ensemble.txt", f"{', then '.join(step.model for step in config.steps)}\n")
        else:
            _copy(_source("preprocess"), partial / "1" / MODEL)
        _write_settings(partial, config, labels)


def _write_settings(folder: Path, config: ModelConfig, labels: Mapping[str, str]) -> None:
    for name, text in {**labels, CONFIG: config.text}.items():
        write_text(folder / name, text)


@contextmanager
def _folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target``, renamed to it at the end and removed on any error.

    A server that polls takes neither: a version's name is a number, and a model needs a config.pbtxt, which is written last.
    """
    partial = target.with_name(partial_name(target.name))
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy(source: Path, target: Path, sha256: str | None = None) -> None:
    """Copies a file, and checks the copy: what was checked before may have been replaced since."""
    with written_whole(target) as partial:
        shutil.copyfile(source, partial)
    if sha256 is not None and digest_file(target) != sha256:
        raise IntegrityError(
            f"{source} is not the file that the manifest describes any more, or its copy {target} was damaged",
            advice="check the disk, and run the same command again",
        )


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    """The one that may write to this repository. Raises UsageError for a place that takes no files, IntegrityError if another
    process is writing there.
    """
    from filelock import FileLock, Timeout

    try:
        repository.mkdir(parents=True, exist_ok=True)
        lock = FileLock(repository / LOCK, timeout=0)  # Triton reads folders only
        lock.acquire()
    except Timeout as error:
        require_places(repository / LOCK)  # a folder that takes no files, as those of /proc, looks like a locked one
        raise IntegrityError(f"another skdeploy is writing to {repository}", advice="wait until it ends") from error
    except OSError as error:
        raise write_error(repository, error) from error
    try:
        for leftover in repository.glob(f"**/.*{PARTIAL_SUFFIX}"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()
