"""The cost of grouped convolutions on tensor cores, and whether INT8 has kernels for them.

A tensor core multiplies tiles: here FP16 takes 8 outputs by 16 inputs (mma.m16n8k16), INT8 8 by 32 (mma.m16n8k32). PTX has
m16n8k8 for FP16 too, of which 4 and 8 channels would fill twice as much; that kernels use the larger is an assumption.
The shapes: PTX ISA 9.0, mma, as https://docs.rs/ptx-90-parser quotes it; that of INT8 from code on GitHub that runs it.
Implicit GEMM takes the channels of one filter tap as inputs, and a group sees its own channels alone: 4 channels of a group
fill a quarter of FP16's tile, an eighth of INT8's, and zeros the rest. Convolutions with one group put all taps in a row.
"""

from __future__ import annotations

from math import ceil, prod
from typing import Final

from skdeploy.core.spec import Precision
from skdeploy.ir.placement import GROUP_STEP
from skdeploy.planning.layers import Layer

TILE_OUT: Final = 8
# NVIDIA's Model Optimizer quantizes grouped convolutions below 16 channels a group only if OC % 8 == 0 and the kernel >= 3.
FEW_CHANNELS: Final = 16
FEW_OUT_STEP: Final = 8
FEW_KERNEL: Final = 3


def padded_macs(layer: Layer, precision: Precision, regroup: int | None = None) -> int:
    """Multiply-accumulates with the zeros that fill tiles. ``regroup``: how many groups are left, as ``merge_factor``.

    FP32 runs on the CUDA cores, which have no tiles, so only the zeros of merging count there.
    """
    factor = merge_factor(layer, regroup)
    macs = layer.macs * factor
    if precision.tile == 1 or not macs:
        return macs
    into, out_of = layer.into_group * factor, layer.out_of_group * factor
    # One group: the taps are in a row, so that only the end of the row is filled up.
    row = into * prod(layer.kernel) if layer.groups == factor else into
    return round(macs * _filled(row, precision.tile) * _filled(out_of, TILE_OUT))


def merge_factor(layer: Layer, regroup: int | None) -> int:
    """How many neighbouring groups ``export --regroup N`` makes one, ``regroup`` being N: the number of groups afterwards.

    1 where it leaves the layer: N does not divide the groups, there are no more than N, or they are depthwise
    (``passes/regroup.py``, rules 1 and 2).
    """
    if regroup is None or layer.groups <= regroup or layer.groups % regroup or layer.into_group == 1:
        return 1
    return layer.groups // regroup


def int8_reason(layer: Layer) -> str:
    """Why TensorRT has no INT8 kernel for a grouped convolution, or NVIDIA's tool would not quantize it; empty if neither."""
    if layer.groups == 1:
        return ""
    into, out_of = layer.into_group, layer.out_of_group
    if into % GROUP_STEP or out_of % GROUP_STEP:
        return f"{into} -> {out_of} channels a group: TensorRT's INT8 takes multiples of {GROUP_STEP}"
    outputs, kernel = out_of * layer.groups, min(layer.kernel, default=1)
    if into < FEW_CHANNELS and (outputs % FEW_OUT_STEP or kernel < FEW_KERNEL):
        return (
            f"{into} channels a group, {outputs} outputs, kernel {kernel}: below {FEW_CHANNELS} a group, NVIDIA's Model "
            f"Optimizer wants outputs in steps of {FEW_OUT_STEP} and a kernel of {FEW_KERNEL} or more"
        )
    return ""


def _filled(width: int, step: int) -> float:
    return ceil(width / step) * step / width
