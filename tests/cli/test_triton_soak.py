"""A short soak of the real Triton: ``benchmarks/triton_soak.py`` sends 100,000 requests, these are some 1,400."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import pytest

from skdeploy.serve.triton.repository import TritonOptions, write_repository
from tests.cli.test_triton_server import CLIENTS, _metadata, ask, encoded, fed, grpc, own, own_of_file
from tests.triton_server import START_S, Server, running

REQUESTS: Final = 400  # before memory is read, and twice after
# Allocators of the server and of two Python processes keep what they once had, and give it back: the same work moves by some
# MB, most often down. 20 kB a request would be 16 MB.
GROWTH_MB: Final = 16.0
NEAR: Final = 1e-5  # the server makes batches, which may sum in another order


def memory_mb(server: Server) -> float:
    """What the server and its Python processes have written to: pages of files come and go as the kernel likes."""
    process = psutil.Process(server.process.pid)
    of_all = [Path(f"/proc/{each.pid}/status") for each in (process, *process.children(recursive=True))]
    return sum(int(path.read_text().split("RssAnon:")[1].split()[0]) for path in of_all) / 1e3


@pytest.mark.slow  # a server of its own for some 10 s; test_triton_server.py has a reload under load
def test_nothing_is_lost_or_kept_while_a_version_comes_and_images_are_broken(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("tritonclient.grpc", reason="the extra triton is not installed", exc_type=ImportError)
    options = TritonOptions(tmp_path / "models", backend="python", image=True, version="next")
    write_repository(exported, options)
    pixels, feeds = fed(1)
    wanted, of_file = own(exported, pixels), own_of_file(exported, encoded(3, "JPEG"), tmp_path)

    def one(number: int) -> str:
        content = b"not an image" if number % 10 == 0 else encoded(3, "JPEG")
        given: dict[str, Any] = feeds if number % 2 else {"image": np.array([[content]], dtype=object)}
        try:
            found = ask(server, given, "tiny" if number % 2 else "tiny-images")
        except grpc.InferenceServerException as error:
            return "refused" if "cannot read the image" in str(error) else f"lost: {error}"
        return "right" if np.allclose(found, wanted if number % 2 else of_file, rtol=0, atol=NEAR) else "wrong"

    polled = ("--model-control-mode=poll", "--repository-poll-secs=1")
    with running(tmp_path / "models", tmp_path / "log", *polled) as server, ThreadPoolExecutor(CLIENTS) as pool:
        answers = pool.map(one, range(REQUESTS // 2))
        write_repository(exported, options)
        ended = list(answers)
        until = time.monotonic() + START_S
        while b'"2"' not in _metadata(server) and time.monotonic() < until:
            ended += pool.map(one, range(20))
        assert _metadata(server) == b'["2"]'
        ended += pool.map(one, range(REQUESTS))
        early, late = memory_mb(server), []
        for _ in range(2):
            ended += pool.map(one, range(REQUESTS))
            late.append(memory_mb(server))
    assert {each: ended.count(each) for each in set(ended)} == {
        "refused": len(ended) // 10,
        "right": len(ended) - len(ended) // 10,
    }
    assert min(late) - early < GROWTH_MB
