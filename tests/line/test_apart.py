"""Weights and trace in a process of their own: the same files and errors, and no torch in the process that goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import pytest

from skdeploy.bundle.folder import load_bundle
from skdeploy.bundle.station_facts import TraceFacts, WeightsFacts
from skdeploy.checkpoints.load import Network
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core import cpu, errors
from skdeploy.core.architecture import StemSpec, TrunkSpec
from skdeploy.core.errors import ExportError, WeightsError
from skdeploy.core.options import NoOptions
from skdeploy.core.other_process import OtherProcess
from skdeploy.core.progress import Silent
from skdeploy.core.spec import ModelSpec
from skdeploy.line import apart as apart_module
from skdeploy.line.apart import Apart, _error, _told, apart_for
from skdeploy.line.export import run_line
from skdeploy.line.options import ExportOptions
from skdeploy.line.sources import find_source
from skdeploy.line.station import Inputs
from skdeploy.line.stations import trace as trace_module
from skdeploy.line.stations.trace import Trace
from skdeploy.line.stations.weights import Weights
from tests import tiny
from tests.conftest import FAST

RANDOM: Final = WeightsRecord(source="random", seed=0)
CHECKPOINT: Final = WeightsRecord(source="checkpoint", sha256="0" * 64)
# Every network is large, and there are two cores. Prints which of the modules are loaded at the end.
LARGE: Final = """
import sys
from skdeploy.core import cpu
from skdeploy.line import ahead, apart
ahead.LARGE_BYTES = apart.LARGE_BYTES = 0
cpu.cores = lambda: 2
from skdeploy.__main__ import main
sys.argv[0] = "skdeploy"
try:
    main()
finally:
    print(sorted({"torch", "onnxruntime"} & set(sys.modules)))
"""


@pytest.fixture
def apart() -> Iterator[Apart]:
    with Apart() as opened:
        yield opened


def skdeploy(*words: str | Path) -> subprocess.Popen[str]:
    code = [sys.executable, "-c", LARGE, *map(str, words)]
    return subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    np.savez(tmp_path / "images.npz", images=tiny.noise(3, 40, 44, 3))
    return tmp_path / "images.npz"


def test_the_files_are_the_same_and_the_process_that_goes_on_has_no_torch(images: Path, tmp_path: Path) -> None:
    """Calibrating from a card goes the same way, and without the proof."""
    there, here = tmp_path / "there", tmp_path / "here"
    words = ["--images", images, "--exporter", "torchscript", "--target", "onnx", "-o", there]
    export = skdeploy("export", tiny.CARD, *words)
    calibrated = skdeploy("calibrate", tiny.CARD, "--calib", images, "-o", tmp_path / "ranges.json")
    run_line(ExportOptions(str(tiny.CARD), output=here, images=images, trace=FAST, target="onnx")).check()
    for process in (export, calibrated):
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out.splitlines()[-1] == "['onnxruntime']"
    for mine, other in zip(load_bundle(here).manifest.artifacts, load_bundle(there).manifest.artifacts, strict=True):
        differ = {name for name in type(mine).model_fields if getattr(mine, name) != getattr(other, name)}
        # When each was made. Float32 sums of another number of threads are others in the last bits.
        assert differ <= {"provenance", *({"sha256", "size_bytes"} if mine.path == "parity.json" else ())}, mine.path
        assert mine.provenance.key == other.provenance.key


def test_an_error_there_is_the_error_here(apart: Apart, tmp_path: Path) -> None:
    broken, out = tmp_path / "broken.pth", tmp_path / "weights.safetensors"
    broken.write_bytes(b"no weights")
    with pytest.raises(WeightsError) as here:
        Weights(CHECKPOINT, broken).make(Inputs(tiny.spec(), {}, {}, Silent()), NoOptions(), out)
    with pytest.raises(WeightsError) as there:
        Weights(CHECKPOINT, broken, apart=apart).make(Inputs(tiny.spec(), {}, {}, Silent()), NoOptions(), out)
    assert (there.value.message, there.value.advice) == (here.value.message, here.value.advice)
    assert "Traceback" in there.value.__notes__[0]
    assert not out.exists()


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001 (it is what was given)
        return _error(_told(caught))


def test_an_error_keeps_its_kind() -> None:
    full = raised(OSError(28, "No space left on device", "weights.safetensors"))
    assert isinstance(full, OSError)
    assert (full.errno, full.filename) == (28, "weights.safetensors")  # the command line looks at the number
    assert type(raised(errors.CardError("what", advice="next"))) is errors.CardError
    slip = raised(ZeroDivisionError("a slip of ours"))
    assert isinstance(slip, RuntimeError)
    assert "ZeroDivisionError" in str(slip)
    assert "a slip of ours" in slip.__notes__[0]


def test_a_process_that_is_killed_is_an_error(apart: Apart, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    send = OtherProcess.send

    def killed(process: OtherProcess, data: bytes) -> None:
        send(process, data)
        process._process.kill()

    monkeypatch.setattr(OtherProcess, "send", killed)
    with pytest.raises(ExportError, match="the process that makes weights with torch ended with -9"):
        apart.make(WeightsFacts, "weights", tiny.spec(), tmp_path / "w", checkpoint=None, record={})


def test_the_process_gets_a_card_as_it_was_written(
    apart: Apart, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A checkpoint's layout decides what a card leaves open, such as Caffe's pool."""
    sent: list[bytes] = []

    def interrupted(_: OtherProcess, data: bytes) -> NoReturn:
        sent.append(data)
        raise KeyboardInterrupt

    monkeypatch.setattr(OtherProcess, "send", interrupted)
    spec = tiny.spec()
    with pytest.raises(KeyboardInterrupt):
        apart.make(WeightsFacts, "weights", spec, tmp_path / "w", checkpoint=None, record={})
    there = ModelSpec.model_validate_json(json.dumps(json.loads(sent[0])["spec"]))
    assert there == spec
    assert isinstance(spec.network, TrunkSpec)
    assert isinstance(there.network, TrunkSpec)
    assert there.network.stem.model_fields_set == spec.network.stem.model_fields_set != {*StemSpec.model_fields}


