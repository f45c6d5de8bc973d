"""The proof that begins while the line goes on: no work twice, the same findings, and the line ends where it would have."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skdeploy.backends.base import Array, Session
from skdeploy.backends.torch import TorchSession
from skdeploy.backends.torch_process import TorchProcess
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import load_bundle
from skdeploy.core import cpu
from skdeploy.core.errors import EngineError, ParityError, PrecisionError
from skdeploy.core.other_process import OtherProcess
from skdeploy.core.progress import Silent
from skdeploy.core.spec import CalibrationMethod, Precision
from skdeploy.images.dataset import normalise, open_dataset
from skdeploy.line import ahead
from skdeploy.line.ahead import Ahead
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import run_line
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.line.stations.calibrate import Calibrate
from skdeploy.line.stations.headroom import Headroom
from skdeploy.line.stations.trace import Trace
from skdeploy.parity import prove
from skdeploy.parity.prove import Proof
from skdeploy.parity.report import ParityReport
from skdeploy.parity.suites import SYNTHETIC
from tests import threads, tiny
from tests.conftest import FAST

IMAGES = 11
GRAPHS = ("model.traced.onnx", "model.onnx", "model.fp16.onnx")
HEAVY = {"torch", "onnx", "onnx_ir", "onnxruntime", "onnxsim", "sympy"}
BATCHES_AGAIN = 1 + 2 + 5  # images of the last graph in other batches, each once
RUNS_AGAIN = 2 * prove.REPEATED  # two runs of one batch


@pytest.fixture
def options(tmp_path: Path) -> ExportOptions:
    np.savez(tmp_path / "images.npz", images=tiny.noise(IMAGES, 40, 44, 3))
    return ExportOptions(
        str(tiny.CARD),
        Precision.FP16,
        output=tmp_path / "bundle",
        images=tmp_path / "images.npz",
        trace=FAST,
        target="onnx",
    )


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cores", lambda: 2)


@dataclass
class Runs:
    """How often each of the images went through the torch network and through each graph, and on which threads."""

    images: Mapping[bytes, int]
    counts: dict[str, Counter[int]] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    threads: dict[str, set[str]] = field(default_factory=dict)

    def record(self, name: str, feeds: Mapping[str, Array]) -> None:
        self.threads.setdefault(name, set()).add(threading.current_thread().name)
        for image in next(iter(feeds.values())):
            number = self.images.get(image.tobytes())
            if number is None:
                self.others[name] += 1
            else:
                self.counts.setdefault(name, Counter())[number] += 1

    def once(self, name: str) -> bool:
        return self.counts[name] == dict.fromkeys(range(IMAGES), 1)


@pytest.fixture
def runs(options: ExportOptions, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Of all that the proof runs."""
    assert options.images is not None
    spec = tiny.spec()
    crops = open_dataset(options.images).load(spec)
    found = Runs({plane.tobytes(): number for number, plane in enumerate(normalise(crops, spec.preprocess))})
    torch_run, open_artifact = TorchSession._run, prove.open_artifact

    def run_torch(session: TorchSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
        found.record("torch", feeds)
        return torch_run(session, feeds)

    def opened(bundle: Any, artifact: Artifact, *where: Any) -> Session:
        session = open_artifact(bundle, artifact, *where)
        run = session._run

        def recorded(feeds: Mapping[str, Array]) -> dict[str, Array]:
            found.record(artifact.path, feeds)
            return run(feeds)

        monkeypatch.setattr(session, "_run", recorded)
        return session

    monkeypatch.setattr(TorchSession, "_run", run_torch)
    monkeypatch.setattr(prove, "open_artifact", opened)
    return found


@pytest.mark.parametrize("cores", [1, 2])
def test_an_image_runs_once_through_each_graph_and_the_reference_is_computed_once(
    options: ExportOptions, runs: Runs, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cores", lambda: cores)
    run_line(options).check()
    assert [name for name in ("torch", *GRAPHS[:2]) if not runs.once(name)] == []
    assert runs.others == {"torch": len(SYNTHETIC), GRAPHS[-1]: len(SYNTHETIC)}
    again = runs.counts[GRAPHS[-1]] - Counter(range(IMAGES))  # what shows that batches and runs agree
    assert again.total() == BATCHES_AGAIN + RUNS_AGAIN
    on_a_thread_of_its_own = {threading.main_thread().name} != set().union(*runs.threads.values())
    assert on_a_thread_of_its_own is (cores > 1)
    run_line(options)  # all up to date
    assert runs.once("torch")


def test_work_that_is_done_again_is_seen(
    options: ExportOptions, runs: Runs, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks of the test before can fail: here the station does not know what was proven ahead."""
    report = Ahead.report

    def forgetful(self: Ahead, artifacts: tuple[Artifact, ...], progress: Any) -> ParityReport:
        report(self, artifacts, progress)
        self._proof._found.clear()
        del self._proof._against
        return report(self, artifacts, progress)

    monkeypatch.setattr(Ahead, "report", forgetful)
    run_line(options)
    assert [name for name in ("torch", *GRAPHS[:2]) if not runs.once(name)] == ["torch", *GRAPHS[:2]]


def test_a_proof_ahead_finds_what_one_at_the_end_finds(
    options: ExportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte. Torch's last bits depend on the number of its threads. It has one beside the line on two cores, and one
    where one core is all there is: so one in both runs here.
    """
    reports = []
    with threads.single():
        for cores in (1, 2):
            monkeypatch.setattr(cpu, "cores", lambda cores=cores: cores)
            run_line(ExportOptions(**{**vars(options), "output": tmp_path / f"{cores}"}))
            reports.append((tmp_path / f"{cores}" / "parity.json").read_text())
    assert reports[0] == reports[1]


def with_output(change: Callable[[Array], Array]) -> Callable[..., dict[str, Array]]:
    torch_run = TorchSession._run

    def run(session: TorchSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: change(value) for name, value in torch_run(session, feeds).items()}

    return run


def test_a_reference_that_fails_ahead_ends_the_line_at_parity(
    options: ExportOptions, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchSession, "_run", with_output(lambda logits: logits * np.nan))
    with pytest.raises(ParityError, match="the reference, torch float32, training form, cannot be used"):
        run_line(options)
    left_in_order(options)
    assert {path.name for path in (options.output or Path()).iterdir()} >= {*GRAPHS, "headroom.json"}


def test_a_proof_ahead_can_fail(options: ExportOptions, two_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchSession, "_run", with_output(lambda logits: logits + 1))
    done = run_line(options)
    with pytest.raises(ParityError, match=r"model\.onnx on onnxruntime: max error"):
        done.check()


@pytest.mark.parametrize("ending", [EngineError("refused"), PrecisionError("short"), KeyboardInterrupt()])
def test_a_station_that_fails_ends_the_proof_beside_it(
    options: ExportOptions,
    runs: Runs,
    two_cores: None,
    ending: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The station's own error is raised, though the reference fails too; the proof stops before its next batch."""
    under_way = threading.Event()

    def run(session: TorchSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
        under_way.set()
        assert threading.current_thread() is not threading.main_thread()
        wait_until_stopped(session)
        return {"logits": np.full((len(feeds["input"]), 5), np.nan, np.float32)}

    stopped = threading.Event()

    def wait_until_stopped(_: object) -> None:
        stopped.wait(30)

    def make(*_: object) -> None:
        assert under_way.wait(30)
        stopped.set()
        raise ending

    monkeypatch.setattr(TorchSession, "_run", run)
    monkeypatch.setattr(Headroom, "make", make)
    with pytest.raises(type(ending)):
        run_line(options)
    left_in_order(options)
    assert not runs.counts  # no graph was run


def left_in_order(options: ExportOptions) -> None:
    """No thread goes on, nothing is half-written, and the bundle says that it is not whole."""
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("proof")]
    assert options.output is not None
    assert not list(options.output.rglob("*.partial"))
    assert load_bundle(options.output).manifest.verdict == "incomplete"


def test_the_line_leaves_a_core_to_what_proves_beside_it(
    options: ExportOptions, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of torch that wait by spinning take the time of the process that computes the reference."""
    seen: list[int] = []
    make = Trace.make

    def traced(self: Trace, *given: Any) -> Any:
        seen.append(torch.get_num_threads())
        return make(self, *given)

    monkeypatch.setattr(Trace, "make", traced)
    run_line(options)
    assert seen == [1]


def test_a_calibration_has_the_machine_for_itself(
    options: ExportOptions, runs: Runs, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All cores, and no run of a graph beside it; the proof of the graphs before it is not lost."""
    make, limits = Calibrate.make, list[int | None]()
    at_work: list[dict[str, int]] = []

    def counted() -> dict[str, int]:
        return {name: counts.total() for name, counts in runs.counts.items()}

    def calibrate(self: Calibrate, *given: Any) -> Any:
        limits.append(cpu.thread_limit())
        before = counted()
        facts = make(self, *given)
        at_work.append({name: count - before.get(name, 0) for name, count in counted().items()})
        return facts

    monkeypatch.setattr(Calibrate, "make", calibrate)
    monkeypatch.setattr(cpu, "affinity", lambda: 2)
    calibration = CalibrationOptions(images=options.images, method=CalibrationMethod.MINMAX)
    int8 = {Precision.INT8: Int8Options(calibration=calibration)}
    run_line(replace(options, precision=Precision.INT8, lowering=int8))
    assert limits == [None]  # a runtime's own choice: all
    assert set(at_work[0].values()) <= {0}
    assert runs.once("model.onnx")


def test_torch_has_its_threads_back(options: ExportOptions, two_cores: None) -> None:
    before = torch.get_num_threads()
    run_line(options)
    assert torch.get_num_threads() == before


def test_whoever_waits_is_told_what_the_proof_does(
    options: ExportOptions, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "TOLD_EVERY_S", 1e-3)
    told: list[str] = []
    heard, progress, examine = threading.Event(), Silent(), Proof.examine

    def update(detail: str) -> None:
        told.append(detail)
        if detail.startswith("model."):
            heard.set()

    def examined(proof: Proof, graph: Artifact, *rest: Any, **options: Any) -> Any:
        found = examine(proof, graph, *rest, **options)
        assert graph.path != GRAPHS[-1] or heard.wait(30)  # so that there is something to wait for
        return found

    monkeypatch.setattr(progress, "update", update)
    monkeypatch.setattr(Proof, "examine", examined)
    run_line(options, progress)
    assert any(detail.startswith(GRAPHS[-1]) for detail in told)


@pytest.fixture
def elsewhere(two_cores: None, monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that compute references, for which every network is large enough."""
    started: list[subprocess.Popen[bytes]] = []
    start = TorchProcess._start

    def recorded(process: TorchProcess) -> OtherProcess:
        opened = start(process)
        started.append(opened._process)
        return opened

    monkeypatch.setattr(ahead, "LARGE_BYTES", 0)
    monkeypatch.setattr(TorchProcess, "_start", recorded)
    return started


def test_a_reference_from_another_process_gives_the_same_findings(
    options: ExportOptions, runs: Runs, elsewhere: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """Torch sums in another order with another number of threads, which moves the last bits of float32: 24 of them, 144 dB."""
    run_line(options).check()
    assert [process.poll() is not None for process in elsewhere] == [True]
    assert not runs.threads.get("torch")  # nothing was run here
    there = ParityReport.model_validate_json((tmp_path / "bundle" / "parity.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "LARGE_BYTES", sys.maxsize)
        run_line(replace(options, output=tmp_path / "here")).check()
    here = ParityReport.model_validate_json((tmp_path / "here" / "parity.json").read_text())
    assert len(elsewhere) == 1
    assert there.reference == here.reference
    for one, other in zip(there.comparisons, here.comparisons, strict=True):
        assert one.metrics is not None
        assert other.metrics is not None
        assert one.metrics.max_rel_error == pytest.approx(other.metrics.max_rel_error, abs=1e-6)  # some 16 eps


def test_a_process_that_is_killed_ends_the_line_at_parity(
    options: ExportOptions, elsewhere: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchProcess, "_start", started_and_killed(TorchProcess._start))
    with pytest.raises(ParityError, match="the process that computes the reference ended with -9: it said nothing"):
        run_line(options)
    left_in_order(options)


def started_and_killed(start: Callable[[TorchProcess], OtherProcess]) -> Callable[[TorchProcess], OtherProcess]:
    def run(process: TorchProcess) -> OtherProcess:
        opened = start(process)
        opened._process.kill()
        opened._process.wait()
        return opened

    return run


def test_a_station_that_fails_leaves_no_process(
    options: ExportOptions, elsewhere: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise PrecisionError("short")

    monkeypatch.setattr(Headroom, "make", fails)
    with pytest.raises(PrecisionError, match="short"):
        run_line(options)
    assert [process.poll() is not None for process in elsewhere] == [True]
    left_in_order(options)


def test_a_line_that_is_up_to_date_imports_nothing_that_makes_or_runs_graphs(options: ExportOptions) -> None:
    """Its time would be theirs: sympy, which onnx-ir imports, takes half a second."""
    words = ["export", options.model, "--fp16", "--target", "onnx", "--exporter", "torchscript"]
    words += ["--images", str(options.images), "-o", str(options.output)]
    run_line(options)
    code = f"""
import sys
from skdeploy.__main__ import main
sys.argv[1:] = {words!r}
try:
    main()
finally:
    print(sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("up to date") == len({*GRAPHS, "weights.safetensors", "headroom.json", "parity.json"})
    assert done.stdout.splitlines()[-1] == "[]"
