"""timm's skresnet18, skresnet34, skresnet50, skresnet50d and skresnext50_32x4d (timm/models/sknet.py, Apache-2.0)."""

from __future__ import annotations

from typing import Final

from skdeploy.checkpoints.rules import PART, Implied, Layout, M, Names, Rules, S, U, named

_SK: Final = r"conv[12]"  # of a bottleneck the second convolution, of a basic block the first


def _rules(stem: Names, shortcut: Names) -> Rules:
    parts: Names = {
        "sk.branches.{m}.{p}": rf"{_SK}\.paths\.{M}\.{PART}",
        "sk.gate.fc1": rf"{_SK}\.attn\.fc_reduce",
        "sk.gate.bn": rf"{_SK}\.attn\.bn",
        "sk.gate.fc2": rf"{_SK}\.attn\.fc_select",
        "reduce.{p}": rf"conv1\.{PART}",
        "expand.{p}": rf"conv[23]\.{PART}",
    }
    return named({**stem, "classifier": "fc"}, rf"layer{S}\.{U}", {**shortcut, **parts}, first_stage=1)


_DEEP: Final = {
    "stem.0": (r"conv1\.0", r"conv1\.1"),
    "stem.1": (r"conv1\.3", r"conv1\.4"),
    "stem.2": (r"conv1\.6", "bn1"),
}
_POOLED: Final = {"shortcut.project": (r"downsample\.1", r"downsample\.2")}  # 0 is the pool
_PLAIN: Final = {"shortcut": (r"downsample\.0", r"downsample\.1")}
# Paths are split where a path sees half of the channels: no registered model has two groups.
_D: Final = Layout("timm", _rules(_DEEP, _POOLED), Implied("resnet", split_input=True, shortcut="avg_pool"))
LAYOUT: Final = Layout(
    "timm", _rules({"stem": ("conv1", "bn1")}, _PLAIN), Implied("resnet", split_input=True), {"conv1.6.weight": _D}
)
