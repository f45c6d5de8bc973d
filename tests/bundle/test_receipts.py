"""Receipts: what a device wrote is read back whole, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skdeploy.bundle.folder import Bundle, bundle_for_writing
from skdeploy.bundle.receipts import Kind, cpu_name, driver_text, read_receipts, slug, this_device, write_receipt
from skdeploy.core.errors import DependencyError, IntegrityError
from skdeploy.core.spec import Frozen, Precision
from skdeploy.devices import cuda
from tests.bundle.recorded import put, recipe
from tests.refused import refused
from tests.tiny import head


class Latency(Frozen):
    """Stands for a verb's own report."""

    median_ms: float
    runs: int


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    with bundle_for_writing(tmp_path / "bundle", head(Precision.FP16)) as made:
        for name, form in (("model.onnx", "onnx"), ("engines/x.engine", "engine")):
            put(made, recipe(name, form, precision=Precision.FP16), name.encode())
        return made


@pytest.fixture
def path(bundle: Bundle) -> Path:
    """A receipt of the graph's latency."""
    return written(bundle)


def written(
    bundle: Bundle,
    name: str = "model.onnx",
    backend: str = "onnxruntime",
    kind: Kind = "latency",
    verdict: Any = "recorded",
) -> Path:
    (artifact,) = (artifact for artifact in bundle.manifest.artifacts if artifact.path == name)
    return write_receipt(bundle, artifact, kind, Latency(median_ms=1e-7, runs=100), backend=backend, verdict=verdict)


def test_a_receipt_is_read_back_as_it_was_written(bundle: Bundle, path: Path) -> None:
    (receipt,) = read_receipts(bundle)
    sha256 = hashlib.sha256(b"model.onnx").hexdigest()
    assert path == bundle.folder / receipt.path
    assert path.name == f"latency-onnxruntime-{slug(cpu_name())}-{sha256[:12]}.json"
    said = (receipt.kind, receipt.artifact, receipt.sha256, receipt.verdict)
    assert said == ("latency", "model.onnx", sha256, "recorded")
    assert Latency.model_validate(receipt.content) == Latency(median_ms=1e-7, runs=100)
    assert receipt.device.compute_capability is None
    assert "onnxruntime" in receipt.runtime


