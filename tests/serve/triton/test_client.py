"""Servers that are not there, do not answer, or are something else; and tensors that are not the bundle's."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.errors import DependencyError, IntegrityError, UsageError
from skdeploy.serve.triton import client
from skdeploy.serve.triton.answers import ServedConfig
from skdeploy.serve.triton.client import Address, Client, read_address
from skdeploy.serve.triton.models import network, preprocess
from skdeploy.serve.triton.proof import connect, require_tensors
from tests.ports import free_port
from tools.torture.answers import answering as answering_as
from tools.torture.answers import write_answers

pytest.importorskip("tritonclient.http", reason="the extra triton is not installed", exc_type=ImportError)
LIMIT_S = 1.0


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://triton", "triton:8000"),
        ("grpc://triton/", "triton:8001"),
        ("https://[::1]:1", "[::1]:1"),
    ],
)
def test_an_address_is_read(url: str, place: str) -> None:
    assert read_address(url).place == place


@pytest.mark.parametrize(
    "url",
    [
        "", "127.0.0.1:8000", "localhost", "http://", "http://:8000", "ftp://host:21", "http://host:port", "http://host:99999",
        "http://user:word@host", "http://host:8000/v2/models", "http://host?x=1", "http://host#x", "grpc://ho\nst", "http://[::1",
    ],
)  # fmt: skip
def test_nonsense_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_address(url)
    assert "grpc://127.0.0.1:8001" in refused.value.advice


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_no_server_is_said_with_its_address(scheme: str, exported: Path) -> None:
    url = f"{scheme}://127.0.0.1:{free_port()}"
    with pytest.raises(DependencyError, match=f"no Triton server answers at {url}"):
        connect(load_bundle(exported), url, None)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_host_that_does_not_exist_is_said(scheme: str, exported: Path) -> None:
    with pytest.raises(DependencyError, match="no Triton server answers"):
        connect(load_bundle(exported), f"{scheme}://triton.invalid:8000", None)  # RFC 2606: no such name ever resolves


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_an_address_that_does_not_answer_ends_in_time(
    scheme: str, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ASK_S", LIMIT_S)
    with socket.socket() as silent:  # takes connections, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begun = time.monotonic()
        with pytest.raises(DependencyError, match="no Triton server answers"):
            connect(load_bundle(exported), f"{scheme}://127.0.0.1:{silent.getsockname()[1]}", None)
        assert time.monotonic() - begun < 20 * LIMIT_S  # not the 120 s that a batch may take; the machine may be busy


@contextmanager
def answering(code: int, body: bytes) -> Iterator[str]:
    """A web server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server's name
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("code", "body"), [(200, b"<html>Welcome</html>"), (200, b'{"status": "ok"}'), (404, b"not found"), (500, b"")]
)
def test_another_web_server_is_not_taken_for_triton(code: int, body: bytes, exported: Path) -> None:
    with answering(code, body) as url, pytest.raises((DependencyError, IntegrityError)) as refused:
        connect(load_bundle(exported), url, None)
    assert url in refused.value.message


@contextmanager
def speaking(*parts: bytes) -> Iterator[str]:
    """A program on a port that says this, slowly, to whoever asks."""

    def say() -> None:
        with suppress(OSError):  # closed, at the end or by the client
            while True:
                taken, _ = listening.accept()
                with taken, suppress(OSError):
                    taken.recv(65_536)
                    for part in parts:
                        taken.sendall(part)
                        time.sleep(0.01)

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=say)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((), "connection closed|reset"),
        ((b"SSH-2.0-x\r\n",), "HTTPParseError|reset"),
        ((bytes(range(256)),), "HTTPParseError|reset"),
        ((HEAD + b"Content-Length: -5\r\n\r\n",), "HTTPParseError|reset"),
        ((HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",), "packs its answer as 'gzip'"),
        ((HEAD + b"\r\n" + b"a" * 50_000,), "answers with more than 4,000 bytes"),
        ((HEAD + b"Content-Length: 9999\r\n\r\n", *[b" "] * 9999), "its answer takes over"),
    ],
)
def test_what_speaks_no_http_or_without_end_is_refused(
    parts: tuple[bytes, ...], said: str, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ASK_S", LIMIT_S)
    monkeypatch.setattr(client, "MOST_BYTES", 4_000)
    with speaking(*parts) as url, pytest.raises((DependencyError, IntegrityError), match=said):
        connect(load_bundle(exported), url, None)


def _config(**changes: Any) -> ServedConfig:
    found = {
        "max_batch_size": 32,
        "input": [{"name": "input", "data_type": "TYPE_FP32", "dims": [3, 32, 32]} | changes.pop("input", {})],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": ["5"]} | changes.pop("output", {})],
    }
    return ServedConfig.model_validate(found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input": {"name": "image"}}, "has the inputs image, but"),
        ({"output": {"name": "scores"}}, "has the outputs scores, but"),
        ({"input": {"data_type": "TYPE_UINT8"}}, "input is TYPE_UINT8"),
        ({"output": {"dims": [6]}}, r"logits is TYPE_FP32 \[6\]"),
        ({"input": {"dims": [3, 32, 33]}}, r"input is TYPE_FP32 \[3, 32, 33\]"),
    ],
)
def test_tensors_of_another_name_type_or_shape_are_refused(exported: Path, changes: dict[str, Any], said: str) -> None:
    artifact: Artifact = load_bundle(exported).graphs[-1]
    address = Address("http", "127.0.0.1:8000")
    assert require_tensors(address, "tiny", _config(), artifact) == ("logits",)
    with pytest.raises(IntegrityError, match=said):
        require_tensors(address, "tiny", _config(**changes), artifact)


