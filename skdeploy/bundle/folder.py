"""The bundle's folder: opened for writing by one process at a time, or read with every digest checked."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import JsonValue, ValidationError

from skdeploy.bundle.artifact import Artifact, DataFile, Provenance, recipe_key, tool_versions
from skdeploy.bundle.manifest import Manifest, read_manifest
from skdeploy.bundle.station_facts import StationFacts
from skdeploy.core.errors import IntegrityError, SkdeployError, UsageError, first_problem
from skdeploy.core.files import (
    PARTIAL_SUFFIX,
    SIDE_SUFFIX,
    digest_file,
    read_file,
    require_places,
    require_plain_name,
    side_file,
    write_error,
    write_text,
    written_whole,
)
from skdeploy.core.finite import require_finite
from skdeploy.core.spec import Assumption, Frozen, ModelSpec, Precision
from skdeploy.ir.named_files import named_files

Report = TypeVar("Report", bound=Frozen)
MANIFEST = "manifest.json"
LOCK = ".lock"
MAX_RECORD_BYTES = 64 << 20  # a report of a large network has a few megabytes


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a file of the bundle: with an equal recipe, an earlier file is kept.

    ``parents`` are digests by name, ``tools`` the distributions whose version changes the result. ``reusable`` is false where
    the recipe does not tell all that the result depends on.
    """

    station: str
    output: str
    format: str
    precision: Precision | None
    parents: Mapping[str, str]
    options: Mapping[str, JsonValue]
    tools: tuple[str, ...]
    reusable: bool = True

    @property
    def key(self) -> str:
        return recipe_key(self.station, self.parents, self.options, tool_versions(self.tools))


