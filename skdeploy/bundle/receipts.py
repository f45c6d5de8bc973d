"""Receipts: measurements of a device, written there and copied back into the bundle.

A receipt is ``receipts/<kind>-<device>-<first 12 digits of the artifact's sha256>.json``; one of latency has its backend after
the kind, since one artifact may run on several backends of a device. It is read under any name: earlier ones had no backend.
It names the artifact by digest, so it is worth nothing for another build. Its own digest over all the rest finds damage and
careless edits. It is not a signature: whoever means to forge a receipt can compute the digest too, so take receipts only from
devices and people that you trust.
"""

from __future__ import annotations

import json
import platform
import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, NoReturn

from pydantic import Field, JsonValue, ValidationError

from skdeploy import backends
from skdeploy.bundle.artifact import Artifact, tool_versions
from skdeploy.bundle.folder import Bundle
from skdeploy.core.errors import DependencyError, IntegrityError, first_problem
from skdeploy.core.files import digest_json, write_error
from skdeploy.core.spec import Frozen, InnerPath
from skdeploy.core.version import __version__
from skdeploy.devices import cuda

FOLDER: Final = "receipts"
SLUG_LENGTH: Final = 40
DIGEST_LENGTH: Final = 12  # of the artifact's sha256, in the file's name
CPUINFO: Final = Path("/proc/cpuinfo")
KERNEL_MODULE: Final = Path("/proc/driver/nvidia/version")

Kind = Literal["parity", "accuracy", "latency", "layers"]
ReceiptVerdict = Literal["pass", "fail", "recorded"]  # recorded: figures that nothing was asked of
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Device(Frozen):
    """Where it was measured. A CPU has no ``compute_capability`` and no ``driver``."""

    name: str
    compute_capability: str | None = None
    driver: str | None = None
    system: str


class RanOn(NamedTuple):
    """Where an artifact ran, and the versions of what ran it."""

    device: Device
    runtime: Mapping[str, str]


