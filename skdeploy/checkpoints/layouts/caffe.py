"""The paper's own Caffe models, sknet50 and sknet101 (implus/SKNet). Keys are ``<layer>:<number of the blob>``.

A CuDNNBatchNorm has four blobs, scale, bias, mean and variance, with no scale factor. ``pool1`` is Caffe's: no padding, rounded
up. ``B_fc2`` is branch-major, and its first C rows belong to the branch without dilation.
"""

from __future__ import annotations

from typing import Final

from skdeploy.checkpoints.rules import Implied, Layout, Rules, S, U

COLOURS: Final = (
    "Caffe networks usually take BGR images with a mean subtracted, but the file does not say: check "
    "[preprocess] in the card, and the order of the colours"
)

_UNIT: Final = rf"conv{S}_{U}"
_INTO: Final = "stages.{s}.{u}"
_BLOBS: Final = ("weight", "bias", "running_mean", "running_var")


def _norm(layer: str, into: str) -> list[tuple[str, str]]:
    return [(rf"{layer}/bn:{index}", f"{into}.{blob}") for index, blob in enumerate(_BLOBS)]


def _conv_norm(layer: str, into: str) -> list[tuple[str, str]]:
    return [(rf"{layer}:0", f"{into}.conv.weight"), *_norm(layer, f"{into}.bn")]


_RULES: Final = Rules(
    *_conv_norm(r"conv1/7x7_s2", "stem"),
    *_conv_norm(rf"{_UNIT}/1x1_reduce", f"{_INTO}.reduce"),
    *_conv_norm(rf"{_UNIT}/3x3g32", f"{_INTO}.sk.branches.0"),
    *_conv_norm(rf"{_UNIT}/3x3g32d2", f"{_INTO}.sk.branches.1"),
    *_conv_norm(rf"{_UNIT}/1x1_increase", f"{_INTO}.expand"),
    *_conv_norm(r"conv(?P<s>\d+)_(?P<u>1)/1x1_proj", f"{_INTO}.shortcut"),
    (rf"{_UNIT}/B_fc1:0", f"{_INTO}.sk.gate.fc1.weight"),
    *_norm(rf"{_UNIT}/B_fc1", f"{_INTO}.sk.gate.bn"),
    (rf"{_UNIT}/B_fc2:0", f"{_INTO}.sk.gate.fc2.weight"),
    ("classifier:0", "classifier.weight"),
    ("classifier:1", "classifier.bias"),
    first_stage=2,
    first_unit=1,
)
LAYOUT: Final = Layout("official Caffe", _RULES, Implied("sknet", ceil_mode=True, note=COLOURS))
