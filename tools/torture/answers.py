"""A server that gives written answers, as a Triton that serves a bundle would: for answers that no Triton gives."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from skdeploy.core.spec import TensorSpec

LIMIT: Final = 1 << 20


def write_answers(path: Path, folder: Path) -> None:
    """The answers, by the end of the address that they are for, of a server of the bundle in ``folder``."""
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.bundle.runners import last_graph
    from skdeploy.serve.triton.config import TYPES

    graph = last_graph(load_bundle(folder)).artifact

    def tensors(recorded: tuple[TensorSpec, ...]) -> list[dict[str, object]]:
        return [{"name": each.name, "data_type": TYPES[each.dtype], "dims": list(each.shape[1:])} for each in recorded]

    outputs = [
        {"name": each.name, "datatype": "FP32", "shape": [1, 5], "data": [0.5, -1.0, 2.0, 0.0, 3.0]}
        for each in graph.outputs
    ]
    found: dict[str, object] = {
        "/v2": {"name": "triton", "version": "2.51.0", "extensions": ["classification", "model_repository"]},
        "/index": [{"name": "tiny", "version": "1", "state": "READY"}],
        "/ready": {},
        "/tiny": {"name": "tiny", "versions": ["1"], "platform": "onnxruntime_onnx"},
        "/config": {
            "name": "tiny",
            "backend": "onnxruntime",
            "max_batch_size": 32,
            "input": tensors(graph.inputs),
            "output": tensors(graph.outputs),
            "parameters": {"sha256.1.model.onnx": {"string_value": graph.sha256}},
        },
        "/infer": {"model_name": "tiny", "model_version": "1", "outputs": outputs},
    }
    path.write_text(json.dumps({address: json.dumps(answer) for address, answer in found.items()}), encoding="utf-8")


@contextmanager
def answering(content: bytes) -> Iterator[str]:
    """The URL of a server on loopback that gives the answers of a file."""
    answers = {address: text.encode("latin-1") for address, text in json.loads(content).items()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # http.server's name
            body = next((text for address, text in answers.items() if self.path.endswith(address)), b"")
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:  # http.server's name
            self.rfile.read(min(int(self.headers["Content-Length"]), LIMIT))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
