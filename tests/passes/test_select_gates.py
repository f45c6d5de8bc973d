"""Selects whose pool, gate or sum is written in another way: rewritten where that is the same function, and told where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from skdeploy.ir.constants import numbers
from skdeploy.ir.nodes import operand
from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.select import RewriteSelect
from tests.graphs.foreign import CHANNELS, Block, Classifier, export, in_pairs, live
from tests.graphs.gated_blocks import SAME, weights_too
from tests.graphs.networks import FLOAT32_ERROR, images, relative_error, run, torch_logits
from tests.networks import lsk

SHAPE = (12, 10)
# 45 blocks in a row, each of which hands on the rounding of those before it: 4e-6 alone, and 2.5e-5 was seen beside other work,
# where threads add in another order. The pass itself compares each block alone, before and after.
IN_A_ROW = 5 * FLOAT32_ERROR


@pytest.mark.parametrize(
    ("exporter", "opset"),
    [
        ("torchscript", 20),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in (("torchscript", 13), ("dynamo", 18))),
    ],
)
def test_every_gate_of_the_same_function_is_rewritten(exporter: str, opset: int, tmp_path: Path) -> None:
    network = live(Classifier(*SAME.values()))
    model = read_foreign(export(network, tmp_path / "m.onnx", exporter, opset, shape=(3, *SHAPE)))
    rewrite = RewriteSelect()
    rewrite(model)
    assert rewrite.report.near_misses == ()
    assert len(rewrite.report.found) == len(SAME)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert [node.op_type for node in model.graph].count("Softmax") == 3  # of more than two branches
    inputs = images(5, *SHAPE)
    assert relative_error(run(model, inputs)["logits"], torch_logits(network, inputs)) < IN_A_ROW
    again = RewriteSelect()
    again(model)
    assert (again.report.found, len(again.report.deployed), again.report.near_misses) == ((), len(SAME), ())


def maximum_too(_: Block, first: Tensor, second: Tensor, x: Tensor) -> Tensor:
    return (first + second).mean((2, 3), keepdim=True) + (first + second).amax((2, 3), keepdim=True)


def padded_pool(_: Block, first: Tensor, second: Tensor, x: Tensor) -> Tensor:
    """One window at the map's corner, not the whole map."""
    return nn.functional.avg_pool2d(first + second, SHAPE, stride=SHAPE, padding=(6, 5))[..., :1, :1]


def of_the_input_too(_: Block, first: Tensor, second: Tensor, x: Tensor) -> Tensor:
    return (first + second).mean((2, 3), keepdim=True) + x.mean((2, 3), keepdim=True)


def two_means(_: Block, first: Tensor, second: Tensor, x: Tensor) -> Tensor:
    """The gate reads the sum of the branches, and one of them again."""
    return torch.tanh((first + second).mean((2, 3), keepdim=True)) + first.mean((2, 3), keepdim=True)