@pytest.mark.parametrize(
    ("address", "answer", "said"),
    [
        ("/v2", {"extensions": 3}, "extensions: "),
        ("/index", [{"name": 3}], "models.0.name: "),
        ("/index", "tiny", "gives an answer that is not of a Triton server"),
        ("/tiny", {"versions": []}, "versions: "),
        ("/tiny", {"versions": ["one"]}, "versions.0: "),
        ("/config", [], "gives an answer that is not of a Triton server"),
        ("/config", {"max_batch_size": "many"}, "max_batch_size: "),
        ("/config", {"input": [{"name": "input", "data_type": "TYPE_FP32", "dims": [10**400]}]}, "input.0.dims.0: "),
        ("/config", {"parameters": {"sha256.1.model.onnx": {"string_value": None}}}, "string_value: "),
        (
            "/infer",
            {"outputs": [{"name": "logits", "datatype": "FP32", "shape": [2, 5], "data": [0] * 10}]},
            r"\[2, 5\]",
        ),
        (
            "/infer",
            {"outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 6], "data": [0] * 6}]},
            r"\[1, 6\]",
        ),
        ("/infer", {"outputs": [{"name": "logits", "datatype": "INT64", "shape": [1, 5], "data": [0] * 5}]}, "int64"),
        ("/infer", {"outputs": [{"name": "scores"}]}, "with nothing, but logits"),
        ("/infer", {"outputs": [{"name": "logits", "datatype": "FP32"}]}, "another size than it says"),
        ("/infer", {"outputs": 3}, "another size than it says"),
    ],
)
def test_answers_that_no_triton_gives_are_refused(
    address: str, answer: Any, said: str, exported: Path, tmp_path: Path
) -> None:
    write_answers(tmp_path / "answers.json", exported)
    found = json.loads((tmp_path / "answers.json").read_text())
    feeds = {"input": np.zeros((1, 3, 32, 32), np.float32)}
    with answering_as(json.dumps(found).encode()) as url, connect(load_bundle(exported), url, "tiny").open() as session:
        assert session.run(feeds)["logits"].shape == (1, 5)
    changed = answer if not isinstance(answer, dict) else json.loads(found[address]) | answer
    with (
        answering_as(json.dumps(found | {address: json.dumps(changed)}).encode()) as url,
        pytest.raises(IntegrityError, match=said),
        connect(load_bundle(exported), url, "tiny").open() as session,
    ):
        session.run(feeds)


def test_without_the_extra_its_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tritonclient.grpc", None)
    with pytest.raises(DependencyError) as refused:
        Client(Address("grpc", "127.0.0.1:8001"))
    assert "[triton]" in refused.value.advice


@pytest.mark.parametrize("model", [network, preprocess])
def test_numpy_2_needs_a_stub_that_knows_it(model: Any, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"\x7fELF numpy.core.multiarray")
    new.write_bytes(b"\x7fELF numpy.core.multiarray NumpyVersion")
    assert model.misread("1.26.4", old) == ""
    assert model.misread("2.4.6", new) == ""
    assert "reads arrays of numpy 2.4.6 wrong" in model.misread("2.4.6", old)
