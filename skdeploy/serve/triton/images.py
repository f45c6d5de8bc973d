"""The ensemble of ``skdeploy triton --image`` on a server: for encoded images it gives what the network gives for crops."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from skdeploy.backends.base import Array
from skdeploy.core.errors import IntegrityError
from skdeploy.core.spec import ModelSpec, TensorSpec
from skdeploy.images.decoding import crop_file
from skdeploy.images.feeds import feeds_of
from skdeploy.serve.triton.client import Client
from skdeploy.serve.triton.repository import ENCODED

# Pillow's format and mode, and the sides as multiples of the network's: resized and cut in both directions, grey to colour.
TRIED: Final = (("JPEG", "RGB", 1.5, 2.25), ("JPEG", "L", 2.0, 1.25), ("PNG", "RGB", 1.25, 1.25))
# A batch that the server makes with another client's request may sum in another order: float32 rounds at 2^-24, over some
# hundreds of terms. Pixels of another crop or another scale are off by a thousand times that.
TOLERANCE: Final = 1e-5


def check_images(
    client: Client,
    ensemble: str,
    network: tuple[str, str],
    spec: ModelSpec,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> str:
    """Send images to the ensemble, and their crops to the ``network``, a name and version; say in words what was found.

    Raises IntegrityError if the outputs differ, and as ``Client.infer``.
    """
    batch = inputs[0].shape[0]
    rows = batch if isinstance(batch, int) else 1
    same = 0
    for shown, content in encoded_images(spec):
        wanted = client.infer(*network, feeds_of(np.stack([_crop(content, spec)] * rows), spec, inputs), outputs)
        texts = np.array([content] * rows, dtype=object)
        found = client.infer(ensemble, "", {ENCODED: texts if isinstance(batch, int) else texts[:, None]}, outputs)
        same += _compare(found, wanted, f"{ensemble} on {client.address.text}", network[0], shown)
    bits = (
        "equal in every bit"
        if same == len(TRIED)
        else f"{same} of them equal in every bit, the others but for rounding"
    )
    return f"{ensemble}: {len(TRIED)} encoded images give what {network[0]} gives for their crops, {bits}"


def encoded_images(spec: ModelSpec) -> Iterator[tuple[str, bytes]]:
    """Images larger than the network's input, with what they are in words: edges and colours of a fixed seed."""
    from PIL import Image

    random = np.random.default_rng(0)
    for kind, mode, down, across in TRIED:
        size = (round(spec.input.width * across), round(spec.input.height * down))
        small = random.integers(0, 256, (9, 11, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode).save(file, kind)
        yield f"a {kind} of {size[1]} x {size[0]} pixels, {mode}", file.getvalue()


def _crop(content: bytes, spec: ModelSpec) -> Any:
    """The network's crop, by the reader that ``skdeploy predict`` has: uint8 (H, W, C)."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "image"
        file.write_bytes(content)
        return crop_file(file, spec).pixels


def _compare(found: Mapping[str, Array], wanted: Mapping[str, Array], ensemble: str, network: str, shown: str) -> bool:
    """Whether all bits are equal. Raises IntegrityError where the values are not."""
    equal = True
    for name, value in wanted.items():
        if np.array_equal(found[name], value):
            continue
        equal = False
        if found[name].shape != value.shape or not np.allclose(
            found[name], value, rtol=0, atol=TOLERANCE * float(np.abs(value).max())
        ):
            raise IntegrityError(
                f"{ensemble} gives another {name} for {shown} than {network} for its crop: the preprocessing on the server is "
                "not the card's",
                advice="write the models anew with `skdeploy triton --image`; the server's Pillow may be another, too",
            )
    return equal