def digest(content: dict[str, Any]) -> str:
    """The rule, written down a second time: SHA-256 of the rest as sorted JSON without spaces."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_the_digest_is_of_all_the_rest(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["digest"] == digest(content)


def test_measuring_again_replaces_the_receipt(bundle: Bundle) -> None:
    assert read_receipts(bundle) == ()
    assert written(bundle) == written(bundle)
    assert len(read_receipts(bundle)) == 1


def change(path: Path, how: Callable[[Any], None], *, forge: bool = False) -> None:
    """Alters a receipt; ``forge`` gives it the digest that fits, as an attacker would."""
    content = json.loads(path.read_text(encoding="utf-8"))
    how(content)
    if forge:
        content["digest"] = digest(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    "how",
    [
        lambda c: c.update(verdict="pass"),
        lambda c: c["device"].update(name="NVIDIA B200"),
        lambda c: c["content"].update(median_ms=1e-8),
        lambda c: c.update(created="2027-01-01T00:00:00+00:00"),
        lambda c: c.update(more=1),
        lambda c: c.pop("backend"),
        lambda c: c.pop("digest"),
    ],
    ids=["verdict", "device", "content", "created", "added", "removed", "no digest"],
)
def test_an_altered_receipt_is_refused_by_name(bundle: Bundle, path: Path, how: Callable[[Any], None]) -> None:
    change(path, how)
    with refused(IntegrityError, f"{path} was changed or damaged"):
        read_receipts(bundle)


def test_what_counts_is_the_content_and_not_its_spaces(bundle: Bundle, path: Path) -> None:
    change(path, lambda content: None)  # written anew, on one line
    assert len(read_receipts(bundle)) == 1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda c: c.update(sha256="0" * 64), "is a receipt for another model.onnx: sha256 0000"),
        (lambda c: c.update(artifact="other.onnx"), "is a receipt for other.onnx, which is not in this bundle"),
        (lambda c: c.update(artifact="../model.onnx"), "is not a receipt: artifact"),
        (lambda c: c.update(schema=2), "is not a receipt: schema"),
        (lambda c: c.update(verdict="perfect"), "is not a receipt: verdict"),
        (lambda c: c.update(more=1), "is not a receipt: more"),
    ],
)
def test_a_receipt_of_something_else_is_refused_even_with_the_right_digest(
    bundle: Bundle, path: Path, how: Callable[[Any], None], message: str
) -> None:
    change(path, how, forge=True)
    with refused(IntegrityError, re.escape(f"{path} {message}")):
        read_receipts(bundle)


def test_a_receipt_for_an_earlier_build_is_refused(bundle: Bundle, path: Path) -> None:
    put(bundle, recipe("model.onnx", "onnx", precision=Precision.FP16, parents={"from": "x"}), b"another model")
    with refused(IntegrityError, f"{path} is a receipt for another model.onnx", "skdeploy verify --receipt"):
        read_receipts(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"digest": NaN}', b"[" * 100_000])
def test_what_is_no_receipt_is_refused(bundle: Bundle, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with refused(IntegrityError, f"{path} is not a receipt"):
        read_receipts(bundle)


def test_a_link_out_of_the_bundle_and_a_huge_file_are_refused(bundle: Bundle, path: Path) -> None:
    outside = bundle.folder.parent / "outside.json"
    path.rename(outside)
    path.symlink_to(outside)
    with refused(IntegrityError, "is a link that leads out of the bundle"):
        read_receipts(bundle)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with refused(IntegrityError, "at most 67,108,864 are read"):
        read_receipts(bundle)


def test_no_receipt_is_written_of_a_file_that_was_altered(bundle: Bundle) -> None:
    (bundle.folder / "model.onnx").write_bytes(b"altered")
    with refused(IntegrityError, "is not the file that the manifest describes"):
        written(Bundle(bundle.folder, bundle.manifest))
    assert not (bundle.folder / "receipts").exists()


def test_an_engine_has_no_receipt_without_a_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "devices", lambda: ())
    with pytest.raises(DependencyError, match="a receipt of tensorrt needs a GPU"):
        written(bundle, "engines/x.engine", "tensorrt")


def test_an_engines_receipt_names_the_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "devices", lambda: (cuda.CudaDevice(0, "NVIDIA L4", "8.9", 24 << 30),))
    monkeypatch.setattr(cuda, "driver_version", lambda: "13.0")
    path = written(bundle, "engines/x.engine", "tensorrt", "parity", "pass")
    (receipt,) = read_receipts(bundle)
    assert path.name.startswith("parity-nvidia-l4-")
    assert (receipt.device.name, receipt.device.compute_capability) == ("NVIDIA L4", "8.9")
    assert (receipt.device.driver or "").startswith("CUDA 13.0")


@pytest.mark.gpu
def test_this_gpu_is_the_one_that_torch_sees() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this torch cannot use the GPU")
    found = this_device("tensorrt")
    assert found.name == torch.cuda.get_device_name(0)
    assert found.compute_capability == "{}.{}".format(*torch.cuda.get_device_capability(0))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
        ("../../Orin (nvgpu)", "orin-nvgpu"),
        ("日本", "device"),
        ("x" * 100, "x" * 40),
    ],
)
def test_a_devices_name_in_a_file_name(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_the_processors_name_is_what_linux_calls_it(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel\t\t: 2\nmodel name\t: AMD EPYC 9654\n\nprocessor\t: 1\n", encoding="utf-8")
    assert cpu_name(path) == "AMD EPYC 9654"
    path.write_text("processor\t: 0\nModel\t\t: Jetson AGX Orin\n", encoding="utf-8")
    assert cpu_name(path) == "Jetson AGX Orin"
    assert cpu_name(tmp_path / "absent")


def test_the_driver_is_told_by_its_kernel_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "driver_version", lambda: "13.0")
    path = tmp_path / "version"
    told = (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:00:00 UTC 2025\nGCC version: 13.3.0\n"
    )
    path.write_text(told, encoding="utf-8")
    assert driver_text(path) == "CUDA 13.0, driver 580.65.06"
    assert driver_text(tmp_path / "absent") == "CUDA 13.0"