class Bundle:
    """A folder with ``manifest.json``. Artifacts are files inside it, recorded with their digests."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._verified: set[str] = set()

    def path(self, artifact: Artifact) -> Path:
        """The artifact's file. Raises IntegrityError if a link leads out of the bundle."""
        return self._inside(self.folder / artifact.path)

    def _inside(self, path: Path) -> Path:
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise IntegrityError(
                f"{path} is a link that leads out of the bundle",
                advice="delete the link, and run the same command again",
            )
        return path

    @property
    def graphs(self) -> list[Artifact]:
        """The ONNX files in the order of the line."""
        return [artifact for artifact in self.manifest.artifacts if artifact.format == "onnx"]

    @property
    def engines(self) -> list[Artifact]:
        """The compiled artifacts, whether or not they run here."""
        return [artifact for artifact in self.manifest.artifacts if artifact.format == "engine"]

    def artifact(self, name: str) -> Artifact | None:
        """The artifact at the relative path ``name``, if recorded."""
        return next((a for a in self.manifest.artifacts if a.path == name), None)

    def check(self, artifact: Artifact) -> Path:
        """The artifact's path, once its digest is the recorded one. Raises IntegrityError."""
        path = self.path(artifact)
        if artifact.path not in self._verified:
            for name, recorded in _digests(artifact).items():
                file = self._inside(self.folder / name)
                self._require_there(artifact, file)
                self._require_recorded(artifact, file, digest_file(file), recorded)
            self._require_whole(artifact, path)
            self._verified.add(artifact.path)
        return path

    def _require_whole(self, artifact: Artifact, path: Path) -> None:
        """Raises IntegrityError if the graph has weights in a file whose digest is not in the manifest."""
        recorded = {Path(artifact.data.path).name} if artifact.data else set()  # both lie in one folder
        if artifact.format == "onnx" and (other := min(named_files(path) - recorded, default="")):
            raise IntegrityError(
                f"{path} has weights in {other}, and the manifest has no digest of that file",
                advice=f"run {self._again(artifact)}, or restore the file",
            )

    def read_checked(self, artifact: Artifact, at_most: int | None = None) -> bytes:
        """The artifact's bytes, whose digest is the recorded one: a file that replaces it later is not what is used.

        Raises IntegrityError.
        """
        path = self.path(artifact)
        self._require_there(artifact, path)
        try:
            content = read_file(path, at_most)
        except OSError as error:
            raise IntegrityError(f"cannot read {path}: {error.strerror}", advice="make it readable") from error
        self._require_recorded(artifact, path, hashlib.sha256(content).hexdigest(), artifact.sha256)
        return content

    def read_report(self, artifact: Artifact, kind: type[Report]) -> Report:
        """The artifact, a JSON report, as a checked object: a digest that agrees does not make it one.

        Raises IntegrityError.
        """
        content = self.read_checked(artifact, MAX_RECORD_BYTES)
        try:
            found = kind.model_validate_json(content)
            require_finite(content)
        except ValueError as error:
            why = first_problem(error) if isinstance(error, ValidationError) else error
            raise IntegrityError(
                f"cannot read {self.path(artifact)}: {why}", advice="export again into another folder"
            ) from error
        return found

    def _require_there(self, artifact: Artifact, path: Path) -> None:
        if not path.is_file():
            raise IntegrityError(
                f"{path} is missing from the bundle", advice=f"run {self._again(artifact)} to make it again"
            )

    def _require_recorded(self, artifact: Artifact, path: Path, found: str, recorded: str) -> None:
        if found != recorded:
            raise IntegrityError(
                f"{path} is not the file that the manifest describes: its sha256 is {found}, recorded is {recorded}",
                advice=f"it was changed or damaged after it was made; run {self._again(artifact)}, or restore the file",
            )

    def _again(self, artifact: Artifact) -> str:
        return f"`skdeploy build {self.folder}`" if artifact.format == "engine" else "the same export again"

    def check_all(self) -> None:
        """Raises IntegrityError for the first artifact that is missing or altered."""
        for artifact in self.manifest.artifacts:
            self.check(artifact)

    def up_to_date(self, recipe: Recipe) -> Artifact | None:
        """The artifact of an earlier run with the same recipe, if its file is still the same."""
        recorded = self.artifact(recipe.output)
        if not recipe.reusable or recorded is None or recorded.provenance.key != recipe.key:
            return None
        try:
            self.check(recorded)
        except IntegrityError:
            return None  # made again below: this is an export, which owns the file; `verify` refuses instead
        return recorded

    def produce(self, recipe: Recipe, make: Callable[[Path], StationFacts]) -> Artifact:
        """Lets ``make`` write a file and records it. The file and then the manifest are each replaced whole, and the record
        of an earlier file goes first: whenever the process is killed, the bundle is valid.

        Raises IntegrityError if a link leads out of the bundle: nothing is written there.
        """
        started = time.perf_counter()
        path = self.folder / recipe.output
        self._inside(path.parent)
        side = self._inside(side_file(path))
        side.unlink(missing_ok=True)  # of an earlier file that goes too
        try:
            with written_whole(path) as partial:
                facts = make(partial)
                sha256, size, data = digest_file(partial), partial.stat().st_size, None
                if side.is_file():
                    data = DataFile(path=side.relative_to(self.folder).as_posix(), sha256=digest_file(side))
                    size += side.stat().st_size
                others = tuple(a for a in self.manifest.artifacts if a.path != recipe.output)
                if len(others) < len(self.manifest.artifacts):
                    self.save(self.manifest.model_copy(update={"artifacts": others}))
        except BaseException:
            side.unlink(missing_ok=True)
            raise
        provenance = Provenance(
            key=recipe.key,
            parents=dict(recipe.parents),
            options=dict(recipe.options),
            tools=tool_versions(recipe.tools),
            seconds=round(time.perf_counter() - started, 3),
        )
        made_by = {
            "path": recipe.output,
            "format": recipe.format,
            "precision": recipe.precision,
            "provenance": provenance,
        }
        told = {"facts": facts, "inputs": facts.inputs, "outputs": facts.outputs}
        artifact = Artifact.model_validate({**made_by, **told, "sha256": sha256, "size_bytes": size, "data": data})
        self._verified.add(artifact.path)
        self.save(self.manifest.model_copy(update={"artifacts": (*others, artifact)}))
        return artifact

    def save(self, manifest: Manifest) -> None:
        """Replaces the manifest."""
        self.manifest = manifest
        self.write_record(MANIFEST, manifest)

    def write_record(self, name: str, record: Frozen) -> Path:
        """Write a JSON file that is not an artifact, whole or not at all. Raises UsageError or IntegrityError."""
        path = self.folder / name
        self._inside(path.parent)
        write_record(path, record)
        return path

    def read_record(self, path: Path) -> bytes:
        """Read what ``write_record`` wrote. Raises IntegrityError for a link out of the bundle or a huge file, and OSError."""
        return read_file(self._inside(path), MAX_RECORD_BYTES)

    def adopt(self, spec: ModelSpec, notes: tuple[str, ...], assumptions: tuple[Assumption, ...] = ()) -> None:
        """Take the spec that the weights turned out to fit, what was said of them, and what was assumed besides.

        It is written with the next artifact.
        """
        now = self.manifest
        self.manifest = now.model_copy(
            update={"model": spec, "notes": (*now.notes, *notes), "assumptions": (*now.assumptions, *assumptions)}
        )

    def finish(self, artifacts: tuple[Artifact, ...], verdict: Literal["verified", "failed"]) -> None:
        """Records the line's end: its artifacts in order, and the verdict. Files that an earlier export left are removed."""
        kept = {file for artifact in artifacts for file in artifact.files}
        for stale in (file for artifact in self.manifest.artifacts for file in artifact.files if file not in kept):
            self._inside(self.folder / stale).unlink(missing_ok=True)
        self.save(self.manifest.model_copy(update={"artifacts": artifacts, "verdict": verdict}))

    def check_complete(self) -> None:
        """Raises IntegrityError unless the export that made this bundle came to its end, in parity or not."""
        if self.manifest.verdict == "incomplete":
            raise IntegrityError(
                f"{self.folder} is incomplete: its export did not finish",
                advice="run the same export again: finished steps are kept",
            )

    def check_deployable(self) -> None:
        """Raises IntegrityError for a bundle that nothing may be built from: incomplete, or its export failed parity.

        What judges a bundle, such as ``evaluate`` and ``verify``, takes a failed one; what brings it to a device does not.
        """
        self.check_complete()
        if self.manifest.verdict == "failed":
            raise IntegrityError(
                f"{self.folder} must not be deployed: its export failed parity",
                advice=f"`skdeploy inspect {self.folder}` shows where; export again with other options, or with a wider "
                "[tolerance] in the card if `skdeploy evaluate` shows that accuracy holds",
            )


