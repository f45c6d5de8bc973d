"""Weights from the Hugging Face Hub, or any server that speaks its protocol, by ``hf://owner/name[@revision][/path/in/repo]``.

One file is downloaded, nothing else: no configuration, no code. It is read like any other file afterwards. What the user has
set for huggingface_hub holds: HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN. The variables are looked at in each
call, because huggingface_hub itself looks at them only when it is imported.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

from skdeploy.checkpoints.hub_answers import checked_answers
from skdeploy.checkpoints.read import MAX_FILE_BYTES
from skdeploy.core.errors import SkdeployError, WeightsError
from skdeploy.core.files import UNWRITABLE, digest_file
from skdeploy.core.listing import some
from skdeploy.core.packages import require
from skdeploy.core.version import __version__

SCHEME: Final = "hf://"
FORM: Final = "hf://owner/name, hf://owner/name@revision or hf://owner/name/path/in/repo"
CANDIDATES: Final = ("model.safetensors", "pytorch_model.bin")  # what the Hub's own libraries save, the safe one first
WEIGHTS_SUFFIXES: Final = (".safetensors", ".bin", ".pth", ".pt", ".tar")
SHOWN: Final = 10

# A revision with a slash in it is written as %2F, but for the two kinds that the Hub itself has.
URL: Final = re.compile(
    r"hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/pr/\d+|refs/convert/[^/]+|[^/@]+))?(?:/(?P<file>.+))?"
)
REPO: Final = re.compile(r"\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?", re.ASCII)
PATH: Final = re.compile(r"[\w.+=,() -]+(?:/[\w.+=,() -]+)*")  # of a revision too: it becomes a path in the cache
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
SHOWN_REASON: Final = 300  # characters of what the library says of an answer
OTHER_KINDS: Final = ("datasets", "spaces", "kernels", "buckets", "models")


@dataclass(frozen=True)
class HubFile:
    """A downloaded file. ``revision``: as asked for, None for the default branch; ``commit``: what that was."""

    path: Path
    repo: str
    revision: str | None
    commit: str
    file: str
    sha256: str


@dataclass(frozen=True)
class _Wanted:
    """The file that a URL names, and its source. ``endpoint`` and ``cache`` None: huggingface_hub's own."""

    repo: str
    revision: str | None
    file: str | None
    endpoint: str | None
    cache: Path | None
    offline: bool

    def __str__(self) -> str:
        return f"{self.repo}{f' at revision {self.revision}' if self.revision else ''}"


def is_hub_url(text: str) -> bool:
    """Whether the weights are to come from the Hub. A Path will not do: it makes one slash of two."""
    return text.startswith(SCHEME)


def endpoint_warnings(given: str) -> tuple[str, ...]:
    """Say that weights come over plain http, if ``given`` is a URL of the Hub and HF_ENDPOINT is such a server."""
    endpoint = os.environ.get("HF_ENDPOINT", "")
    address = urlsplit(endpoint)
    if not is_hub_url(given) or address.scheme != "http" or address.hostname in LOOPBACK:
        return ()
    return (f"{given} comes from {endpoint} without encryption: whoever is on the way can change the weights",)


def resolve_weights(url: str) -> HubFile:
    """The file that ``url`` names, from the cache or downloaded into it; without a path, the first of CANDIDATES there is.

    Raises WeightsError for a URL of another form, no such repository, revision or file, no access, no network, a file that is
    too large or not the one that the Hub lists; DependencyError without huggingface_hub.
    """
    wanted = _parsed(url)
    hub = _library()
    try:
        with checked_answers(hub, url):
            file = _available(hub, wanted, (wanted.file,) if wanted.file else CANDIDATES)
            path = Path(hub.hf_hub_download(wanted.repo, file, **_options(wanted)))
    except SkdeployError:
        raise
    except (
        Exception
    ) as error:  # of an answer that is none of a hub, the library makes any: KeyError, TypeError, ValueError
        raise _explained(hub, wanted, error) from error
    commit = path.parts[-1 - len(file.split("/"))]  # <cache>/models--owner--name/snapshots/<commit>/<file>
    return HubFile(path, wanted.repo, wanted.revision, commit, file, _checked_digest(path, wanted))


