"""How latencies are measured here: sessions of ONNX Runtime take turns, one run each, so that all see the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort
import torch.nn

from skdeploy.core.spec import ModelSpec
from skdeploy.zoo.build import build, initialise
from skdeploy.zoo.cards import load_card

WARM_UP: Final = 5


def session(model: Path | bytes, threads: int = 2, *, spinning: bool = True) -> Any:
    """On the CPU. Threads that wait by spinning would take the time of other sessions that are open beside it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not spinning:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    given = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def in_turns(sessions: Mapping[str, Any], feeds: Mapping[str, Any], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every run but the first few, of each session on its feed."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for round_ in range(WARM_UP + rounds):
        for name, running in sessions.items():
            started = time.perf_counter()
            running.run(None, feeds[name])
            if round_ >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - started))
    return times


def ratio_of_medians(times: Mapping[str, list[float]], ours: str, theirs: str, at_most: float) -> dict[str, object]:
    """The medians, ours to theirs, and whether that is low enough."""
    median = {name: statistics.median(values) for name, values in times.items()}
    ratio = median[ours] / median[theirs]
    return {
        "latency_ms": {name: round(value, 2) for name, value in median.items()},
        "ratio": round(ratio, 3),
        "at_most": at_most,
        "reached": ratio <= at_most,
    }


def untrained(card: str) -> tuple[ModelSpec, torch.nn.Module]:
    """The network of a card with random weights, in its inference mode."""
    spec, _ = load_card(card)
    network = build(spec)
    initialise(network, 0)
    return spec, network.eval().requires_grad_(False)
