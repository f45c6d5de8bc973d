"""What every test may use: a tiny network and a bundle of it, and the rule for which tests run on this machine."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from skdeploy.backends import backend
from skdeploy.core import cpu
from skdeploy.core.architecture import BranchSpec, SelectiveKernelSpec, SKNetSpec, StageSpec, StemSpec
from skdeploy.core.spec import Precision
from skdeploy.devices import cuda
from skdeploy.passes.trace_options import TraceOptions
from tests import file_modes, threads, tiny

if TYPE_CHECKING:
    from skdeploy.line.options import ExportOptions

TinySpec = Callable[..., SKNetSpec]
# TorchScript's exporter takes a tenth of the time of torch.export's, and names its nodes alike (tests/passes/test_trace.py):
# for every test that is not about the exporter. tests/zoo/test_families.py has the families by the default one.
FAST = TraceOptions(exporter="torchscript")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")
    parser.addoption("--refresh-goldens", action="store_true", help="rewrite the golden files that differ")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """``--numprocesses auto``: a worker for each core that a container leaves us."""
    return cpu.cores()


def pytest_configure() -> None:
    """A worker of pytest-xdist keeps to one core: torch and ONNX Runtime start a thread for each core that they may use, and
    the threads of several workers would wait for each other. A shell's background job ignores Ctrl-C, and so would all that a
    test starts and interrupts. Where Python is told to write no bytecode, each process that a test starts would compile
    all that it imports of skdeploy, 0.3 s.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keeps Python's garbage collector off what lives as long as the run, 670,000 objects of tests and modules. It went through
    them all again and again: a third of the time of collecting the tests, and 9 % of the time of running them.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000)  # Python's 700 is for programs that make fewer objects than a graph has
        gc.enable()


def pytest_unconfigure() -> None:
    """What is frozen is not collected when Python ends either, and onnxsim then reports leaks."""
    gc.unfreeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    no_gpu = pytest.mark.skip(reason="no CUDA device on this machine")
    not_asked = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "gpu" in item.keywords and not cuda.devices():
            item.add_marker(no_gpu)
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(not_asked)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """``gpu("tensorrt")``: not where that backend does not work, which a good GPU is not enough for."""
    for mark in item.iter_markers("gpu"):
        for name in mark.args:
            require_backend(name)


def require_backend(name: str) -> None:
    """Skips the test where the backend does not work here, with its own reason."""
    answer = backend(name).probe()
    if not answer.available:
        pytest.skip(f"{name}: {answer.reason}")


@pytest.fixture
def tiny_spec() -> TinySpec:
    """Builds the spec of a two-stage network of about 3,000 parameters, whose branch m has dilation m: K3, K5, K7."""

    def build(branches: int = 2, stride: int = 2, *, fuse: str = "attention", classes: int = 5) -> SKNetSpec:
        return SKNetSpec(
            stem=StemSpec(channels=8, kernel=3, stride=2, max_pool=False),
            stages=(
                StageSpec(units=1, middle_channels=8, out_channels=16, stride=1),
                StageSpec(units=2, middle_channels=16, out_channels=16, stride=stride),
            ),
            selective_kernel=SelectiveKernelSpec.model_validate(
                {
                    "branches": [BranchSpec(kernel=3, dilation=m, groups=4) for m in range(1, branches + 1)],
                    "reduction": 4,
                    "min_width": 4,
                    "fuse": fuse,
                }
            ),
            classes=classes,
        )

    return build


@pytest.fixture
def modes_bind(tmp_path: Path) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """``with modes_bind():`` runs its body as a user whom file modes bind, which they do not do to root."""
    with file_modes.binding():
        closed = file_modes.closed_to_its_user()
    if closed is not None:
        pytest.skip(f"only root's privilege opens {closed}: run the tests as its owner, or from a folder of root's")
    yield file_modes.binding
    for folder, inner, _ in os.walk(tmp_path):  # else an ordinary user's pytest could not remove them
        for name in inner:
            Path(folder, name).chmod(0o700)


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every registry has one more entry, made outside the package: tests/outside/."""
    from tests.outside.register import registered

    yield from registered(monkeypatch)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tiny networks, whose work is less than waking threads takes."""
    with threads.single():
        yield


@pytest.fixture(scope="session")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a tiny network, under a name of its own."""
    path = tmp_path_factory.mktemp("card") / "tiny.toml"
    shutil.copy(tiny.CARD, path)
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of noise: every tensor of the network is busy on them."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("given") / "images"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (4, 40, 44, 3), dtype=np.uint8)
    for index, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def weights(card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that fits the card."""
    from safetensors.torch import save_file

    from skdeploy.zoo.build import initialise
    from skdeploy.zoo.cards import read_card
    from skdeploy.zoo.sknet import SKNet

    network = SKNet(read_card(card).network, 3)
    initialise(network, 7)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def asked(card: Path, images: Path, weights: Path) -> ExportOptions:
    """What exports of the tiny network ask for."""
    from skdeploy.line.options import ExportOptions

    return ExportOptions(str(card), weights=str(weights), trace=FAST, images=images, target="onnx")


@pytest.fixture(scope="session")
def exported(asked: ExportOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified FP16 bundle. Do not change it: copy it."""
    from skdeploy.line.export import export

    folder = tmp_path_factory.mktemp("exported") / "bundle"
    export(replace(asked, precision=Precision.FP16, output=folder))
    return folder


@pytest.fixture(scope="session")
def array_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[type], Path]:
    """A folder of a network of ``tests/graphs/array_networks.py``: ``net.onnx``, ``card.toml``, ``samples`` (12 files), and
    ``bundle``, in FP16. Each is made once. Do not change it: copy it.
    """
    from skdeploy.line.export import export
    from skdeploy.line.options import ExportOptions
    from tests.graphs import array_networks

    made: dict[type, Path] = {}

    def folder_of(kind: type) -> Path:
        if kind not in made:
            folder = made[kind] = tmp_path_factory.mktemp(kind.__name__.lower())
            model = str(array_networks.export_onnx(kind, folder / "net.onnx"))
            card = str(array_networks.card(kind, folder / "card.toml", "onnx"))
            samples = array_networks.save_samples(kind, folder / "samples", 12)
            given = {"card": card, "images": samples, "target": "onnx", "output": folder / "bundle"}
            export(ExportOptions(model, Precision.FP16, **given))
        return made[kind]

    return folder_of