class Receipt(Frozen):
    """One measurement of one artifact. ``runtime`` has the versions of what ran it; ``content`` is the kind's own report.

    ``digest`` is the SHA-256 of the rest as canonical JSON (``artifact.digest_json``).
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    kind: Kind
    artifact: InnerPath
    sha256: Sha256
    backend: str
    device: Device
    runtime: dict[str, str]
    skdeploy: str
    created: str
    verdict: ReceiptVerdict
    content: dict[str, JsonValue]
    digest: Sha256

    @property
    def path(self) -> str:
        """Where it lies in its bundle."""
        kind = f"{self.kind}-{slug(self.backend)}" if self.kind == "latency" else self.kind
        return f"{FOLDER}/{kind}-{slug(self.device.name)}-{self.sha256[:DIGEST_LENGTH]}.json"


def write_receipt(
    bundle: Bundle,
    artifact: Artifact,
    kind: Kind,
    content: Frozen,
    *,
    backend: str,
    verdict: ReceiptVerdict,
    ran_on: RanOn | None = None,
) -> Path:
    """Write what was measured of ``artifact`` here, or where it ``ran_on``, whole or not at all.

    It replaces an earlier receipt of that kind and device, and for latency of that backend. Raises IntegrityError unless the
    file is still the one in the manifest, UsageError for a folder that takes no files, DependencyError for an engine's
    receipt without a GPU.
    """
    bundle.check(artifact)
    if ran_on is None:
        ran_on = RanOn(this_device(backend), tool_versions(backends.backend(backend).DISTRIBUTIONS))
    rest = {
        "schema": 1,
        "kind": kind,
        "artifact": artifact.path,
        "sha256": artifact.sha256,
        "backend": backend,
        "device": ran_on.device.model_dump(mode="json"),
        "runtime": {name: version for name, version in ran_on.runtime.items() if version != "absent"},
        "skdeploy": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": verdict,
        "content": content.model_dump(mode="json"),
    }
    receipt = Receipt.model_validate_json(json.dumps(rest | {"digest": digest_json(rest)}))
    return bundle.write_record(receipt.path, receipt)


def require_receipts(folder: Path) -> None:
    """Raises UsageError or IntegrityError for a bundle that takes no receipts, before minutes are spent on one."""
    receipts = folder / FOLDER
    try:
        with tempfile.TemporaryFile(dir=receipts if receipts.exists() else folder):
            pass
    except OSError as error:
        raise write_error(receipts, error) from error


def read_receipts(bundle: Bundle) -> tuple[Receipt, ...]:
    """All receipts of a bundle, oldest first.

    Raises IntegrityError naming the file if one is not readable, was altered, is for an artifact with another digest or for
    none that the bundle has, or is a link that leaves the bundle.
    """
    folder = bundle.folder / FOLDER
    if not folder.is_dir():
        return ()
    receipts = [_read(bundle, path) for path in sorted(folder.glob("*.json"))]
    return tuple(sorted(receipts, key=lambda receipt: receipt.created))


def this_device(backend: str) -> Device:
    """The device that ``backend`` runs on: the first GPU, or the CPU. Raises DependencyError: no GPU for an engine."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    if backends.backend(backend).DEVICE == "cpu":
        return Device(name=cpu_name(), system=system)
    found = cuda.devices()
    if not found:
        raise DependencyError(f"a receipt of {backend} needs a GPU: {cuda.driver_problem()}")
    gpu = found[0]
    return Device(name=gpu.name, compute_capability=gpu.compute_capability, driver=driver_text(), system=system)


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name as Linux tells it; elsewhere, and on boards that tell none, what Python knows."""
    found = _told(cpuinfo, r"^(?:model name|Model)\s*:\s*(\S.*)$")
    return found.strip() if found else platform.processor() or platform.machine() or "CPU"


def driver_text(kernel_module: Path = KERNEL_MODULE) -> str:
    """The newest CUDA that the driver serves, and the version of its kernel module where Linux tells it."""
    found = _told(kernel_module, r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s")
    return f"CUDA {cuda.driver_version()}" + (f", driver {found}" if found else "")


def _told(file: Path, pattern: str) -> str:
    """The pattern's group in a file of Linux; nothing where there is no such file or it has no such line."""
    try:
        found = re.search(pattern, file.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def slug(name: str) -> str:
    """A device's name as a part of a file name: nvidia-geforce-rtx-4090."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:SLUG_LENGTH].rstrip("-") or "device"


def _read(bundle: Bundle, path: Path) -> Receipt:
    try:
        content = json.loads(bundle.read_record(path), parse_constant=_no_number)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(content, dict):
        raise _unreadable(path, "it is not a JSON object")
    found = digest_json({name: value for name, value in content.items() if name != "digest"})
    if content.get("digest") != found:
        raise IntegrityError(
            f"{path} was changed or damaged: its content has sha256 {found}, recorded is {content.get('digest')}",
            advice="copy it again from the device, or measure again there with `skdeploy verify --receipt`",
        )
    try:
        receipt = Receipt.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise _unreadable(path, first_problem(error)) from error
    artifact = bundle.artifact(receipt.artifact)
    if artifact is None:
        raise IntegrityError(
            f"{path} is a receipt for {receipt.artifact}, which is not in this bundle",
            advice="it belongs to another bundle, or to an earlier export: delete it",
        )
    if artifact.sha256 != receipt.sha256:
        raise IntegrityError(
            f"{path} is a receipt for another {receipt.artifact}: sha256 {receipt.sha256}, but this bundle's "
            f"is {artifact.sha256}",
            advice="delete it, and measure this one: `skdeploy verify --receipt` on the device",
        )
    return receipt


def _unreadable(path: Path, why: str) -> IntegrityError:
    return IntegrityError(f"{path} is not a receipt: {why}", advice="delete it, or copy it again from the device")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that receipts have")
