"""Answers of a hub's server, checked before huggingface_hub uses them: it takes names, sizes and waiting times as they come."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from skdeploy.checkpoints.read import MAX_FILE_BYTES
from skdeploy.core.errors import WeightsError

DIGEST: Final = re.compile("[0-9a-f]{32,64}")  # of Git's objects and of large files; a mirror may take MD5
NAMES_OF_FILES: Final = (
    "ETag",
    "X-Linked-Etag",
    "X-Repo-Commit",
    "X-Xet-Hash",
)  # headers, of which the cache makes paths
SHOWN_HEADER: Final = 80
MAX_WAIT_SECONDS: Final = 300  # the Hub counts requests in windows of five minutes
MAX_LIST_BYTES: Final = 64 << 20  # a list of files; a repository of 100,000 has 20 MB
ADVICE: Final = "do not use this server: HF_ENDPOINT names it; unset it for the Hugging Face Hub itself"


@contextmanager
def checked_answers(hub: ModuleType, url: str) -> Iterator[None]:
    """Inside the block, look at each answer of the server before the library does.

    Raises WeightsError from inside the library for a name in its cache that is not a digest (huggingface_hub 2.4 takes
    ``../../.bashrc`` too), for more bytes than a checkpoint may have, and for a wait over MAX_WAIT_SECONDS.
    """

    def check(response: Any) -> None:
        for header in NAMES_OF_FILES if response.request.method == "HEAD" else ():
            said = response.headers.get(header, "").removeprefix("W/").strip('"')
            if said and not DIGEST.fullmatch(said):
                raise WeightsError(
                    f"cannot fetch {url}: the server's {header} is not a digest: {said[:SHOWN_HEADER]!r}, and it would name "
                    "files in the cache",
                    advice=ADVICE,
                )
        if (wait := _seconds_to_wait(response.headers)) > MAX_WAIT_SECONDS:
            raise WeightsError(
                f"cannot fetch {url}: the server asks to wait {wait:,} seconds before the next request",
                advice="try again later, or give a file",
            )
        _bound(response, url)

    session = hub.get_session()
    hooks = session.event_hooks
    session.event_hooks = {**hooks, "response": [*hooks.get("response", ()), check]}
    try:
        yield
    finally:
        session.event_hooks = hooks


def _seconds_to_wait(headers: Any) -> int:
    """The longest of both headers that huggingface_hub obeys; 0 without them."""
    limits = re.findall(r";\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
    after = headers.get("Retry-After", "").strip()
    return max((int(each[:SHOWN_HEADER]) for each in (*limits, after) if each.isdecimal()), default=0)


def _bound(response: Any, url: str) -> None:
    """Let the body end with an error once it is too large, after decompression: a server may announce less, or nothing."""
    limit = MAX_LIST_BYTES if "/api/" in response.request.url.path else MAX_FILE_BYTES
    iter_bytes = response.iter_bytes

    def bounded(chunk_size: int | None = None) -> Iterator[bytes]:
        read = 0
        for chunk in iter_bytes(chunk_size):
            read += len(chunk)
            if read > limit:
                raise WeightsError(
                    f"cannot fetch {url}: the server sends more than {limit:,} bytes",
                    advice="name another file or server",
                )
            yield chunk

    response.iter_bytes = bounded
