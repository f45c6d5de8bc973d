"""``hf://``: against a server that the test starts and that answers as the Hub does, and against its cache alone."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from skdeploy.checkpoints import hub
from skdeploy.checkpoints.hub import HubFile, is_hub_url, resolve_weights
from skdeploy.checkpoints.read import read_checkpoint
from skdeploy.core.errors import DependencyError, WeightsError
from skdeploy.core.packages import install_command
from tests.checkpoints.hub_server import MAIN, OTHER, PICKLED, SAFE, TAGGED, Hub


def refused(url: str) -> WeightsError:
    with pytest.raises(WeightsError) as error:
        resolve_weights(url)
    assert error.value.exit_code == 2
    assert error.value.advice
    return error.value


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ----- what is found


@pytest.mark.parametrize(
    ("url", "revision", "commit", "file", "content"),
    [
        ("both", None, MAIN, "model.safetensors", SAFE),
        ("both@v1.0", "v1.0", TAGGED, "model.safetensors", OTHER),
        ("both@refs/pr/1", "refs/pr/1", TAGGED, "model.safetensors", OTHER),
        ("both@a%2Fbranch", "a/branch", TAGGED, "model.safetensors", OTHER),
        (f"both@{TAGGED}", TAGGED, TAGGED, "model.safetensors", OTHER),
        ("both/pytorch_model.bin", None, MAIN, "pytorch_model.bin", PICKLED),
        ("pickled.a1_in1k", None, MAIN, "pytorch_model.bin", PICKLED),
        ("named/ema/best.safetensors", None, MAIN, "ema/best.safetensors", SAFE),
        ("named@main/best.pth", "main", MAIN, "best.pth", PICKLED),
    ],
)
def test_a_url_is_a_file_and_where_it_came_from(
    url: str, revision: str | None, commit: str, file: str, content: bytes, server: Hub, tmp_path: Path
) -> None:
    found = resolve_weights(f"hf://ann/{url}")
    (repo,) = [name for name in server.repos if f"ann/{url}".startswith(name)]
    assert found == HubFile(found.path, repo, revision, commit, file, sha256(content))
    assert found.path.read_bytes() == content
    assert found.path.is_relative_to(tmp_path / "hf/hub")
    assert read_checkpoint(found.path).tensors


def test_only_the_file_of_weights_is_fetched(server: Hub) -> None:
    resolve_weights("hf://ann/both")
    assert {path for method, path in server.asked if method == "GET"} == {"/ann/both/resolve/main/model.safetensors"}
    assert not [path for _, path in server.asked if not path.endswith("model.safetensors")]


def test_a_second_time_downloads_nothing(server: Hub) -> None:
    first = resolve_weights("hf://ann/both")
    server.asked.clear()
    assert resolve_weights("hf://ann/both") == first
    assert {method for method, _ in server.asked} == {"HEAD"}


def test_a_branch_that_moved_is_another_commit(server: Hub) -> None:
    first = resolve_weights("hf://ann/both")
    server.repos["ann/both"]["main"] = (TAGGED, {"model.safetensors": OTHER})
    second = resolve_weights("hf://ann/both")
    assert (first.commit, second.commit) == (MAIN, TAGGED)
    assert second.sha256 == sha256(OTHER)


def test_the_cache_variable_of_huggingface_hub_holds(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert resolve_weights("hf://ann/both").path.is_relative_to(tmp_path / "elsewhere")


# ----- offline


def test_offline_the_cache_is_enough_and_nobody_is_asked(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ("hf://ann/both", "hf://ann/both@v1.0", "hf://ann/pickled.a1_in1k", "hf://ann/named/ema/best.safetensors")
    online = [resolve_weights(url) for url in urls]
    server.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [resolve_weights(url) for url in urls] == online
    assert server.asked == []


def test_offline_without_the_file_says_so(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_weights("hf://ann/both")
    server.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for url, words in [
        ("hf://ann/none", "model.safetensors or pytorch_model.bin of ann/none"),
        ("hf://ann/both@v1.0", "ann/both at revision v1.0"),
        ("hf://ann/both/pytorch_model.bin", "pytorch_model.bin of ann/both"),
    ]:
        error = refused(url)
        assert words in error.message
        assert f"is not in the cache {tmp_path / 'hf/hub'}, and HF_HUB_OFFLINE is set" in error.message
        assert "unset HF_HUB_OFFLINE" in error.advice
    assert server.asked == []


def test_without_a_network_the_cache_is_used(server: Hub) -> None:
    online = [resolve_weights("hf://ann/both"), resolve_weights("hf://ann/pickled.a1_in1k")]
    server.shutdown()
    server.server_close()
    assert [resolve_weights("hf://ann/both"), resolve_weights("hf://ann/pickled.a1_in1k")] == online


def test_without_a_network_and_cache_the_endpoint_is_named_at_once(
    server: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.shutdown()
    server.server_close()
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits for {seconds} s"))
    error = refused("hf://ann/both")
    assert not caplog.records  # of retries
    assert f"{server.address} does not answer: " in error.message
    assert "refused" in error.message  # the connection
    assert "HF_ENDPOINT" in error.advice


# ----- what is not there


@pytest.mark.parametrize(
    ("url", "words", "advice"),
    [
        ("hf://ann/gone", "has no repository ann/gone, or it is private", "HF_TOKEN"),
        ("hf://ann/both@v9", "ann/both has no revision v9", "a branch, a tag or a commit"),
        (
            "hf://ann/both/x.pth",
            "no file x.pth; its weight files: model.safetensors, pytorch_model.bin",
            "hf://ann/both/",
        ),
        ("hf://ann/named", "its weight files: best.pth, ema/best.safetensors", "hf://ann/named/FILE"),
        ("hf://ann/none", "its weight files: none", "another repository"),
    ],
)
def test_what_the_hub_does_not_have_is_named(url: str, words: str, advice: str, server: Hub) -> None:
    error = refused(url)
    assert words in error.message
    assert advice in error.advice


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "GatedRepo", "ann/both is gated"),
        (401, "RepoNotFound", "no repository ann/both, or it is private"),
        (401, "", "HTTP status 401"),
        (403, "", "HTTP status 403"),
        (500, "", "HTTP status 500"),
    ],
)
def test_a_refusal_is_told_with_its_reason(status: int, code: str, words: str, server: Hub, no_waiting: None) -> None:
    server.status, server.error_code = status, code
    error = refused("hf://ann/both")
    assert words in error.message
    assert "hf_hub_download" not in str(error)  # nothing of the library's own advice to programmers


def test_a_server_that_is_down_is_asked_again_for_one_file_only(server: Hub, no_waiting: None) -> None:
    server.status = 500
    refused("hf://ann/both")
    assert {path for _, path in server.asked} == {"/ann/both/resolve/main/model.safetensors"}


def test_a_server_that_is_no_hub_is_told(server: Hub) -> None:
    server.status = 200
    assert "does not seem to be served by a Hugging Face Hub" in refused("hf://ann/both").message


def test_other_bytes_than_the_hub_lists_are_refused(server: Hub) -> None:
    server.spoil = True
    error = refused("hf://ann/both")
    assert f"sha256 is {sha256(bytes(len(SAFE)))}, listed is {sha256(SAFE)}" in error.message
    assert "delete" in error.advice


def test_a_cached_file_that_was_damaged_is_found(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_weights("hf://ann/both").path.resolve().write_bytes(b"x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "is not the file that ann/both lists" in refused("hf://ann/both").message


def test_a_file_over_the_limit_is_not_downloaded(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_FILE_BYTES", len(SAFE) - 1)
    assert f"has {len(SAFE):,} bytes" in refused("hf://ann/both").message
    assert {method for method, _ in server.asked} == {"HEAD"}


def test_a_download_that_breaks_off_is_told(server: Hub, no_waiting: None) -> None:
    server.claimed_bytes = len(SAFE) + 100
    assert "cannot fetch ann/both from" in refused("hf://ann/both").message


def test_a_cache_that_is_a_file_is_named(server: Hub, tmp_path: Path) -> None:
    (tmp_path / "hf").write_text("")
    assert (
        f"cannot write ann/both to the cache {tmp_path / 'hf/hub'}: Not a directory" in refused("hf://ann/both").message
    )


# ----- the address


@pytest.mark.parametrize(
    "url",
    [
        "hf://",
        "hf://name",
        "hf:///name",
        "hf://owner/",
        "hf://owner/name/",
        "hf://owner/name@",
        "hf://owner/name@/x",
        "hf://owner/na me",
        "hf://owner/na..me",
        "hf://owner/na--me",
        "hf://../name",
        "hf://owner/name?x",
        "hf://owner/name/../x",
        "hf://owner/name/a/../../x",
        "hf://owner/name//x",
        "hf://owner/name/a\\b",
        "hf://owner/name/a\x1b",
        "hf://owner/name@..%2F..%2Fx",
        "hf://owner/name@%2Fetc",
        "hf://owner/name@a@b",
        "hf://datasets/owner/name",
        "hf://datasets/name",
        "hf:/owner/name",
        "https://owner/name",
    ],
)
def test_an_address_of_another_form_is_refused_with_the_right_one(url: str, server: Hub) -> None:
    error = refused(url)
    assert ascii(url)[1:-1].replace("\\\\", "\\") in error.message.replace("\\\\", "\\")
    assert "hf://owner/name@revision" in error.advice
    assert server.asked == []


def test_what_is_an_address_of_the_hub() -> None:
    assert is_hub_url("hf://owner/name")
    assert is_hub_url("hf://")
    assert not is_hub_url("weights.pth")
    assert not is_hub_url("hf:/owner/name")  # what Path makes of it


def test_an_endpoint_that_is_no_address_is_named(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "ftp://x")
    error = refused("hf://ann/both")
    assert "HF_ENDPOINT is not an http address: 'ftp://x'" in error.message


# ----- the package


@pytest.mark.parametrize("missing", ["huggingface_hub", "huggingface_hub.errors"])
def test_without_the_package_the_extra_is_named(missing: str, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DependencyError) as error:
        resolve_weights("hf://ann/both")
    assert error.value.exit_code == 3
    assert install_command("hub") in error.value.advice


def test_a_fresh_process_shows_no_bars_and_tells_the_server_little(server: Hub) -> None:
    """The variables are set before the package reads them, which is when it is imported: hence a process of its own."""
    code = """