def _parsed(url: str) -> _Wanted:
    match = URL.fullmatch(url)
    repo, revision, file = match.group("repo", "revision", "file") if match else ("", None, None)
    revision = unquote(revision) if revision else None
    if not REPO.fullmatch(repo) or "--" in repo or ".." in repo:
        raise WeightsError(f"{url!r} does not name a repository of the Hub", advice=f"write {FORM}")
    if repo.split("/")[0] in OTHER_KINDS:
        raise WeightsError(f"{url!r} is not a model repository", advice=f"write {FORM}")
    for part, name in ((revision, "revision"), (file, "file")):
        if part is not None and (not PATH.fullmatch(part) or {".", ".."} & set(part.split("/"))):
            raise WeightsError(f"{url!r} does not name a valid {name}: {part!r}", advice=f"write {FORM}")
    endpoint = os.environ.get("HF_ENDPOINT") or None
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise WeightsError(
            f"cannot fetch {url}: HF_ENDPOINT is not an http address: {endpoint!r}",
            advice="correct or unset HF_ENDPOINT",
        )
    return _Wanted(
        repo,
        revision,
        file,
        endpoint,
        _cache(url),
        os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),  # as huggingface_hub reads it
    )


def _cache(url: str) -> Path | None:
    """The folder that the user has set, or None for huggingface_hub's own, which is in the home. Raises WeightsError where
    there is no home: the library would make a folder named ``~``.
    """
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if not cache and os.environ.get("HF_HOME"):
        cache = f"{os.environ['HF_HOME']}/hub"
    try:
        if cache:
            return Path(os.path.expandvars(cache)).expanduser()
        if not os.environ.get("XDG_CACHE_HOME"):
            Path.home()
    except RuntimeError as error:
        raise WeightsError(
            f"cannot fetch {url}: this user has no home folder for the cache",
            advice="set HF_HOME to a writable folder, or give a file with --weights",
        ) from error
    return None


