"""TensorRT's INT8 calibration cache: how ranges reach the weakly typed builders of 8.x and 10.x, which DLA still needs.

The format, which NVIDIA describes in samples/sampleINT8/README.md of TensorRT's repository (releases 7 and 8)::

    TRT-<version>-<algorithm>
    <tensor>: <its scale, a float32, in hexadecimal, most significant digit first>

* The scale is ``threshold / 127``: the magnitude that becomes 127, over 127.
* The version is ``NV_TENSORRT_VERSION``: 8.5.3 is 8503, and from 10 on two digits each, so 10.3.0 is 100300. A builder that
  finds another version "incompatible" ignores the cache and calibrates; ``trtexec``, which has no images, then fails: 10.3.0
  does so with ``TRT-8600`` (NVIDIA/Deep-Learning-Accelerator-SW issue 26). How far apart versions may be is not published, so
  give the one that builds. TensorRT 11 has no calibrators and no caches.
* The cache goes with the **FP32 graph**, whose tensor names it has, and ``--int8``: a graph with Q/DQ pairs has its own scales.
* TensorRT wants a scale for every tensor of the network, the outputs of the layers included. For one that is absent it says
  "Missing scale and zero-point for tensor" and runs all layers that read or write that tensor in FP16 or FP32, whichever is
  allowed (NVIDIA/TensorRT issue 3131): correct, but not INT8. skdeploy's ranges have the tensors that its Q/DQ graph quantizes;
  ``spread_scales`` gives the others between them theirs.
* Names may hold spaces and colons: TensorRT itself writes ``(Unnamed Layer* 8) [Constant]_output`` and ``input_1:0``. A reader
  must therefore split at the last ``": "``; a name that holds that, or a line break, cannot be told from its scale.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from skdeploy.core.errors import CalibrationError, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

ALGORITHM: Final = "EntropyCalibration2"  # the calibrator that trtexec uses, and the only one that DLA supports
SMALLEST_NORMAL: Final = 2.0**-126  # float32's: GPUs and DLA flush what is smaller to zero

# Layers that change no magnitude, or whose summands are fused into the sum.
SAME_SCALE: Final = frozenset({"Relu", "MaxPool", "Reshape", "Flatten", "Identity", "Add"})

_HEADER: Final = re.compile(r"TRT-\d{4,6}-\w+")
_ENTRY: Final = re.compile(r"(?P<name>.+): (?P<scale>[0-9a-fA-F]{1,8})")  # greedy: splits at the last ": "


def write_legacy_cache(scales: Mapping[str, float], version: str) -> str:
    """The cache for a TensorRT ``version`` such as 8.5.3 or 10.3.0.30, of each tensor's scale, threshold / 127.

    Raises UsageError for a version that reads no cache, CalibrationError for a name or a scale that the format cannot hold.
    """
    lines = [f"TRT-{version_number(version)}-{ALGORITHM}"]
    if not scales:
        raise CalibrationError(
            "there are no ranges to write to a calibration cache", advice="calibrate first: skdeploy calibrate"
        )
    for name, scale in scales.items():
        if not name or name != name.strip() or not name.isascii() or not name.isprintable() or ": " in name:
            raise CalibrationError(
                f"a TensorRT calibration cache cannot hold the tensor name {name!r}",
                advice="rename it: use printable ASCII, with no space at its ends and no colon followed by a space",
            )
        lines.append(f"{name}: {_hexadecimal(name, scale)}")
    return "\n".join(lines) + "\n"


def read_legacy_cache(text: str) -> dict[str, float]:
    """Each tensor's scale, in the file's order; of any version and algorithm. Raises CalibrationError naming the line."""
    header, *lines = text.splitlines() or [""]
    if not _HEADER.fullmatch(header):
        raise CalibrationError(f"not a TensorRT calibration cache: its first line is {header[:80]!r}")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines, start=2):
        entry = _ENTRY.fullmatch(line)
        if entry is None:
            raise CalibrationError(
                f"line {number} of the calibration cache is not '<tensor>: <hexadecimal>': {line[:80]!r}"
            )
        name = entry["name"]
        (scale,) = struct.unpack(">f", bytes.fromhex(entry["scale"].zfill(8)))
        if name in scales:
            raise CalibrationError(f"line {number} of the calibration cache gives {name!r} a second scale")
        if not math.isfinite(scale) or scale < 0:
            raise CalibrationError(f"line {number} of the calibration cache gives {name!r} the scale {scale}")
        scales[name] = scale
    return scales


def version_number(version: str) -> int:
    """``NV_TENSORRT_VERSION`` of NVIDIA's headers, which is computed in another way from TensorRT 10 on."""
    parts = re.fullmatch(r"(\d+)\.(\d{1,2})\.(\d{1,2})(\.\d+)*", version)
    if parts is None:
        raise UsageError(f"{version!r} is not a TensorRT version", advice="give three numbers, such as 8.5.3 or 10.3.0")
    major, minor, patch = (int(part) for part in parts.group(1, 2, 3))
    if major == 8:
        return major * 1000 + minor * 100 + patch
    if major == 10:
        return major * 10_000 + minor * 100 + patch
    raise UsageError(
        f"skdeploy writes no calibration cache for TensorRT {version}: only 8.x and 10.x read one",
        advice="TensorRT 11 takes the INT8 graph itself: skdeploy export --int8",
    )


def _hexadecimal(name: str, scale: float) -> str:
    try:
        packed = struct.pack(">f", scale)
    except OverflowError:
        packed = struct.pack(">f", math.inf)
    (rounded,) = struct.unpack(">f", packed)
    if not math.isfinite(rounded) or rounded < SMALLEST_NORMAL:
        raise CalibrationError(
            f"the scale of the tensor {name!r} is {scale}, which is not a positive float32", advice="calibrate again"
        )
    return packed.hex()


def spread_scales(model: ir.Model, scales: Mapping[str, float]) -> dict[str, float]:
    """Scales for the tensors between the calibrated ones too, in the graph's order, since a layer without them is not INT8.

    What ReLU, a max pool or a reshape reads has the scale of what it makes, and so has each summand of an addition that has
    none of its own: TensorRT fuses these, and then only the last tensor exists.
    """
    found = dict(scales)
    for node in reversed(list(model.graph)):
        scale = found.get(node.outputs[0].name or "")
        if scale is None or node.op_type not in SAME_SCALE:
            continue
        for value in node.inputs:
            if value is not None and not value.is_initializer() and value.name:
                found.setdefault(value.name, scale)
    order = [value.name or "" for value in model.graph.inputs]
    order += [value.name or "" for node in model.graph for value in node.outputs]
    return {name: found[name] for name in order if name in found}
