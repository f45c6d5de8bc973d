"""``bench``: every artifact on its backends with each batch; two artifacts in turn, block by block."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from skdeploy.backends import backend
from skdeploy.bench.int8_verdict import int8_verdict, is_same_network
from skdeploy.bench.memory import require_memory
from skdeploy.bench.report import (
    BatchLatency,
    BenchReport,
    Comparison,
    LatencyReceipt,
    LatencyReport,
    Measured,
)
from skdeploy.bench.statistics import percentiles, ratio_of
from skdeploy.bench.subjects import Subject, check_free_sizes, check_output, choose, opened
from skdeploy.bench.timing import Timed, timed
from skdeploy.bundle.contents import MODEL
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.receipts import require_receipts, this_device, write_receipt
from skdeploy.bundle.runners import Runner, fp32_graph
from skdeploy.bundle.station_facts import TrainedInt8Facts
from skdeploy.core import cpu
from skdeploy.core.errors import UsageError
from skdeploy.core.progress import Progress
from skdeploy.devices.machine_state import MachineState, Watch

SECONDS: Final = 3.0
SECONDS_AT_MOST: Final = 3600.0


@dataclass(frozen=True)
class BenchOptions:
    """``backends`` None: all that work. ``against`` is another bundle, ``against_artifact`` a file of it or of this one.
    ``sizes``: those of free dimensions, by name; the card's usual ones for the rest.
    """

    backends: tuple[str, ...] | None = None
    batches: tuple[int, ...] = (1,)
    seconds: float = SECONDS
    artifact: str | None = None
    against: Path | None = None
    against_artifact: str | None = None
    threads: int | None = None
    cuda_graph: bool = True
    seed: int = 0
    receipt: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)


def bench(folder: Path, options: BenchOptions, progress: Progress) -> BenchReport:
    """Times what the options name, and writes receipts to the bundle of each artifact if they ask for it.

    An INT8 bundle with nothing to compare with is compared with its own FP32 graph, where both run. Raises UsageError,
    DependencyError for a backend that was named and does not work here, IntegrityError, EngineError.
    """
    _check(options)
    bundle = load_bundle(folder)
    bundle.check_complete()
    runners, notes = choose(bundle, options.artifact, options.backends)
    pairs = _pairs(runners, bundle, options, notes)
    if options.receipt:  # before minutes are spent on what could not be kept
        for folder in dict.fromkeys(runner.bundle.folder for pair in pairs for runner in pair):
            require_receipts(folder)
    measured, comparisons = list[Measured](), list[Comparison]()
    for runner in {id(runner.bundle): runner for pair in pairs for runner in pair}.values():
        check_free_sizes(options.sizes, runner.spec)
    for pair in pairs:
        started = time.perf_counter()
        progress.begin("bench")
        results, compared = _measure(pair, options, progress)
        progress.end("bench", time.perf_counter() - started, reused=False)
        measured += results
        comparisons += compared
    return BenchReport(measured=tuple(measured), comparisons=tuple(comparisons), notes=tuple(notes))


def _check(options: BenchOptions) -> None:
    if not 0 < options.seconds <= SECONDS_AT_MOST:
        raise UsageError(
            f"--seconds {options.seconds:g} must be above 0 and at most {SECONDS_AT_MOST:g}",
            advice="give a few seconds, such as 3",
        )
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"--threads {options.threads}: must be at least 1", advice="leave it out to use every core")
    cores = cpu.cores()
    if options.threads is not None and options.threads > cores:
        raise UsageError(
            f"--threads {options.threads}: this process may use {cores} cores, and more threads would wait for "
            "each other",
            advice=f"give {cores} or fewer",
        )


def _pairs(
    runners: Sequence[Runner], bundle: Bundle, options: BenchOptions, notes: list[str]
) -> list[tuple[Runner, ...]]:
    """Each runner alone, or with the one on the same backend that it is compared with."""
    if options.against is None and options.against_artifact is None:
        base = fp32_graph(bundle)
        if any(isinstance(artifact.facts, TrainedInt8Facts) for artifact in bundle.manifest.artifacts):
            base = None
            notes.append(f"{MODEL} has the file's own Q/DQ, so nothing here is FP32 to compare with; see --against")
        if base is None:
            return [(runner,) for runner in runners]
        return [
            (runner, Runner(bundle, base.artifact, runner.backend))
            if runner.precision.integer and runner.artifact.format == "onnx"
            else (runner,)
            for runner in runners
        ]
    other = bundle if options.against is None else load_bundle(options.against)
    other.check_complete()
    prefix = "" if options.against is None else f"{options.against}/"
    backends = tuple(dict.fromkeys(runner.backend for runner in runners))
    against, more = choose(other, options.against_artifact, options.backends and backends, prefix=prefix)
    notes += [note for note in more if note not in notes]
    pairs: list[tuple[Runner, ...]] = []
    for runner in runners:
        match = next((candidate for candidate in against if candidate.backend == runner.backend), None)
        if match is None:
            notes.append(f"{runner.shown}: nothing on that backend to compare it with")
            pairs.append((runner,))
        elif (match.bundle.path(match.artifact), match.backend) == (bundle.path(runner.artifact), runner.backend):
            raise UsageError(
                f"{runner.shown} would be compared with itself", advice="name another --against or --against-artifact"
            )
        else:
            pairs.append((runner, match))
    if all(len(pair) == 1 for pair in pairs):
        raise UsageError(
            f"{bundle.folder} and {other.folder} have nothing that runs on the same backend: {'; '.join(notes)}",
            advice="name two artifacts of one kind with --artifact and --against-artifact",
        )
    return pairs


def _measure(
    pair: tuple[Runner, ...], options: BenchOptions, progress: Progress
) -> tuple[list[Measured], list[Comparison]]:
    """One or two artifacts on one backend, with every batch."""
    runs: list[list[Timed]] = []
    with ExitStack() as stack:
        subjects = [
            stack.enter_context(opened(runner, options.threads, options.sizes, cuda_graph=options.cuda_graph))
            for runner in pair
        ]
        for batch in options.batches:  # all batches once before any is timed: what is refused, is refused at once
            for subject in subjects:
                feeds, runner = subject.feeds(batch, options.seed), subject.runner
                if runner.artifact.format == "onnx" and backend(runner.backend).DEVICE == "cpu":
                    path = runner.bundle.path(runner.artifact)
                    require_memory(path, runner.name, feeds, subject.spec, batch)
                check_output(subject, feeds, batch)
        watch = stack.enter_context(Watch(gpu=backend(pair[0].backend).DEVICE == "gpu"))
        for batch in options.batches:
            progress.update(f"{' and '.join(subject.runner.shown for subject in subjects)}, batch {batch}")
            with ExitStack() as bound:
                infers = [
                    bound.enter_context(subject.infer(subject.feeds(batch, options.seed))) for subject in subjects
                ]
                runs.append(timed(infers, options.seconds, watch.look))
        machine = watch.finish()
        compared = [
            _compared(subjects, both, batch)
            for batch, both in zip(options.batches, runs, strict=True)
            if len(subjects) > 1
        ]
        measured = [
            _measured(subject, [both[index] for both in runs], machine, options, () if index else tuple(compared))
            for index, subject in enumerate(subjects)
        ]
    return measured, compared


def _measured(
    subject: Subject,
    runs: Sequence[Timed],
    machine: MachineState,
    options: BenchOptions,
    compared: tuple[Comparison, ...],
) -> Measured:
    """The figures of one artifact; ``compared`` goes to its receipt."""
    runner = subject.runner
    latency = LatencyReport(
        precision=runner.precision,
        session=subject.opened.text,
        threads=subject.opened.threads,
        cuda_graph=subject.cuda_graph,
        seed=options.seed,
        seconds=options.seconds,
        batches=tuple(_batch(batch, run) for batch, run in zip(options.batches, runs, strict=True)),
        machine=machine,
        sample=runner.spec.sample_word,
        sizes=subject.spec.usual_sizes,
    )
    receipt = None
    if options.receipt:
        content = LatencyReceipt(**dict(latency), comparisons=compared)
        path = write_receipt(
            runner.bundle, runner.artifact, "latency", content, backend=runner.backend, verdict="recorded"
        )
        receipt = str(path)
    return Measured(
        bundle=str(runner.bundle.folder),
        artifact=runner.name,
        backend=runner.backend,
        device=this_device(runner.backend).name,
        latency=latency,
        receipt=receipt,
    )


def _batch(batch: int, run: Timed) -> BatchLatency:
    host = percentiles(run.host_ms)
    device = run.device_ms
    return BatchLatency(
        batch=batch,
        runs=len(run.host_ms),
        host_ms=host,
        device_ms=percentiles(device) if device is not None else None,
        images_per_second=1000 * batch / host.p50,
        warm_up_runs=run.warm_up.runs,
        warm_up_seconds=round(run.warm_up.seconds, 3),
        warm_up_stable=run.warm_up.stable,
    )


def _compared(subjects: Sequence[Subject], runs: Sequence[Timed], batch: int) -> Comparison:
    first, second = subjects
    ratio = ratio_of(runs[0].block_medians_ms, runs[1].block_medians_ms)
    return Comparison(
        artifact=first.runner.name,
        against=second.runner.name,
        backend=first.runner.backend,
        batch=batch,
        ratio=ratio,
        same_network=is_same_network(first, second),
        int8=int8_verdict(first, second, ratio, batch),
    )
