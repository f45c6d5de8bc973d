"""Every family and variant goes down the line: rank 4 at most, any batch, and the same function in ONNX Runtime."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from skdeploy.core.architecture import NetworkSpec
from skdeploy.core.spec import InputSpec, ModelSpec
from skdeploy.passes.trace import trace
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.zoo.cards import load_card
from skdeploy.zoo.fold import fold
from tests.conftest import FAST
from tests.zoo.tiny_networks import VARIANTS, images, live

pytestmark = pytest.mark.usefixtures("one_thread")

every_variant = pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS.keys())


class HighestRank(TorchDispatchMode):
    """Records the highest rank of any tensor that any operator makes, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.rank = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # as torch has it
        del types
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.rank = max(self.rank, tensor.ndim)
        return out


@every_variant
@pytest.mark.parametrize("deploy", [False, True])
def test_no_tensor_has_a_rank_above_four(spec: NetworkSpec, deploy: bool) -> None:
    model = live(spec)
    with torch.no_grad(), HighestRank() as highest:
        (fold(model) if deploy else model)(images())
    assert highest.rank == 4


def test_the_rank_check_sees_torchs_own_shuffle_by_way_of_rank_five() -> None:
    with HighestRank() as highest:
        images().reshape(4, 3, 1, 19, 22).transpose(1, 2).reshape(4, 3, 19, 22)
    assert highest.rank == 5


def card(network: NetworkSpec) -> ModelSpec:
    """The interface of SKNet-50's card, around another network and a small input."""
    spec, _ = load_card("sknet50")
    return spec.model_copy(
        update={"name": "tiny", "network": network, "input": InputSpec(channels=3, height=19, width=22)}
    )


def difference(model: ir.Model, network: nn.Module, batch: int) -> float:
    """ONNX Runtime's logits against torch's in float64, relative to the largest."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    proto = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    x = torch.randn(batch, 3, 19, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
    (found,) = session.run(["logits"], {"input": x.float().numpy()})
    with torch.no_grad():
        expected = network(x.float().double()).numpy()
    assert found.shape == (batch, 5)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# float32 rounds at 6e-8; a dozen layers of at most a hundred terms make 1e-6 of it, and normalisations whose scales are as wild
# as these amplify that tenfold. A wrong coefficient shows in the first digits.
FLOAT32_ERROR = 5e-5


# The others differ from one of these in a constant that is there or not. Of each family one by the default exporter, which
# takes seconds: SKNet and ShuffleNet always; ResNet and the linear SKNet add no operator to theirs.
@pytest.mark.parametrize(
    ("variant", "options"),
    [
        *((variant, TraceOptions()) for variant in ("sknet of three branches", "shufflenet_v2")),
        *(
            pytest.param(variant, TraceOptions(), marks=pytest.mark.slow)
            for variant in ("resnet with a deep stem and average pools", "linear_sknet")
        ),
        *(
            (variant, FAST)
            for variant in (
                "sknet",
                "linear_sknet",
                "resnet with a deep stem and average pools",
                "sknet as a plain sum",
                "sknet with Caffe's pool",
                "sknet of three branches with a gate without norm",
                "resnet of basic blocks",
                "resnet with padded average pools",
                "shufflenet_v2 without activation",
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value.exporter,
)
def test_a_graph_for_any_batch_computes_the_same_in_onnx_runtime(variant: str, options: TraceOptions) -> None:
    spec = VARIANTS[variant]
    network = live(spec)
    graph = trace(copy.deepcopy(network).float(), card(spec), options)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    ranks = [len(value.shape) for node in graph.graph for value in node.outputs if value.shape is not None]
    assert max(ranks) == 4
    for batch in (1, 3):
        assert difference(graph, network, batch) < FLOAT32_ERROR


def test_the_comparison_with_onnx_runtime_sees_another_seed_of_one_layer() -> None:
    network = live(VARIANTS["shufflenet_v2"])
    graph = trace(copy.deepcopy(network).float(), card(VARIANTS["shufflenet_v2"]), FAST)
    with torch.no_grad():
        network.get_submodule("stages.1.1.expand.conv").weight += 1e-2
    assert difference(graph, network, 3) > FLOAT32_ERROR
