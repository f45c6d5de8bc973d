"""Where the recipe of the winner goes, and what is in it: see calibration/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from skdeploy.accuracy.gate import PairedReport
from skdeploy.core.errors import UsageError
from skdeploy.core.files import require_places
from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import Dataset, open_dataset, require_there
from skdeploy.line.calibration import DEFAULT_NUMBER
from skdeploy.tuning.error import ErrorReport
from skdeploy.tuning.report import Compared, Tried, drop_unit

CALIBRATION: Final = "calibration.npz"


def calibration_images(given: Path | None, data: Path) -> Path:
    """The images that calibrate. Raises UsageError where there are none, or where they are those that judge."""
    if given is None:
        if not (data / CALIBRATION).is_file():
            raise UsageError(
                f"tune needs images to calibrate on, and {data} is not a folder with a {CALIBRATION}",
                advice="give --calib with a folder, .npz or .txt; not the images of --data, which judge",
            )
        return data / CALIBRATION
    if given.suffix == ".toml":
        raise UsageError(
            f"--calib {given} is a recipe, and tune writes one", advice="give the images themselves with --calib"
        )
    require_there(given)
    if not data.is_dir() and given.resolve() == data.resolve():
        raise UsageError(
            f"--calib and --data are both {given}: images that calibrate cannot judge",
            advice="give others for one of them",
        )
    return given


def shared_images(calib: Path, data: Dataset, spec: ModelSpec) -> int:
    """How many files of the images that judge calibrate, too. Raises UsageError where all images are the same."""
    images = open_dataset(calib, spec=spec)
    if images.digest == data.digest:
        raise UsageError(
            f"--calib {calib} has the images of --data: images that calibrate cannot judge",
            advice="give others for one of them",
        )
    return len({file.resolve() for file in images.files} & {file.resolve() for file in data.files})


def recipe_place(output: Path | None, calib: Path, spec: ModelSpec, *, force: bool) -> Path:
    """Where the recipe goes. A recipe names images inside its own folder, so it lies beside or above them.

    Raises UsageError, before the long part, for another place, or one where a file is already.
    """
    place = output or calib.parent / f"{spec.name.replace('/', '-')}-tuned.toml"
    if place.suffix != ".toml":
        named = place.with_suffix(".toml") if place.name else "NAME.toml"
        raise UsageError(f"--output {place}: a recipe's name ends in .toml", advice=f"give {named}")
    if not calib.resolve().is_relative_to(place.parent.resolve()):
        raise UsageError(
            f"--output {place}: a recipe names images inside its own folder, and {calib} is not in {place.parent}",
            advice=f"write it to {calib.parent / place.name}",
        )
    if place.exists() and not force:
        raise UsageError(f"{place} exists already", advice="give --force to replace it, or another --output")
    require_places(place)
    return place


def recipe_text(
    spec: ModelSpec, winner: Tried, confirmed: Compared, calib: Path, place: Path, number: int | None
) -> str:
    """The recipe as TOML."""
    dataset = open_dataset(calib, spec=spec)
    candidate = winner.candidate
    keys: dict[str, Any] = {
        "schema": 1,
        "model": spec.name,
        "images": calib.resolve().relative_to(place.parent.resolve()).as_posix(),
        "images_sha256": dataset.digest,
        "split": "the images of --calib",
        "number": min(number or DEFAULT_NUMBER, len(dataset)),
        "seed": 0,
        **candidate.calibration,
        "fallback": candidate.fallback,
        "exclude": list(candidate.keep),
    }
    if candidate.regroup is not None:
        keys["regroup"] = candidate.regroup
    keys["note"] = f"skdeploy tune: {_result(confirmed)} that chose nothing"
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items() if value != []]
    return "\n".join(lines) + "\n"


def _result(confirmed: Compared) -> str:
    if isinstance(confirmed, ErrorReport):
        bounds = f"{confirmed.low_db:.2f} to {confirmed.high_db:.2f}"
        return f"{confirmed.sqnr_db:.2f} dB against FP32, {bounds}, on {confirmed.images} {confirmed.sample}s"
    form = "+.2f" if isinstance(confirmed, PairedReport) else "+.3g"
    low, high = (format(bound, form) for bound in (confirmed.drop_low, confirmed.drop_high))
    judged = f"{confirmed.pairs.images} images" if isinstance(confirmed, PairedReport) else f"{confirmed.images} pairs"
    return f"drop {confirmed.drop:{form}} {drop_unit(confirmed)}, {low} to {high} on {judged}"
