"""Servers that are not there, do not answer, or are something else; and tensors that are not the bundle's."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.errors import DependencyError, IntegrityError, UsageError
from skdeploy.serve.triton import client
from skdeploy.serve.triton.client import Address, Client, connect, read_address
from skdeploy.serve.triton.models import network, preprocess
from tests.triton_server import free_port

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


def _config(**changes: Any) -> dict[str, Any]:
    return {
        "input": [{"name": "input", "data_type": "TYPE_FP32", "dims": [3, 32, 32]} | changes.pop("input", {})],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": ["5"]} | changes.pop("output", {})],
    }


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
    assert client._require_tensors(address, "tiny", _config(), artifact, 32) == ("logits",)
    with pytest.raises(IntegrityError, match=said):
        client._require_tensors(address, "tiny", _config(**changes), artifact, 32)


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