from skdeploy.checkpoints.hub import resolve_weights
print(resolve_weights("hf://ann/both").sha256)
from huggingface_hub.utils import are_progress_bars_disabled
assert are_progress_bars_disabled()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=Path.cwd())
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, sha256(SAFE), "")
    agents = {headers.get("user-agent", headers.get("User-Agent", "")) for headers in server.headers}
    assert len(agents) == 1
    (agent,) = agents
    assert agent.startswith("skdeploy/")
    assert "torch" not in agent
    assert not [path for _, path in server.asked if path.startswith("/api")]


def test_a_token_is_sent_if_the_user_gives_one_and_else_not(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_weights("hf://ann/both")
    sent = [{name.lower() for name in headers} for headers in server.headers]
    assert not any("authorization" in names for names in sent)
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    resolve_weights("hf://ann/named/best.pth")
    assert "Bearer hf_of_this_test" in [dict(headers).get("authorization") for headers in server.headers]


# ----- where there is no home, or a cache that takes no files


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom neither HOME nor the list of users gives a home: `docker run --user 12345`."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.mark.parametrize("cache", [None, "~/models"])
def test_without_a_home_it_says_what_to_set(
    cache: str | None, server: Hub, homeless: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if cache:
        monkeypatch.setenv("HF_HUB_CACHE", cache)
    error = refused("hf://ann/both")
    assert "no home folder" in error.message
    assert "HF_HOME" in error.advice
    assert list(tmp_path.iterdir()) == []  # not a folder called ~
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert resolve_weights("hf://ann/both").path.read_bytes() == SAFE


def test_a_cache_that_takes_no_files_says_what_to_set(
    server: Hub, tmp_path: Path, modes_bind: Callable[[], AbstractContextManager[None]]
) -> None:
    (tmp_path / "hf").mkdir(mode=0o555)
    with modes_bind():
        error = refused("hf://ann/both")
    assert f"cannot write ann/both to the cache {tmp_path / 'hf/hub'}: Permission denied" in error.message
    assert "HF_HOME" in error.advice
