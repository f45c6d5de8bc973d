"""Torch in a process of its own: it answers as torch does here, and says why it ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from skdeploy.backends.torch import open_session
from skdeploy.backends.torch_process import TorchProcess, can_run
from skdeploy.checkpoints.importing import save_weights
from skdeploy.checkpoints.load import Network
from skdeploy.core.errors import ParityError
from skdeploy.images.dataset import normalise
from skdeploy.zoo import FAMILIES
from skdeploy.zoo.build import build, initialise
from tests import threads, tiny


@pytest.fixture
def network(tmp_path: Path) -> Network:
    made = build(tiny.spec())
    initialise(made, 0)
    save_weights(made.state_dict(), tmp_path / "weights.safetensors")
    return Network(tiny.spec(), tmp_path / "weights.safetensors")


@pytest.fixture
def process(network: Network) -> Iterator[TorchProcess]:
    opened = TorchProcess(network, threads=1)
    yield opened
    opened.close()


def test_it_computes_what_torch_computes_here(network: Network, process: TorchProcess) -> None:
    """To the bit: the same kernels with the same number of threads. One process serves several sessions and sizes of batch."""
    with threads.single(), open_session(network.module, network.spec) as here:
        for count in (3, 1):
            feeds = {"input": normalise(tiny.noise(count, 32, 32, 3, seed=count), network.spec.preprocess)}
            with process.open(network.spec) as there:
                np.testing.assert_array_equal(there.run(feeds)["logits"], here.run(feeds)["logits"])


def test_what_the_process_said_is_in_the_error(network: Network, process: TorchProcess) -> None:
    network.weights.write_bytes(b"no weights")
    with process.open(network.spec) as there, pytest.raises(ParityError, match=r"ended with 1: .*weights\.safetensors"):
        there.run({"input": np.zeros((1, 3, 32, 32), np.float32)})


def test_only_networks_of_this_package_can_be_built_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_run(tiny.spec())
    family = tiny.spec().network.family
    elsewhere = type(FAMILIES[family])("others.networks:Theirs", FAMILIES[family].in_words)
    monkeypatch.setitem(FAMILIES, family, elsewhere)
    assert not can_run(tiny.spec())