def _library() -> ModuleType:
    """huggingface_hub, without its progress bars and its telemetry, unless the user has set otherwise."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    require("huggingface_hub.errors", extra="hub")
    return require("huggingface_hub", extra="hub")


def _options(wanted: _Wanted) -> dict[str, Any]:
    return {
        "revision": wanted.revision,
        "endpoint": wanted.endpoint,
        "cache_dir": wanted.cache,
        "local_files_only": wanted.offline,
        "library_name": "skdeploy",
        "library_version": __version__,
    }


def _available(hub: ModuleType, wanted: _Wanted, files: tuple[str, ...]) -> str:
    """The first of ``files`` that is in the repository, or in the cache if the Hub is out of reach; nothing is downloaded."""
    options = _options(wanted)
    unreachable: Exception | None = None
    no_answer = None if wanted.offline else _no_answer(hub, wanted, files[0])
    options["local_files_only"] |= no_answer is not None
    for file in files:
        try:
            found = hub.hf_hub_download(wanted.repo, file, dry_run=True, **options)
        except (
            hub.errors.LocalEntryNotFoundError
        ) as error:  # a kind of EntryNotFoundError: no network, not in the cache
            unreachable = unreachable or error
            options["local_files_only"] = True
            continue
        except hub.errors.EntryNotFoundError:
            continue
        if found.file_size is not None and found.file_size > MAX_FILE_BYTES:
            raise WeightsError(
                f"{file} of {wanted} has {found.file_size:,} bytes; a checkpoint may have {MAX_FILE_BYTES:,}",
                advice="name another file of the repository",
            )
        return file
    if unreachable is not None:
        raise unreachable from no_answer or unreachable.__cause__
    api = hub.HfApi(endpoint=wanted.endpoint, library_name="skdeploy", library_version=__version__)
    listed = [
        name for name in api.list_repo_files(wanted.repo, revision=wanted.revision) if name.endswith(WEIGHTS_SUFFIXES)
    ]
    raise WeightsError(
        f"{wanted} has no file {' or '.join(files)}; its weight files: "
        f"{some([name[:SHOWN_REASON] for name in listed], SHOWN) or 'none'}",
        advice=f"name one: {SCHEME}{wanted.repo}/FILE" if listed else "give another repository",
    )


def _no_answer(hub: ModuleType, wanted: _Wanted, file: str) -> Exception | None:
    """Why the Hub cannot be reached, or None if it can, asked once: a download repeats the question for half a minute."""
    url = hub.hf_hub_url(wanted.repo, file, revision=wanted.revision, endpoint=wanted.endpoint)
    try:
        hub.get_hf_file_metadata(url, endpoint=wanted.endpoint, library_name="skdeploy", library_version=__version__)
    except require("httpx2").TransportError as error:
        return cast(Exception, error)
    except (OSError, require("httpx2").HTTPError):
        pass  # an answer: the download explains it
    return None


def _explained(hub: ModuleType, wanted: _Wanted, error: Exception) -> WeightsError:
    """Explain what went wrong. The order is from the special to the general: they are subclasses of each other."""
    errors = hub.errors
    endpoint = wanted.endpoint or hub.constants.ENDPOINT
    cache = wanted.cache or hub.constants.HF_HUB_CACHE
    if isinstance(error, errors.GatedRepoError):
        return WeightsError(
            f"{wanted} is gated: its owner must grant you access",
            advice="ask for access on its page, then set HF_TOKEN to your token",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return WeightsError(
            f"{endpoint} has no repository {wanted.repo}, or it is private",
            advice="check the name; if it is private, set HF_TOKEN to your token",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return WeightsError(
            f"{wanted.repo} has no revision {wanted.revision or 'main'}",
            advice="give a branch, a tag or a commit of the repository",
        )
    if isinstance(error, errors.LocalEntryNotFoundError) and wanted.offline:
        return WeightsError(
            f"{wanted.file or ' or '.join(CANDIDATES)} of {wanted} is not in the cache {cache}, and HF_HUB_OFFLINE is set",
            advice="unset HF_HUB_OFFLINE and run this once, or give a file",
        )
    reason = error.__cause__ or error
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return WeightsError(
            f"cannot write {wanted} to the cache {cache}: {error.strerror}",
            advice="set HF_HOME to a writable folder, or give a file with --weights",
        )
    answer = next((each for each in (error, reason) if isinstance(each, errors.HfHubHTTPError)), None)
    if answer is not None:
        return WeightsError(
            f"{endpoint} refuses {wanted}: HTTP status {answer.response.status_code}",
            advice="try again later; for status 401 or 403 check HF_TOKEN",
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return WeightsError(
            f"{wanted} is not in the cache {cache}, and {endpoint} does not answer: {reason}",
            advice="check the network, HF_ENDPOINT and the proxy, or give a file",
        )
    if not isinstance(error, (OSError, require("httpx2").HTTPError, errors.XetDownloadError)):
        return WeightsError(
            f"{endpoint} does not answer as the Hub does: {type(error).__name__}: {str(error)[:SHOWN_REASON]}",
            advice="check HF_ENDPOINT, or give a file",
        )
    return WeightsError(
        f"cannot fetch {wanted} from {endpoint} into {cache}: {type(reason).__name__}: {str(reason)[:SHOWN_REASON]}",
        advice="check the network and the free disk space, then run this again",
    )


def _checked_digest(path: Path, wanted: _Wanted) -> str:
    """SHA-256 of the file. The cache names a large file by the digest that the Hub lists, so a damaged one is found."""
    digest = digest_file(path)
    listed = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", listed) and listed != digest:
        raise WeightsError(
            f"{path} is not the file that {wanted} lists: its sha256 is {digest}, listed is {listed}",
            advice=f"delete {path.resolve()} and run this again",
        )
    return digest
