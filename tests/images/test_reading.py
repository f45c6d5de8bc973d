"""Reading calibration images: a few broken ones are passed over and named, more are an error; few are in memory at a time."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skdeploy.core.errors import CalibrationError, UsageError
from skdeploy.core.spec import ModelSpec
from skdeploy.images import reading
from skdeploy.images.audit_report import Unreadable
from skdeploy.images.dataset import Dataset, open_dataset
from skdeploy.images.decoding import Crop
from skdeploy.images.reading import read_crops
from tests.refused import refused
from tests.tiny import noise, spec

SPEC = spec()


def folder_of(folder: Path, count: int, *, broken: int = 0) -> Dataset:
    """JPEGs, of which the first few are cut off in the middle."""
    for index in range(count):
        file = folder / f"{index:03}.jpg"
        Image.fromarray(noise(40, 50, 3, seed=index)).save(file)
        if index < broken:
            file.write_bytes(file.read_bytes()[:700])
    return open_dataset(folder)


@pytest.fixture(params=[1, 4])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(reading.cpu, "cores", lambda: request.param)
    return request.param


def test_crops_come_in_order_and_are_those_that_parity_uses(tmp_path: Path, workers: int) -> None:
    dataset = folder_of(tmp_path, 30)
    found = list(read_crops(dataset, SPEC))
    assert [index for index, _ in found] == list(range(30))
    assert np.array_equal(np.stack([crop.pixels for _, crop in found]), dataset.load(SPEC))


def test_arrays_are_read_too(tmp_path: Path) -> None:
    dataset = Dataset("x", pixels=noise(5, 36, 36, 3))
    found = list(read_crops(dataset, SPEC))
    assert np.array_equal(np.stack([crop.pixels for _, crop in found]), dataset.pixels[:, 2:34, 2:34])


def test_one_truncated_image_in_a_hundred_is_named_and_passed_over(tmp_path: Path, workers: int) -> None:
    told: list[Unreadable] = []
    indices = [index for index, _ in read_crops(folder_of(tmp_path, 100, broken=1), SPEC, told.append)]
    assert indices == list(range(1, 100))
    assert [image.name for image in told] == ["000.jpg"]
    assert "truncated" in told[0].reason
    assert str(tmp_path) not in told[0].reason


def test_more_than_one_in_a_hundred_is_an_error_that_counts_them_all(tmp_path: Path, workers: int) -> None:
    told: list[Unreadable] = []
    message = r"(?s)7 of the 100 images .*000.jpg: image file is truncated.*004\.jpg[^/]*and 2 more"
    with refused(CalibrationError, message, "remove or replace them"):
        list(read_crops(folder_of(tmp_path, 100, broken=7), SPEC, told.append))
    assert len(told) == 7


def test_among_fewer_than_a_hundred_one_is_too_many(tmp_path: Path) -> None:
    with refused(CalibrationError, r"1 of the 99 .* cannot be used; at most 0 \(1 %\)"):
        list(read_crops(folder_of(tmp_path, 99, broken=1), SPEC))


def test_no_crop_is_given_once_it_is_sure_that_it_fails(tmp_path: Path) -> None:
    """The network is the expensive part: it must not run on for an error that is certain."""
    crops = read_crops(folder_of(tmp_path, 20, broken=1), SPEC)
    with pytest.raises(CalibrationError):  # the first image is the broken one, and 19 good ones follow
        next(crops)


def test_a_name_that_does_not_print_cannot_break_the_message(tmp_path: Path) -> None:
    (tmp_path / "a\n\x1b[2Jb.png").write_text("no picture")
    with pytest.raises(CalibrationError) as error:
        list(read_crops(open_dataset(tmp_path), SPEC))
    assert r"a\n\x1b[2Jb.png: cannot identify image file" in error.value.message
    assert "\x1b" not in error.value.message


def test_only_a_few_images_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = folder_of(tmp_path, 60)
    monkeypatch.setattr(reading.cpu, "cores", lambda: 64)
    begun = 0
    lock = threading.Lock()
    crop = Dataset.crop

    def counted(self: Dataset, index: int, spec: ModelSpec) -> Crop:
        nonlocal begun
        with lock:
            begun += 1
        return crop(self, index, spec)

    monkeypatch.setattr(Dataset, "crop", counted)
    for taken, _ in enumerate(read_crops(dataset, SPEC)):
        assert begun <= taken + 2 * reading.WORKERS
    assert begun == 60


def test_a_reader_that_stops_early_leaves_no_thread(tmp_path: Path) -> None:
    crops = read_crops(folder_of(tmp_path, 30), SPEC)
    next(crops)
    crops.close()  # type: ignore[attr-defined]  # a generator
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


# ----- kinds of images


def save(file: Path, kind: str) -> None:
    colour = Image.fromarray(noise(40, 50, 3))
    if kind == "animated":
        colour.save(file, save_all=True, append_images=[Image.fromarray(noise(40, 50, 3, seed=1))], lossless=True)
    elif kind == "palette with transparency":
        colour.convert("P").save(file, transparency=bytes(range(256)))
    else:
        colour.convert(kind).save(file)


@pytest.mark.parametrize(
    ("kind", "suffix", "mode", "alpha", "animated"),
    [
        ("RGB", "jpg", "RGB", False, False),
        ("L", "png", "L", False, False),
        ("1", "png", "1", False, False),
        ("CMYK", "jpg", "CMYK", False, False),
        ("RGBA", "png", "RGBA", True, False),
        ("LA", "png", "LA", True, False),
        ("P", "png", "P", False, False),
        ("palette with transparency", "png", "P", True, False),
        ("animated", "webp", "RGB", False, True),
        ("animated", "tif", "RGB", False, True),
        ("animated", "png", "RGB", False, True),
    ],
)
def test_what_was_done_to_an_image_is_known(
    kind: str, suffix: str, mode: str, alpha: bool, animated: bool, tmp_path: Path
) -> None:
    save(tmp_path / f"x.{suffix}", "animated" if kind == "animated" else kind)
    ((_, crop),) = read_crops(open_dataset(tmp_path), SPEC)
    assert (crop.mode, crop.alpha, crop.animated) == (mode, alpha, animated)
    assert crop.pixels.shape == (32, 32, 3)
    assert crop.scale == 36 / 40


def crop_of(image: Image.Image, file: Path, **saving: Any) -> Crop:
    image.save(file, **saving)
    ((_, crop),) = read_crops(open_dataset(file), SPEC)
    return crop


def test_the_first_frame_is_taken(tmp_path: Path) -> None:
    first = noise(36, 36, 3)
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - first)], "lossless": True}
    crop = crop_of(Image.fromarray(first), tmp_path / "x.webp", **frames)
    assert np.array_equal(crop.pixels, first[2:34, 2:34])


def test_palette_transparency_is_dropped_and_the_colours_kept(tmp_path: Path) -> None:
    palette = Image.fromarray(noise(36, 36, 3)).convert("P")
    crop = crop_of(palette, tmp_path / "x.png", transparency=bytes(range(256)))
    colours = np.asarray(palette.getpalette(), np.uint8).reshape(-1, 3)
    assert np.array_equal(crop.pixels, colours[np.asarray(palette)][2:34, 2:34])


def test_cmyk_becomes_rgb_as_pillow_does_without_a_profile(tmp_path: Path) -> None:
    inks = noise(36, 36, 4)
    crop = crop_of(Image.fromarray(inks, "CMYK"), tmp_path / "x.tif")
    ink, black = inks[..., :3].astype(np.float64), inks[..., 3:].astype(np.float64)
    expected = (255 - ink) * (255 - black) / 255
    assert np.max(np.abs(crop.pixels - expected[2:34, 2:34])) <= 1  # rounded to a level, from integers


@pytest.mark.parametrize(("side", "scale"), [(18, 2.0), (36, 1.0), (72, 0.5)])
def test_the_scale_says_whether_an_image_was_enlarged(side: int, scale: float, tmp_path: Path) -> None:
    assert crop_of(Image.fromarray(noise(side, 2 * side, 3)), tmp_path / "x.png").scale == scale


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # what Pillow says of damaged tags before it goes on or gives up
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif"])
def test_damaged_files_never_end_in_an_error_of_another_kind(suffix: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(11)
    for index in range(40):
        file = tmp_path / f"{index}.{suffix}"
        Image.fromarray(noise(20, 20, 3)).save(file)
        content = bytearray(file.read_bytes())
        for place in generator.integers(0, len(content), 1 + index % 8):
            content[place] = generator.integers(256)
        file.write_bytes(content)
    told: list[Unreadable] = []
    read = 0
    try:
        for _ in read_crops(open_dataset(tmp_path), SPEC, told.append):
            read += 1
    except CalibrationError:
        assert told
    else:
        assert read == 40


def test_a_file_that_is_called_an_image_runs_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives EPS to Ghostscript, whatever the file is called."""
    ran = tmp_path / "ran"
    ghostscript = tmp_path / "bin/gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {ran}\n", encoding="utf-8")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    image = tmp_path / "x.png"
    image.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(OSError, match=r".*"), Image.open(image) as opened:
        opened.load()  # what is at stake: Pillow by itself
    assert ran.exists()
    ran.unlink()
    with pytest.raises(UsageError, match="cannot identify image file"):
        open_dataset(image).crop(0, SPEC)
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF", "MPO"])
def test_the_formats_of_photographs_are_read_whatever_the_file_is_called(kind: str, tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "x", format=kind)
    (tmp_path / "x").rename(tmp_path / "x.png")
    assert abs(int(open_dataset(tmp_path / "x.png").crop(0, SPEC).pixels.mean()) - 90) <= 2  # of a lossy format
