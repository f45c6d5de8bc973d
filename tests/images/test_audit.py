"""The audit of the calibration images: what it counts, which it names, and what it warns of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skdeploy.core.errors import CalibrationError
from skdeploy.core.spec import ModelSpec
from skdeploy.images.audit import Audit, moved
from skdeploy.images.audit_report import NOISE, AuditReport, ClassCoverage, TensorCoverage, audit_of
from skdeploy.images.dataset import Dataset, open_dataset
from skdeploy.images.duplicates import Fingerprints, fingerprints
from skdeploy.images.labels import as_the_network_counts
from skdeploy.images.reading import read_crops
from skdeploy.images.selection import random_images, select
from skdeploy.zoo.cards import load_card
from tests.refused import refused
from tests.tiny import noise, save, spec, spec_of

FASHION = Path(__file__).parents[2] / "calibration/fashion"
TINY = spec()
SPEC, _ = load_card("sknet-fashion")  # 10 classes, 1 x 28 x 28 from 28


def audited(
    dataset: Dataset, spec: ModelSpec = TINY, evaluation: Fingerprints | None = None, **given: Any
) -> AuditReport:
    audit = Audit(dataset, spec, given.pop("asked", None))
    for index, crop in read_crops(dataset, spec, audit.skip):
        audit.add(index, crop)
    return audit.finish(evaluation, **given)


def images(count: int, **given: Any) -> Dataset:
    return Dataset("x", pixels=noise(count, 36, 36, 3), **given)


def warned(report: AuditReport, words: str) -> bool:
    return any(words in warning for warning in report.warnings())


# ----- the committed images


def test_the_committed_images_have_nothing_to_warn_of() -> None:
    dataset = select(as_the_network_counts(open_dataset(FASHION), SPEC), 512, 0)
    evaluation = fingerprints(open_dataset(FASHION, archive="evaluation.npz"), SPEC)
    report = audited(dataset, SPEC, evaluation, asked=512)
    assert report.warnings() == ()
    assert (report.asked, report.used, report.dataset, report.random) == (512, 512, "calibration.npz", False)
    assert report.classes == ClassCoverage(covered=10, total=10, fewest=51, most=52, missing=())
    assert (report.overlap.dataset, report.overlap.images) == ("evaluation.npz", 2000)
    counts = (report.exact, report.near, report.overlap.exact, report.overlap.near)
    assert [found.count for found in counts] == [0, 0, 0, 0]
    assert [found.count for found in (report.constant, report.clipped, report.enlarged)] == [0, 0, 0]
    assert report.converted == {}


def test_the_report_survives_json() -> None:
    dataset = images(4, labels=np.array([0, 1, 1, 4]))
    report = audited(dataset, TINY, fingerprints(dataset, TINY), coverage=moved({"a": 1.0}, {"a": 2.0}))
    assert AuditReport.model_validate_json(report.model_dump_json()) == report


# ----- how many


@pytest.mark.parametrize(
    ("count", "begins"), [(3, "3 images: too few to cover"), (1, "1 image: "), (99, "99 images: "), (100, None)]
)
def test_few_images_are_warned_of(count: int, begins: str | None) -> None:
    first = [warning for warning in audited(images(count)).warnings() if "too few to cover" in warning]
    assert [warning.startswith(str(begins)) for warning in first] == ([True] if begins else [])


def test_an_image_that_could_not_be_read_is_reported_and_counts_for_nothing(tmp_path: Path) -> None:
    save(tmp_path, *(f"{index:03}.jpg" for index in range(100)))
    (tmp_path / "042.jpg").write_bytes((tmp_path / "042.jpg").read_bytes()[:800])
    report = audited(open_dataset(tmp_path))
    assert (report.asked, report.used) == (100, 99)
    assert [image.name for image in report.unreadable] == ["042.jpg"]
    assert warned(report, "left out 1 image that could not be read; first: 042.jpg: image file is truncated")


# ----- classes


def test_classes_without_an_image_are_named() -> None:
    labels = np.repeat([0, 1, 2, 3, 4, 6, 7], 20)
    dataset = Dataset("x", pixels=noise(140, 28, 28, 1), labels=labels)
    report = audited(as_the_network_counts(dataset, SPEC), SPEC)
    missing = ("Sandal", "Bag", "Ankle boot")
    assert report.classes == ClassCoverage(covered=7, total=10, fewest=20, most=20, missing=missing)
    assert warned(report, "3 of 10 classes have no image: Sandal, Bag, Ankle boot")
    by_number = audited(dataset, SPEC)
    assert by_number.classes.missing == ("5", "8", "9")


def test_only_the_first_of_many_missing_classes_are_named() -> None:
    spec, _ = load_card("sknet50")
    dataset = Dataset("x", pixels=noise(2, 224, 224, 3), labels=np.array([0, 2]))
    words = "998 of 1000 classes have no image: 2 images cannot cover them all: 1, 3, 4, 5, 6 and 993 more"
    assert warned(audited(dataset, spec), words)


def test_class_folders_that_were_not_matched_are_counted_and_none_is_called_missing(tmp_path: Path) -> None:
    save(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png")
    report = audited(open_dataset(tmp_path))
    assert report.classes == ClassCoverage(covered=2, total=5, fewest=1, most=2, missing=())
    assert audited(images(3)).classes is None


# ----- duplicates


def test_equal_and_near_images_are_named_by_their_places() -> None:
    pixels = noise(120, 36, 36, 3)
    pixels[100] = pixels[7]
    pixels[50:60] = np.clip(pixels[0:10].astype(int) + 2, 0, 255)
    report = audited(Dataset("x", pixels=pixels))
    assert (report.exact.count, report.exact.pairs) == (1, (("images[7]", "images[100]"),))
    assert report.near.count == 10
    assert report.near.pairs[0] == ("images[0]", "images[50]")
    assert len(report.near.pairs) == 5
    assert warned(report, "1 image the same as an earlier one (first: images[100] and images[7])")
    assert warned(report, "10 images nearly the same as an earlier one (first: images[50] and images[0])")
    few = audited(Dataset("x", pixels=np.delete(pixels, slice(51, 60), axis=0)))
    assert (few.near.count, warned(few, "nearly the same")) == (1, False)


@pytest.mark.parametrize("level", [0, 2])
def test_images_that_accuracy_is_measured_on_too_are_warned_of(level: int) -> None:
    calibration, evaluation = noise(100, 36, 36, 3), noise(50, 36, 36, 3, seed=1)
    evaluation[30] = np.clip(calibration[20].astype(int) + level, 0, 255)
    theirs = fingerprints(Dataset("eval.npz", pixels=evaluation), TINY)
    report = audited(Dataset("x", pixels=calibration), TINY, theirs)
    assert report.overlap.exact.count == (level == 0)
    assert report.overlap.near.count == (level == 2)
    assert warned(report, "eval.npz")
    assert warned(report, "(first: images[20] and images[30]): accuracy measured there will look too good")
    assert audited(Dataset("x", pixels=calibration)).overlap is None


# ----- odd images


def test_images_of_one_colour_are_named() -> None:
    pixels = noise(100, 36, 36, 3)
    pixels[9] = (10, 200, 30)
    report = audited(Dataset("x", pixels=pixels))
    assert report.constant.names == ("images[9]",)
    assert warned(report, "1 image of one colour: images[9]")


def test_overexposed_images_are_warned_of_and_dark_backgrounds_are_not() -> None:
    bright, dark = noise(100, 36, 36, 3) // 2, noise(100, 36, 36, 3) // 2
    bright[:10, :20], dark[:, :30] = 255, 0
    report = audited(Dataset("x", pixels=bright))
    assert report.clipped.count == 10
    assert warned(report, "10 images with more than a quarter of the values at 255")
    assert audited(Dataset("x", pixels=bright[5:])).clipped.count == 5
    assert not warned(audited(Dataset("x", pixels=np.concatenate([bright[6:], dark]))), "255")
    assert audited(Dataset("x", pixels=dark)).clipped.count == 0


def test_enlarged_images_are_counted() -> None:
    report = audited(Dataset("x", pixels=noise(100, 20, 50, 3)))
    assert (report.enlarged.count, len(report.enlarged.names)) == (100, 5)
    assert warned(report, "100 images smaller than the card's resize: they are enlarged")
    assert audited(images(100)).enlarged.count == 0


def test_conversions_are_counted_and_lost_transparency_is_warned_of(tmp_path: Path) -> None:
    colour = Image.fromarray(noise(36, 36, 3))
    for index, mode in enumerate(("RGB", "L", "L", "RGBA", "P", "LA")):
        colour.convert(mode).save(tmp_path / f"{index}.png")
    colour.convert("CMYK").save(tmp_path / "6.jpg")
    colour.save(tmp_path / "7.webp", save_all=True, append_images=[Image.fromarray(noise(36, 36, 3, seed=1))])
    report = audited(open_dataset(tmp_path))
    assert report.converted == {
        "CMYK to RGB": 1,
        "L to RGB": 2,
        "LA to RGB": 1,
        "P to RGB": 1,
        "RGBA to RGB": 1,
        "alpha dropped": 2,
        "first of several frames": 1,
    }
    assert warned(report, "2 images with transparency, which is dropped")
    assert audited(Dataset("x", pixels=noise(2, 28, 28, 3)), SPEC).converted == {"RGB to L": 2}


# ----- noise, and thresholds that still move


def test_random_images_are_warned_of_above_all_else() -> None:
    report = audited(random_images(TINY, 3, 0))
    assert report.random
    assert report.warnings() == (NOISE,)
    assert "not for accuracy" in NOISE


def test_thresholds_that_still_move_are_kept_the_most_moved_first() -> None:
    early = {"still": 4.0, "edge": 100.0, "shrinks": 2.0, "wakes": 0.0, "sleeps": 0.0, "moves": 1.0}
    final = {"still": 4.0, "edge": 105.0, "shrinks": 1.8, "wakes": 0.5, "sleeps": 0.0, "moves": 1.5}
    found = moved(early, final)
    assert [tensor.name for tensor in found] == ["wakes", "moves", "shrinks"]
    assert found[1] == TensorCoverage(name="moves", early=1.0, final=1.5)
    report = audited(images(100), coverage=found)
    assert warned(report, "thresholds of 3 tensor(s) moved by more than 5% in the last quarter")
    assert warned(report, "(most: wakes, 0 to 0.5)")
    assert not warned(audited(images(100)), "moved")


def test_nothing_read_is_a_report_too() -> None:
    """A caller may stop before the first image; the report must not divide by none."""
    report = Audit(images(3, labels=np.zeros(3, np.int64)), TINY, 512).finish()
    assert (report.asked, report.used, report.classes) == (512, 0, None)
    assert report.warnings()


@pytest.mark.parametrize(
    ("exif", "said"), [("ignore", "with an EXIF orientation"), ("apply", "turned upright by their EXIF")]
)
def test_images_with_an_orientation_are_counted_with_what_was_done(exif: str, said: str, tmp_path: Path) -> None:
    for place, orientation in enumerate((1, 6, 3)):
        tag = Image.Exif()
        tag[0x0112] = orientation
        Image.fromarray(noise(36, 60, 3)).save(tmp_path / f"{place}.jpg", exif=tag)
    assert warned(audited(open_dataset(tmp_path), spec_of(exif=exif)), f"2 images {said}")


def test_an_audit_in_ranges_is_one_of_ours_or_none() -> None:
    assert audit_of({}) is None
    with refused(CalibrationError, r"not written by skdeploy: dataset: Field required"):
        audit_of({"used": 3})
