"""100,000 requests to a real Triton that serves sknet-fashion: none lost, none wrong, flat memory, and the price of the way.

python benchmarks/triton_soak.py [--requests N] [--seconds N]     # writes results/triton_soak.json; needs the extra triton

The server is Triton's own, with its Python backend, from the wheel of nvidia-pytriton, on the CPU and loopback only
(tests/triton_server.py). Half of the clients speak HTTP, half gRPC. Every answer is compared with what the bundle gives in this
process. The overhead is a ratio against ONNX Runtime called directly, interleaved, medians.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import psutil

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe, skdeploy
from skdeploy.backends import onnxruntime
from skdeploy.bundle.folder import load_bundle
from skdeploy.images.feeds import feeds_of
from skdeploy.line.parity_images import parity_dataset
from tests.triton_server import Server, running

HERE: Final = Path(__file__).resolve().parent
CLIENTS: Final = 8
IMAGES: Final = 64
SAMPLE_S: Final = 2.0
TURNS: Final = 300  # of each way, for the overhead
# The dynamic batcher puts requests together, and ONNX Runtime may sum another batch in another order: float32 rounds at 2^-24,
# in some hundreds of terms. The answer of a wrong image is further off by five orders.
TOLERANCE: Final = 1e-5


def asker(server: Server, scheme: str) -> Callable[[Any], Any]:
    """A function that sends a batch and returns the logits."""
    module: Any = import_module(f"tritonclient.{scheme}")
    client = module.InferenceServerClient(getattr(server, scheme).partition("://")[2])

    def ask(array: Any) -> Any:
        tensor = module.InferInput("input", list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        return client.infer("sknet-fashion", [tensor]).as_numpy("logits")

    return ask


def memory_mb(server: Server) -> float:
    """Resident memory of the server and its Python processes."""
    process = psutil.Process(server.process.pid)
    return float(sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 1e6)


def soak(server: Server, inputs: Any, wanted: Any, requests: int, seconds: float) -> dict[str, object]:
    """Sends the requests from all clients at once, and counts what came back."""
    numbers, lock, end = count(), threading.Lock(), time.monotonic() + seconds
    tally = {"answered": 0, "equal_bits": 0, "wrong": 0}
    lost: list[str] = []
    largest = float(np.abs(wanted).max())

    def client(scheme: str) -> None:
        ask = asker(server, scheme)
        while (number := next(numbers)) < requests and time.monotonic() < end:
            place = number % IMAGES
            try:
                found = ask(inputs[place : place + 1])[0]
            except Exception as error:  # noqa: BLE001  # whatever loses a request is counted, and named in the result
                with lock:
                    lost.append(f"{scheme}: {error}")
                continue
            with lock:
                tally["answered"] += 1
                tally["equal_bits"] += bool(np.array_equal(found, wanted[place]))
                tally["wrong"] += not np.allclose(found, wanted[place], rtol=0, atol=TOLERANCE * largest)

    threads = [threading.Thread(target=client, args=(("http", "grpc")[index % 2],)) for index in range(CLIENTS)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    used = []
    while any(thread.is_alive() for thread in threads):
        used.append(memory_mb(server))
        time.sleep(SAMPLE_S)
    took = time.monotonic() - begun
    quarter = max(1, len(used) // 4)
    return {
        "asked": tally["answered"] + len(lost),
        **tally,
        "lost": len(lost),
        "first_lost": lost[:3],
        "clients": CLIENTS,
        "seconds": round(took, 1),
        "requests_per_second": round(tally["answered"] / took, 1),
        "memory_mb": {
            "second_quarter": round(median(used[quarter : 2 * quarter] or used), 1),
            "last_quarter": round(median(used[-quarter:]), 1),
            "largest": round(max(used), 1),
            "samples": len(used),
        },
    }


def overhead(server: Server, session: Any, inputs: Any) -> dict[str, object]:
    """Median times through the server and directly, and their ratio, for one image and for 32."""
    found: dict[str, object] = {}
    for scheme in ("http", "grpc"):
        ask = asker(server, scheme)
        for batch in (1, 32):
            direct: list[float] = []
            served: list[float] = []
            for _ in range(TURNS):
                direct.append(timed(lambda given: session.run({"input": given}), inputs[:batch]))
                served.append(timed(ask, inputs[:batch]))
            alone, through = (median(each[TURNS // 10 :]) for each in (direct, served))  # the first ones warm up
            found[f"{scheme}_batch_{batch}"] = {
                "direct_ms": round(alone, 3),
                "served_ms": round(through, 3),
                "ratio": round(through / alone, 2),
                "added_ms": round(through - alone, 3),
            }
    return found


def timed(run: Callable[[Any], Any], given: Any) -> float:
    """Milliseconds of one call."""
    begun = time.perf_counter()
    run(given)
    return (time.perf_counter() - begun) * 1e3


def measure(requests: int = 100_000, seconds: float = 480.0) -> dict[str, object]:
    """The whole run; ``seconds`` bounds the soak."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        skdeploy("export", "sknet-fashion", "--target", "onnx", "-o", folder / "bundle", "--quiet")
        skdeploy("triton", folder / "bundle", "-o", folder / "models", "--backend", "python", "--quiet")
        bundle = load_bundle(folder / "bundle")
        spec, graph = bundle.manifest.model, bundle.path(bundle.graphs[-1])
        pixels = parity_dataset(spec, None, IMAGES).load(spec)
        with (
            onnxruntime.open_session(graph) as session,
            running(folder / "models", folder / "log") as server,
        ):
            inputs = feeds_of(pixels, spec, session.inputs)["input"]
            alone = [session.run({"input": inputs[place : place + 1]})["logits"] for place in range(IMAGES)]
            costs = overhead(server, session, inputs)
            found = soak(server, inputs, np.concatenate(alone), requests, seconds)
            return {"network": spec.name, "server": "Triton 2.51.0, Python backend", "soak": found, "overhead": costs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=480.0, help="ends the soak even if not all are sent")
    asked = parser.parse_args()
    result = {"machine": describe(), "triton_soak": measure(asked.requests, asked.seconds)}
    path = HERE / "results" / "triton_soak.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["triton_soak"], indent=2))


if __name__ == "__main__":
    main()
