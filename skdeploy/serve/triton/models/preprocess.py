"""From encoded images to a network's input, as a model of Triton's Python backend.

`skdeploy triton --image` copies this file. It runs without skdeploy: the server's own Python needs numpy and Pillow. It does
what skdeploy's preprocessing does, to the last bit: skdeploy/images/decoding.py and dataset.py, and a test compares them. The
card's numbers are the parameter `preprocess` of config.pbtxt.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

STUB = Path("/proc/self/exe")  # the program that runs this file for Triton
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
DECODING = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, struct.error, zlib.error,
)  # fmt: skip
ORIENTATION = 0x0112


class TritonPythonModel:
    """One instance. A request with an image that cannot be used is answered with the reason; others are not touched."""

    def initialize(self, args: dict[str, str]) -> None:
        self._backend: Any = import_module("triton_python_backend_utils")
        try:
            import_module("PIL.Image")
        except ImportError as error:
            raise self._backend.TritonModelException(
                f"Pillow cannot be imported by the server's Python, {sys.prefix}: {error}. Install it there: "
                "pip install pillow"
            ) from error
        if problem := misread(np.__version__):
            raise self._backend.TritonModelException(problem)
        config = json.loads(args["model_config"])
        self._card = json.loads(config["parameters"]["preprocess"]["string_value"])
        self._input = config["input"][0]["name"]
        self._output = config["output"][0]["name"]

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        encoded = self._backend.get_input_tensor_by_name(request, self._input).as_numpy().reshape(-1)
        pixels = []
        for index, content in enumerate(encoded):
            try:
                pixels.append(crop(bytes(content), self._card))
            except UnusableError as error:
                which = f"image {index + 1} of {len(encoded)}: " if len(encoded) > 1 else ""
                return self._backend.InferenceResponse(error=self._backend.TritonError(f"{which}{error}"))
        if not pixels:
            return self._backend.InferenceResponse(error=self._backend.TritonError("the request holds no image"))
        made = network_input(np.stack(pixels), self._card)
        return self._backend.InferenceResponse([self._backend.Tensor(self._output, made)])


def misread(numpy: str, stub: Path = STUB) -> str:
    """Why arrays would be read wrong, without an error: a stub whose pybind11 is older than 2.12 takes numpy 2 for numpy 1.

    Later ones ask `numpy.lib.NumpyVersion` first; Triton 2.51 does not. Each model has this: Triton takes a file alone.
    """
    if int(numpy.partition(".")[0]) < 2 or b"NumpyVersion" in stub.read_bytes():
        return ""
    return (
        f"this Triton's Python backend reads arrays of numpy {numpy} wrong: install numpy 1 for the server's Python, "
        f'{sys.prefix}: pip install "numpy<2"'
    )


class UnusableError(Exception):
    """An image that cannot be used."""


def crop(content: bytes, card: dict[str, Any]) -> Any:
    """The network's crop of an encoded image: uint8 (H, W, C). Raises UnusableError."""
    from PIL import Image, ImageOps

    wanted = "L" if card["channels"] == 1 else "RGB"
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.load()
            if card["exif"] == "apply":
                ImageOps.exif_transpose(image, in_place=True)
            mode = image.mode
            image.info.pop("transparency", None)
            deep = mode.startswith(("I", "F"))
            converted = image if deep or mode == wanted else image.convert(wanted)
    except (*DECODING, Image.DecompressionBombError) as error:
        raise UnusableError(f"cannot read the image: {' '.join(str(error).split()) or type(error).__name__}") from error
    if deep:
        raise UnusableError(f"more than 8 bits per channel (mode {mode}); the file does not say how to scale them")
    height, width = card["height"], card["width"]
    if card["resize"] is None and (converted.height < height or converted.width < width):
        raise UnusableError(
            f"{converted.height} x {converted.width} pixels, but the network takes {height} x {width}, and nothing is enlarged"
        )
    shorter = min(converted.size)
    resize = card["resize"] or shorter
    if resize != shorter:
        size = (resize * converted.width // shorter, resize * converted.height // shorter)
        converted = converted.resize(size, Image.Resampling[card["interpolation"].upper()])
    left, top = round((converted.width - width) / 2), round((converted.height - height) / 2)
    cut = converted.crop((left, top, left + width, top + height))
    return np.asarray(cut, dtype=np.uint8).reshape(height, width, -1)


def network_input(pixels: Any, card: dict[str, Any]) -> Any:
    """Crops, uint8 (N, H, W, C), as the graph takes them: as they are, or float32 (N, C, H, W), (x / 255 - mean) / std."""
    if card["input"] == "uint8":
        return pixels
    mean, std = np.asarray(card["mean"]), np.asarray(card["std"])
    scale, offset = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
    return planes * scale[None, :, None, None] + offset[None, :, None, None]