def einsum_of_pixels(_: Block, first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
    maps = torch.stack([first, second], 1)
    return torch.einsum("bmchw,bmchw->bchw", maps, (maps * torch.stack([a, b], 1)).softmax(1))


def einsum_over_channels(_: Block, first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
    weights = torch.stack([a, b], 1)[..., 0, 0]
    return torch.einsum("bmchw,bmc->bhw", torch.stack([first, second], 1), weights)[:, None] + first


def with_epsilon(block: Block, statistics: Tensor) -> Tensor:
    """Weights that sum to a little less than one."""
    powers = in_pairs(block.logits(statistics).tanh().exp())
    return powers / (powers.sum(1, keepdim=True) + 1e-3)


def normalised(block: Block, statistics: Tensor) -> Tensor:
    """torch bounds the sum from below."""
    return nn.functional.normalize(in_pairs(block.logits(statistics).tanh().exp()), p=1, dim=1)


def no_pair(block: Block, statistics: Tensor) -> Tensor:
    first, second = block.logits(statistics).chunk(2, 1)
    return torch.stack([torch.sigmoid(first - second), torch.sigmoid(second + first)], 1)


def normalised_after(block: Block, x: Tensor) -> Tensor:
    """A normalisation of weighted maps adds a number that the weights do not have."""
    first, second = block.maps(x)
    weights = block.weigh((first + second).mean((2, 3), keepdim=True))
    return nn.functional.group_norm(first * weights[:, 0], 2) + second * weights[:, 1]


def activated_after(block: Block, x: Tensor) -> Tensor:
    """The statistics are those of maps before the activation, which are not selected from."""
    first, second = (path[:2](x) for path in (block.first, block.second))
    weights = block.weigh((first + second).mean((2, 3), keepdim=True))
    return torch.relu(first * weights[:, 0]) + torch.relu(second * weights[:, 1])


def negative_after(block: Block, x: Tensor) -> Tensor:
    """relu(-a x) is not -a relu(x)."""
    first, second = (path[:2](x) for path in (block.first, block.second))
    weights = block.weigh((torch.relu(first) + torch.relu(second)).mean((2, 3), keepdim=True))
    return torch.relu(first * -weights[:, 0]) + torch.relu(second * -weights[:, 1])


def row_weights(block: Block, x: Tensor) -> Tensor:
    """One weight for each row of the map, of one branch's mean each: rows would do, two means do not."""
    first, second = block.maps(x)
    weights = torch.stack([first.mean((1, 3)), second.mean((1, 3))], 1).softmax(1)[:, :, None, :, None]
    return first * weights[:, 0] + second * weights[:, 1]


def over_all_channels(block: Block, x: Tensor) -> Tensor:
    """One softmax over the channels of both branches together: the weights of a channel do not sum to one."""
    first, second = block.maps(x)
    logits = block.expand(block.reduce((first + second).mean((2, 3), keepdim=True)))
    weights = logits.softmax(1).chunk(2, 1)
    selected: Tensor = first * weights[0] + second * weights[1]
    return selected


OTHER: list[tuple[nn.Module, str]] = [
    (Block(fuse=lambda _, a, b, x: (a * 0.25 + b * 0.75).mean((2, 3), keepdim=True)),
     "weigh the branches by 0.25, 0.75"),
    (Block(fuse=maximum_too), "ReduceMax blocks.1/ReduceMax: blocks.1/ReduceMax is not a sum or a mean of the branches"),
    (Block(fuse=lambda _, a, b, x: (a + b).flatten(2)[..., ::2].mean(-1)[..., None, None]),
     "does not take the mean over height and width of its branches: Slice"),
    (Block(fuse=padded_pool), "an average pool that is not over the whole map"),
    (Block(fuse=of_the_input_too), "/Relu_4 is not a sum or a mean of the branches"),
    (Block(fuse=two_means), "its gate takes 2 means of its branches"),
    (Block(combine=einsum_of_pixels), "its weights go into Einsum: "),
    (Block(combine=einsum_over_channels), "its weights go into "),
    (Block(weigh=with_epsilon), "which is not their sum alone"),
    (Block(weigh=normalised), "its exponentials are divided by Clip "),
    (Block(forward=over_all_channels), "its softmax is over 16 numbers, the 8 channels of 2 branches together; a block has"),
    (Block(weigh=no_pair), "its weights are sigmoids, which do not sum to one"),
    (Block(forward=normalised_after), "its weights go into "),
    (Block(forward=activated_after), "so no mean is taken of what it gives"),
    (Block(forward=negative_after), "its weights go into Relu: "),
    (lsk.PlaceSelect(CHANNELS), "its weights are sigmoids that differ from pixel to pixel"),
    (Block(forward=row_weights), "its gate takes 2 means of its branches"),
]  # fmt: skip


def test_near_cases_of_another_function_are_left_alone_and_told_why(tmp_path: Path) -> None:
    network = live(Classifier(*(block for block, _ in OTHER)))
    model = read_foreign(export(network, tmp_path / "m.onnx", "torchscript", 17, shape=(3, *SHAPE)))
    before = ir.to_proto(model).SerializeToString()
    rewrite = RewriteSelect()
    rewrite(model)
    assert (rewrite.report.found, rewrite.report.deployed) == ((), ())
    told = {name.partition("/")[0]: why for name, why in rewrite.report.near_misses}
    for index, (_, reason) in enumerate(OTHER):
        assert reason in told.get(f"blocks.{index}", "")
    assert ir.to_proto(model).SerializeToString() == before


def test_a_sum_over_pixels_of_a_free_size_is_told(tmp_path: Path) -> None:
    """Another size has another factor: sum / size is a mean only where the size is known."""
    network = live(Classifier(SAME["sum over size"]))
    file = export(network, tmp_path / "m.onnx", "torchscript", 17, shape=(3, *SHAPE), free_size=True)
    rewrite = RewriteSelect()
    rewrite(read_foreign(file))
    ((where, why),) = rewrite.report.near_misses
    assert rewrite.report.found == ()
    assert where == "blocks.0"
    assert "it adds up maps whose size is not fixed" in why


def test_known_sizes_are_folded_where_only_the_batch_is_free(tmp_path: Path) -> None:
    network = live(Classifier(SAME["sum over size"]))
    file = export(network, tmp_path / "m.onnx", "torchscript", 17, shape=(3, *SHAPE))
    assert "Shape" in {node.op_type for node in onnx.load(file).graph.node}  # or there is nothing to fold
    divisor = operand(next(node for node in read_foreign(file).graph if node.op_type == "Div"), 1)
    assert np.array_equal(numbers(divisor), 120)


@pytest.mark.parametrize("exporter", ["torchscript", pytest.param("dynamo", marks=pytest.mark.slow)])
def test_what_else_is_read_stays_and_the_select_is_rewritten(exporter: str, tmp_path: Path) -> None:
    network = live(Classifier(Block(forward=weights_too)))
    model = read_foreign(export(network, tmp_path / "m.onnx", exporter, 18, shape=(3, *SHAPE)))
    rewrite = RewriteSelect()
    rewrite(model)
    assert (len(rewrite.report.found), rewrite.report.near_misses) == (1, ())
    operators = [node.op_type for node in model.graph]
    assert operators.count("Softmax") == 1  # whose weights are read
    inputs = images(5, *SHAPE)
    assert relative_error(run(model, inputs)["logits"], torch_logits(network, inputs)) < FLOAT32_ERROR
