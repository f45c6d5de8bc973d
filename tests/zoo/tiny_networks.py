"""A tiny network of each family and variant that a card can describe, as after training."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from skdeploy.core.architecture import DescribedSpec, read_network
from skdeploy.zoo import FAMILIES
from skdeploy.zoo.selective_kernel import Gate

Table = dict[str, Any]

STEM: Final[Table] = {"channels": 8, "kernel": 3, "stride": 2, "max_pool": True}
DEEP: Final[Table] = STEM | {"deep": [4, 6]}
# The first stage keeps the size and changes the channels, the second one does both; each has a unit with an identity.
STAGES: Final[list[Table]] = [
    {"units": 2, "middle_channels": 8, "out_channels": 16, "stride": 1},
    {"units": 2, "middle_channels": 16, "out_channels": 24, "stride": 2, "gate_width": 5},
]
# In basic blocks a first unit may keep its shape: nothing changes it in the shortcut.
BASIC: Final[list[Table]] = [STAGES[0] | {"out_channels": 8}, STAGES[1] | {"out_channels": 16}]
K3: Final[Table] = {"kernel": 3, "groups": 4}
K5: Final[Table] = {"kernel": 3, "dilation": 2, "groups": 4}
K7: Final[Table] = {"kernel": 3, "dilation": 3, "groups": 4}
DENSE: Final[Table] = {"kernel": 3}
REAL5: Final[Table] = {"kernel": 5, "groups": 4}
LINEAR_GATE: Final[Table] = {"norm": False, "bias": True, "select_bias": True}


def network(family: str, *branches: Table, **keys: Any) -> DescribedSpec:
    """The spec of a trunk of ``family`` with these branches; ``keys`` of the operator go to the operator."""
    operator = {key: keys.pop(key) for key in ("fuse", "gate", "split_input") if key in keys}
    kernels = {"branches": branches, "reduction": 4, "min_width": 4} | operator
    trunk: Table = {} if family == "shufflenet_v2" else {"stem": STEM, "stages": STAGES}
    table = {"family": family, "classes": 5, "selective_kernel": kernels} | trunk | keys
    spec = read_network(table)
    assert isinstance(spec, DescribedSpec)  # read_network gives any spec, of other packages too
    return spec


def biased(*branches: Table) -> list[Table]:
    return [branch | {"bias": True} for branch in branches]


SHUFFLE: Final[Table] = {
    "stem_channels": 6,
    "head_channels": 12,
    "stages": [{"units": 2, "channels": 8}, {"units": 2, "channels": 12}],
}

VARIANTS: Final[dict[str, DescribedSpec]] = {
    "sknet": network("sknet", K3, K5),
    "sknet of three branches": network("sknet", K3, K5, K7),
    "sknet of one branch": network("sknet", K3),
    "sknet as a plain sum": network("sknet", K3, K5, fuse="sum"),
    "sknet with Caffe's pool": network("sknet", K3, K5, stem=STEM | {"ceil_mode": True}),
    "sknet with a split input": network("sknet", DENSE, DENSE | {"dilation": 2}, split_input=True),
    "sknet with biased branches": network("sknet", *biased(K3, K5)),
    "sknet with select biases": network("sknet", K3, K5, gate={"select_bias": True}),
    "sknet of three branches with select biases": network("sknet", K3, K5, K7, gate={"select_bias": True}),
    "sknet with a biased and normalised gate": network("sknet", K3, K5, gate={"bias": True}),
    "sknet with a gate without norm": network("sknet", K3, K5, gate=LINEAR_GATE),
    "sknet of three branches with a gate without norm": network("sknet", K3, K5, K7, gate=LINEAR_GATE),
    "resnet of bottlenecks": network("resnet", DENSE, K3, block="bottleneck"),
    "resnet of basic blocks": network(
        "resnet", DENSE, DENSE | {"dilation": 2}, block="basic", stages=BASIC, split_input=True
    ),
    "resnet with a deep stem and average pools": network(
        "resnet", DENSE, DENSE | {"dilation": 2}, block="bottleneck", stem=DEEP, shortcut="avg_pool", split_input=True
    ),
    "resnet with padded average pools": network(
        "resnet", DENSE, DENSE, block="bottleneck", stem=DEEP, shortcut="padded_avg_pool"
    ),
    "linear_sknet": network(
        "linear_sknet", *biased(K3, REAL5), gate=LINEAR_GATE, stem=STEM | {"max_pool": False, "stride": 1}
    ),
    "linear_sknet as a plain sum": network("linear_sknet", *biased(K3, REAL5), fuse="sum"),
    "shufflenet_v2": network("shufflenet_v2", DENSE, DENSE | {"dilation": 2}, **SHUFFLE),
    "shufflenet_v2 without activation": network("shufflenet_v2", DENSE | {"activation": False}, **SHUFFLE),
}


def build(spec: DescribedSpec) -> nn.Module:
    model: nn.Module = FAMILIES[spec.family].build(spec, 3)
    return model


def live(spec: DescribedSpec) -> nn.Module:
    """A network as after training: every batch normalisation scales, shifts and has the statistics of its own input.

    With arbitrary statistics, a whole gate may be dead: then its branches have equal weights and a test of it tests nothing.
    """
    torch.manual_seed(1)
    return trained(build(spec), images())


def trained(model: nn.Module, x: Tensor) -> nn.Module:
    """In float64 and eval mode, with batch normalisations that have the statistics of ``x`` and gates that decide."""
    generator = torch.Generator().manual_seed(1)
    for module in model.double().modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.5, 1.0, generator=generator)  # a third of the scales is negative
            nn.init.normal_(module.bias, 0.0, 0.5, generator=generator)
            module.momentum = 1.0  # the running statistics are those of the one batch
        elif isinstance(module, Gate):
            nn.init.normal_(module.fc2.weight, 0.0, 1.0, generator=generator)
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def images() -> Tensor:
    """(4, 3, 19, 22): of a size that no stride divides, so that edges count."""
    return torch.randn(4, 3, 19, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def relative_error(model: nn.Module, reference: nn.Module, x: Tensor | None = None) -> float:
    """The largest difference of the logits of ``x``, or else of ``images``, relative to the largest logit."""
    x = images() if x is None else x
    expected = reference(x)
    return float((model(x) - expected).abs().max() / expected.abs().max())