def write_record(path: Path, record: Frozen) -> None:
    """Write a model as a JSON file, whole or not at all. Raises UsageError or IntegrityError."""
    write_text(path, record.model_dump_json(by_alias=True, indent=2) + "\n")


def _digests(artifact: Artifact) -> dict[str, str]:
    """Of its files."""
    data = artifact.data
    return {artifact.path: artifact.sha256} | ({} if data is None else {data.path: data.sha256})


def load_bundle(folder: Path) -> Bundle:
    """Opens a bundle for reading. Raises UsageError if there is none, IntegrityError if its manifest is broken."""
    require_plain_name(folder)
    path = folder / MANIFEST
    try:
        text = read_file(path, MAX_RECORD_BYTES).decode()
    except (FileNotFoundError, NotADirectoryError) as error:
        lacking = "there is no such folder"
        if folder.exists():
            lacking = f"it has no {MANIFEST}" if folder.is_dir() else "it is a file"
        raise UsageError(
            f"{folder} is not a bundle: {lacking}",
            advice=f"give its bundle, {folder.parent}"
            if (folder.parent / MANIFEST).is_file()
            else "`skdeploy export` makes one, in build/ by default",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"it is not text: {error}"
        raise IntegrityError(
            f"cannot read {path}: {why}", advice="make it readable, restore it, or export again"
        ) from error
    try:
        return Bundle(folder, read_manifest(text))
    except ValidationError as error:
        raise IntegrityError(
            f"{path} is not a valid manifest: {first_problem(error)}", advice="export again into another folder"
        ) from error


@contextmanager
def bundle_for_writing(folder: Path, manifest: Manifest) -> Iterator[Bundle]:
    """Open the bundle in ``folder`` for writing, locked; it has ``manifest``'s head and the artifacts already there.

    A missing folder is made, and removed again if the work in it is refused before there is a graph. The operating system
    holds the lock: it ends with the process, killed or not. Raises UsageError if the folder is a file, is not writable or
    holds something else, which stays as it was; IntegrityError if another process is writing to it.
    """
    from filelock import FileLock, Timeout

    require_plain_name(folder)
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file, not a folder", advice="choose another folder with --output")
        folder.mkdir(parents=True, exist_ok=True)
        if _holds_something_else(folder):
            raise UsageError(
                f"{folder} is not empty, and is not a bundle",
                advice="choose another folder with --output (nothing was written)",
            )
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        require_places(folder / LOCK)  # a folder that takes no files, as those of /proc, looks like a locked one
        raise IntegrityError(
            f"another skdeploy is writing to {folder}",
            advice="wait until it ends, or use another folder",
        ) from error
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        for leftover in folder.rglob(f".*{PARTIAL_SUFFIX}"):
            leftover.unlink(missing_ok=True)
        for leftover in folder.rglob(f".*{SIDE_SUFFIX}.*"):  # onnx-ir's, of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        if (folder / MANIFEST).exists():
            yield Bundle(folder, manifest.model_copy(update={"artifacts": _recorded(folder)}))
        else:
            bundle = Bundle(folder, manifest)
            bundle.save(manifest)  # before the first artifact: whenever this process is killed, the folder is a bundle
            try:
                yield bundle
            except SkdeployError:
                if folder in made and not any(artifact.format == "onnx" for artifact in bundle.manifest.artifacts):
                    _remove(bundle, made)
                raise
    finally:
        lock.release()


def _remove(bundle: Bundle, made: list[Path]) -> None:
    """Remove what this process wrote, and the folders it made. What somebody else has put there since keeps them."""
    for name in (*(file for artifact in bundle.manifest.artifacts for file in artifact.files), MANIFEST, LOCK):
        (bundle.folder / name).unlink(missing_ok=True)
    for folder in made:
        if any(folder.iterdir()):
            break
        folder.rmdir()


def _holds_something_else(folder: Path) -> bool:
    """Whether the folder is neither a bundle nor empty, but for what a process leaves that is killed before its manifest."""
    if (folder / MANIFEST).exists():
        return False
    ours = (LOCK, f".{MANIFEST}.*{PARTIAL_SUFFIX}")
    return not all(any(fnmatch(entry.name, pattern) for pattern in ours) for entry in folder.iterdir())


def _recorded(folder: Path) -> tuple[Artifact, ...]:
    try:
        return load_bundle(folder).manifest.artifacts
    except SkdeployError as error:
        raise IntegrityError(
            f"cannot read the manifest of {folder}, so nothing in it can be reused: {error.message}",
            advice="delete the folder, or choose another one with --output",
        ) from error
