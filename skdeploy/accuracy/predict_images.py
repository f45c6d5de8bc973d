"""``skdeploy predict`` of networks that give an image or a mask: one PNG for each input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from skdeploy.accuracy.predict_outputs import chosen_runner, output_places
from skdeploy.accuracy.streaming import open_all
from skdeploy.backends.base import Array
from skdeploy.backends.image_quality import channels_first, levels_of
from skdeploy.backends.logits import check_outputs, run_images
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.runners import Runner
from skdeploy.core.errors import ParityError, UsageError
from skdeploy.core.files import written_whole
from skdeploy.core.spec import Assumption, Frozen, ModelSpec
from skdeploy.images.dataset import printable
from skdeploy.images.feeds import RUN_BATCH
from skdeploy.images.named import Named, named_samples
from skdeploy.images.targets import output_channels, unresized
from skdeploy.parity.segmentation import class_map, threshold_of
from skdeploy.parity.tasks import IMAGE_TO_IMAGE, SEGMENTATION

if TYPE_CHECKING:
    from PIL import Image

MOST_CLASSES: Final = 255  # of an 8-bit mask, in which 255 marks what nobody judges


class WrittenImage(Frozen):
    """An input, and the file that was made of it."""

    image: str
    written: str


class WrittenImages(Frozen):
    """All inputs in the order given. ``size``: height and width that the network sees of each."""

    artifact: str
    backend: str
    written: Annotated[tuple[WrittenImage, ...], Field(strict=False)]
    size: tuple[int, int]
    assumptions: Annotated[tuple[Assumption, ...], Field(strict=False)] = ()


def write_images(
    folder: Path,
    images: Sequence[Path],
    output: Path,
    *,
    overwrite: bool = False,
    backend: str | None = None,
    backend_options: Sequence[str] = (),
) -> WrittenImages:
    """Run image files, or all in a folder, through the last graph or ``backend``, and write a PNG of each below ``output``.

    A restored image shows the middle of its input, which is not resized. A mask, a palette image of classes, shows the
    input resized and cut as the card says. Names are those of the inputs, with .png.

    Raises UsageError for a file that cannot be read or is smaller than the network, for outputs that no PNG holds, and for a
    file that exists already unless ``overwrite``; ParityError for outputs that are not finite.
    """
    bundle = load_bundle(folder)
    bundle.check_complete()
    spec = bundle.manifest.model
    _check_task(spec)
    given = named_samples(images, spec)
    places = output_places(given, output, ".png", overwrite=overwrite)
    runner = chosen_runner(bundle, backend, backend_options)
    done = []
    with open_all([runner], []) as (((_, session),), _):
        for start in range(0, len(given), RUN_BATCH):
            some = given[start : start + RUN_BATCH]
            crops = [_crop(each, spec) for each in some]
            outputs = run_images(session, np.stack(crops), spec)
            _check(runner, outputs, len(some), some[0].name)
            made = outputs[spec.given[0].name]
            for each, picture, place in zip(some, made, places[start : start + RUN_BATCH], strict=True):
                with written_whole(place) as partial:
                    _picture(picture, spec).save(partial, format="PNG")
                done.append(WrittenImage(image=each.name, written=printable(str(place))))
    return WrittenImages(
        artifact=runner.name,
        backend=runner.backend,
        written=tuple(done),
        size=(spec.input.height, spec.input.width),
        assumptions=bundle.manifest.assumptions,
    )


def pictures(bundle: Bundle, given: Sequence[Named], *, backend: str | None = None) -> tuple[NDArray[np.uint8], ...]:
    """Return as arrays the pictures that ``write_images`` writes. Raises as that one."""
    spec = bundle.manifest.model
    _check_task(spec)
    found: list[NDArray[np.uint8]] = []
    runner = chosen_runner(bundle, backend)
    with open_all([runner], []) as (((_, session),), _):
        for start in range(0, len(given), RUN_BATCH):
            some = given[start : start + RUN_BATCH]
            outputs = run_images(session, np.stack([_crop(each, spec) for each in some]), spec)
            _check(runner, outputs, len(some), some[0].name)
            found += [pixels_of_output(made, spec) for made in outputs[spec.given[0].name]]
    return tuple(found)


def gives_pictures(spec: ModelSpec) -> bool:
    """Whether what the network makes of an image is an image or a mask."""
    return spec.takes_images and spec.task in (IMAGE_TO_IMAGE, SEGMENTATION)


def _check_task(spec: ModelSpec) -> None:
    channels = output_channels(spec)
    logits = spec.given[0].is_floating
    if spec.task == SEGMENTATION and logits and channels is not None and channels > MOST_CLASSES:
        raise UsageError(
            f"{spec.name} has {channels} classes, more than an 8-bit mask can hold",
            advice="take the arrays: skdeploy.load_bundle(...).session()",
        )
    if spec.task == IMAGE_TO_IMAGE and channels not in (1, 3):
        raise UsageError(
            f"{spec.name} gives images of {channels} channels, but a PNG has 1 or 3",
            advice="take the arrays: skdeploy.load_bundle(...).session()",
        )


def _crop(each: Named, spec: ModelSpec) -> NDArray[np.uint8]:
    return each.read(spec if spec.task == SEGMENTATION else unresized(spec))


def _check(runner: Runner, outputs: dict[str, Array], count: int, first: str) -> None:
    problems = check_outputs(outputs, count, runner.spec)
    if problems:
        raise ParityError(
            f"{runner.shown} gives no usable image from {first} on: {problems[0]}",
            advice="check the artifact with `skdeploy verify`: the weights or the precision do not suit this image",
        )


def _picture(made: Array, spec: ModelSpec) -> Image.Image:
    """The image of one output."""
    from PIL import Image

    picture = Image.fromarray(pixels_of_output(made, spec))
    if spec.task == SEGMENTATION:
        picture.putpalette([level for number in range(256) for level in _colour(number)])
    return picture


def pixels_of_output(made: Array, spec: ModelSpec) -> NDArray[np.uint8]:
    """The image or mask that one output, without the batch, stands for: uint8 (H, W, 3), or (H, W) of grey or of classes.

    Raises UsageError for classes that 8 bits do not hold.
    """
    if spec.task == IMAGE_TO_IMAGE:
        images = channels_first(made[None], spec.given[0])
        levels = np.rint(levels_of(images, spec.preprocess.mean, spec.preprocess.std)[0]).astype(np.uint8)
        return np.ascontiguousarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))
    classes = class_map(made[None], threshold_of(made[None]))[0]
    if classes.min() < 0 or classes.max() > MOST_CLASSES:
        raise UsageError(
            f"{spec.name} gives the numbers {classes.min()} to {classes.max()}, but an 8-bit mask holds 0 to {MOST_CLASSES}",
            advice="take the arrays: skdeploy.load_bundle(...).session()",
        )
    return np.asarray(classes, np.uint8)


def _colour(number: int) -> tuple[int, int, int]:
    """The colour of a class: the palette of PASCAL VOC, whose bits are those of the number, three at a time."""
    red = green = blue = 0
    for bit in range(7, -1, -1):
        red, green, blue = red | (number & 1) << bit, green | (number >> 1 & 1) << bit, blue | (number >> 2 & 1) << bit
        number >>= 3
    return red, green, blue
