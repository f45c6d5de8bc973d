"""``hf://`` from a server that means harm, or is none of a hub."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from skdeploy.checkpoints import hub, hub_answers
from skdeploy.checkpoints.hub import resolve_weights
from skdeploy.core.errors import WeightsError
from tests.checkpoints.hub_server import SAFE, Hub


def refused(url: str) -> WeightsError:
    with pytest.raises(WeightsError) as error:
        resolve_weights(url)
    assert error.value.advice
    return error.value


@pytest.mark.parametrize("honest", range(4))  # answers before it: a later one may say another thing than the first
@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("ETag", '"../../../../owned"'),
        ("ETag", 'W/"/tmp/owned"'),
        ("X_Linked_Etag", '"../owned"'),
        ("X_Repo_Commit", "../../owned"),
        ("X_Xet_Hash", "../../owned"),
    ],
)
def test_what_the_server_says_names_no_file_outside_the_cache(
    header: str, value: str, honest: int, server: Hub, tmp_path: Path
) -> None:
    server.hostile, server.honest = {header: value}, honest
    with suppress(WeightsError):
        resolve_weights("hf://ann/both")
    assert not list(tmp_path.rglob("*owned*"))


@pytest.mark.parametrize(
    ("endpoint", "warned"),
    [
        ("http://mirror.example", True),
        ("http://127.0.0.1.example", True),
        ("http://127.0.0.1:9", False),
        ("http://localhost", False),
        ("https://mirror.example", False),
        ("", False),
    ],
)
def test_plain_http_beyond_this_machine_is_warned_of(
    endpoint: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert bool(hub.endpoint_warnings("hf://ann/both")) == warned
    assert hub.endpoint_warnings("both.safetensors") == ()


def test_other_calls_of_the_library_are_left_alone(server: Hub) -> None:
    import huggingface_hub

    resolve_weights("hf://ann/both")
    before = huggingface_hub.get_session().event_hooks
    server.hostile = {"ETag": '"../owned"'}
    error = refused("hf://ann/both")
    assert "the server's ETag is not a digest: '../owned'" in error.message
    assert "HF_ENDPOINT" in error.advice
    assert huggingface_hub.get_session().event_hooks == before


@pytest.mark.parametrize(
    "listing",
    [b"{", b"null", b"<html>", b"[" * 100_000, b'["a"]', b'[{"type": "file", "path": 5, "size": "x", "oid": []}]'],
)
def test_a_list_that_no_hub_gives_is_refused(listing: bytes, server: Hub) -> None:
    server.listing = listing
    error = refused("hf://ann/named")
    assert f"{server.address} does not answer as the Hub does: " in error.message
    assert "HF_ENDPOINT" in error.advice


def test_long_names_of_a_list_are_cut(server: Hub) -> None:
    entry = {"type": "file", "path": f"{'a' * 10_000}.pth", "size": 1, "oid": "0" * 40}
    server.listing = json.dumps([entry] * 50).encode()
    assert len(refused("hf://ann/named").message) < 5_000


@pytest.mark.parametrize(
    "header",
    [{"X_Xet_Hash": "b" * 64, "Link": '<http://127.0.0.1:9>; rel="xet-auth"'}, {"Location": "http://[::bad/"}],
    ids=["xet", "location"],
)
def test_headers_that_the_library_cannot_take_are_refused(
    header: dict[str, str], server: Hub, no_waiting: None
) -> None:
    server.hostile, server.hostile_status = header, 302 if "Location" in header else 200
    refused("hf://ann/both")


@pytest.mark.parametrize("header", [{"Retry_After": "100000"}, {"RateLimit": '"api";r=0;t=100000'}], ids=list)
def test_no_server_is_waited_for_longer_than_the_hub(
    header: dict[str, str], server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits for {seconds} s"))
    server.hostile, server.hostile_status = header, 429
    assert "asks to wait 100,000 seconds" in refused("hf://ann/both").message


def test_a_body_ends_at_the_limit_whatever_the_server_has_announced(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.hostile = {"X_Linked_Size": "abc"}  # so the size before the download is not known
    assert resolve_weights("hf://ann/both").path.read_bytes() == SAFE
    monkeypatch.setattr(hub_answers, "MAX_FILE_BYTES", len(SAFE) - 1)
    server.repos["ann/both"]["main"] = ("c" * 40, {"model.safetensors": SAFE[::-1]})
    assert f"sends more than {len(SAFE) - 1:,} bytes" in refused("hf://ann/both").message
