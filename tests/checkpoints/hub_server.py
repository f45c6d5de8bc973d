"""A server on this machine that answers a download as the Hugging Face Hub does."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import torch
from safetensors.torch import save

from tests.checkpoints.files import small_state, torch_bytes

MAIN, TAGGED = "a" * 40, "b" * 40
SAFE, OTHER, PICKLED = save(small_state()), save({"other": torch.ones(2)}), torch_bytes({"state_dict": small_state()})
Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """The part of the Hub's protocol that a download needs: files at a revision with their headers, and the list of files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, tuple[str, Files]]] = {
            "ann/both": {
                "main": (MAIN, {"model.safetensors": SAFE, "pytorch_model.bin": PICKLED, "config.json": b"{}"}),
                "v1.0": (TAGGED, {"model.safetensors": OTHER}),
                "refs/pr/1": (TAGGED, {"model.safetensors": OTHER}),
                "a/branch": (TAGGED, {"model.safetensors": OTHER}),
            },
            "ann/pickled.a1_in1k": {"main": (MAIN, {"pytorch_model.bin": PICKLED})},
            "ann/named": {"main": (MAIN, {"best.pth": PICKLED, "ema/best.safetensors": SAFE, "train.py": b"boom"})},
            "ann/none": {"main": (MAIN, {"README.md": b"#"})},
        }
        self.asked: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.status = 0  # any other is the answer to everything
        self.error_code = ""
        self.spoil = False  # send other bytes than listed
        self.claimed_bytes = 0
        self.hostile: dict[
            str, str
        ] = {}  # headers that are sent in place of the right ones, once the first ``honest`` are
        self.honest = 0
        self.hostile_status = 200  # with them
        self.listing: bytes | None = None  # in place of the list of files

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def send(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def answer(self) -> None:
        hub = self.server
        hub.asked.append((self.command, self.path))
        hub.headers.append(dict(self.headers))
        if hub.status:
            self.send(hub.status, X_Error_Code=hub.error_code)
            return
        path = self.path.split("?")[0]
        api = path.startswith("/api/models/")
        owner, name, *rest = path.removeprefix("/api/models/").strip("/").split("/")
        repo = hub.repos.get(f"{owner}/{name}")
        if repo is None:
            self.send(401 if api else 404, X_Error_Code="RepoNotFound")
            return
        revision = unquote(rest[1]) if len(rest) > 1 else "main"
        found = next((entry for name, entry in repo.items() if revision in (name, entry[0])), None)
        if found is None:
            self.send(404, X_Error_Code="RevisionNotFound")
            return
        commit, files = found
        if api:
            listed = [
                {"type": "file", "path": file, "size": len(body), "oid": "0" * 40} for file, body in files.items()
            ]
            body = json.dumps(listed).encode() if hub.listing is None else hub.listing
            self.send(200, body, Content_Type="application/json")
            return
        file = "/".join(rest[2:])
        if file not in files:
            self.send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        body = files[file]
        etag = hashlib.sha256(body).hexdigest()  # as of a large file
        sent = bytes(len(body)) if hub.spoil else body
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": commit}
        hub.honest -= 1
        hostile = hub.hostile if hub.honest < 0 else {}
        self.send(hub.hostile_status if hostile else 200, sent, hub.claimed_bytes or None, **headers | hostile)