def test_an_interrupt_ends_the_process_before_the_file_is_removed(
    apart: Apart, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process that went on would write the file again."""
    started: list[OtherProcess] = []

    def interrupted(process: OtherProcess) -> NoReturn:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(OtherProcess, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apart.make(WeightsFacts, "weights", tiny.spec(), tmp_path / "w", checkpoint=None, record={})
    assert started[0]._process.returncode == -signal.SIGKILL


def is_at_work(process: str) -> bool:
    """Whether it has loaded torch, which it does when it is asked for a file."""
    return "libtorch_cpu" in Path(f"/proc/{process}/maps").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_both_and_leaves_no_file(number: signal.Signals, code: int, tmp_path: Path) -> None:
    export = skdeploy("export", tiny.CARD, "--target", "onnx", "-o", tmp_path / "bundle")
    children = Path(f"/proc/{export.pid}/task/{export.pid}/children")
    while not (found := [each for each in children.read_text().split() if is_at_work(each)]):
        assert export.poll() is None, export.communicate()
        time.sleep(0.02)
    export.send_signal(number)
    _, err = export.communicate()
    assert export.returncode == code, err
    assert "Traceback" not in err
    assert not [file for file in (tmp_path / "bundle").glob("*") if file.name.startswith("weights")]
    with pytest.raises(ProcessLookupError):
        os.kill(int(found[0]), 0)


def test_the_network_is_gone_when_its_graph_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There, where nobody else needs it: beside the graph's copies it would be the peak."""
    Weights(RANDOM, None).make(Inputs(tiny.spec(), {}, {}, Silent()), NoOptions(), tmp_path / "weights.safetensors")
    network, real = Network(tiny.spec(), tmp_path / "weights.safetensors"), trace_module.save_graph
    alive: list[bool] = []

    def save_graph(*given: Any, **options: Any) -> TraceFacts:
        alive.append("module" in network.__dict__)
        return real(*given, **options)

    monkeypatch.setattr(trace_module, "save_graph", save_graph)
    Trace(network).save(FAST, tmp_path / "model.onnx", last_use=True)
    Trace(network).save(FAST, tmp_path / "model.onnx")
    assert alive == [False, True]


def test_torch_that_is_loaded_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process would load it again. So would one beside the only core, where the proof loads torch here."""
    monkeypatch.setattr(apart_module, "LARGE_BYTES", 0)
    monkeypatch.setattr(cpu, "cores", lambda: 2)
    source = find_source(ExportOptions(str(tiny.CARD), target="onnx"))
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert apart_for(source) is None
    monkeypatch.delitem(sys.modules, "torch")
    assert apart_for(source) is not None
    monkeypatch.setattr(cpu, "cores", lambda: 1)
    assert apart_for(source) is None
    monkeypatch.setattr(cpu, "cores", lambda: 2)
    monkeypatch.setattr(apart_module, "LARGE_BYTES", 4 * 3_421 + 1)  # of the parameters that the card says
    assert apart_for(source) is None
