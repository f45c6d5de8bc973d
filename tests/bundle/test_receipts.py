"""Receipts: what a device wrote is read back whole, and nothing else is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, bundle_for_writing
from skdeploy.bundle.receipts import cpu_name, driver_text, read_receipts, slug, this_device, write_receipt
from skdeploy.core.errors import DependencyError, IntegrityError
from skdeploy.core.spec import Frozen, Precision
from skdeploy.devices import cuda
from tests.bundle.recorded import put, recipe
from tests.tiny import head

L4 = cuda.CudaDevice(0, "NVIDIA L4", "8.9", 24 << 30)


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


def artifact(bundle: Bundle, name: str = "model.onnx") -> Artifact:
    found = bundle.artifact(name)
    assert found is not None
    return found


def written(bundle: Bundle) -> Path:
    return write_receipt(
        bundle,
        artifact(bundle),
        "latency",
        Latency(median_ms=1e-7, runs=100),
        backend="onnxruntime",
        verdict="recorded",
    )


def test_a_receipt_is_read_back_as_it_was_written(bundle: Bundle) -> None:
    path = written(bundle)
    (receipt,) = read_receipts(bundle)
    sha256 = hashlib.sha256(b"model.onnx").hexdigest()
    assert path == bundle.folder / receipt.path
    assert path.name == f"latency-onnxruntime-{slug(cpu_name())}-{sha256[:12]}.json"
    assert (receipt.kind, receipt.artifact, receipt.sha256, receipt.verdict) == (
        "latency",
        "model.onnx",
        sha256,
        "recorded",
    )
    assert Latency.model_validate(receipt.content) == Latency(median_ms=1e-7, runs=100)
    assert receipt.device.compute_capability is None
    assert "onnxruntime" in receipt.runtime


def test_the_digest_is_sha256_of_the_rest_as_sorted_json_without_spaces(bundle: Bundle) -> None:
    """The rule, written down a second time."""
    content = json.loads(written(bundle).read_text(encoding="utf-8"))
    digest = content.pop("digest")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert digest == hashlib.sha256(text.encode()).hexdigest()


def test_measuring_again_replaces_the_receipt(bundle: Bundle) -> None:
    assert written(bundle) == written(bundle)
    assert len(read_receipts(bundle)) == 1


def test_a_bundle_without_receipts_has_none(bundle: Bundle) -> None:
    assert read_receipts(bundle) == ()


def change(path: Path, how: Callable[[Any], None], *, forge: bool = False) -> None:
    """Alters a receipt; ``forge`` gives it the digest that fits, as an attacker would."""
    content = json.loads(path.read_text(encoding="utf-8"))
    how(content)
    if forge:
        rest = {key: value for key, value in content.items() if key != "digest"}
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        content["digest"] = hashlib.sha256(text.encode()).hexdigest()
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
def test_an_altered_receipt_is_refused_by_name(bundle: Bundle, how: Callable[[Any], None]) -> None:
    path = written(bundle)
    change(path, how)
    with pytest.raises(IntegrityError) as refusal:
        read_receipts(bundle)
    assert f"{path} was altered or damaged" in refusal.value.message


def test_what_counts_is_the_content_and_not_its_spaces(bundle: Bundle) -> None:
    path = written(bundle)
    change(path, lambda content: None)  # written anew, on one line
    assert len(read_receipts(bundle)) == 1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda c: c.update(sha256="0" * 64), "is a receipt of another model.onnx: sha256 0000"),
        (lambda c: c.update(artifact="other.onnx"), "is a receipt of other.onnx, which this bundle does not have"),
        (lambda c: c.update(artifact="../model.onnx"), "is not a receipt: artifact"),
        (lambda c: c.update(schema=2), "is not a receipt: schema"),
        (lambda c: c.update(verdict="perfect"), "is not a receipt: verdict"),
        (lambda c: c.update(more=1), "is not a receipt: more"),
    ],
)
def test_a_receipt_of_something_else_is_refused_even_with_the_right_digest(
    bundle: Bundle, how: Callable[[Any], None], message: str
) -> None:
    path = written(bundle)
    change(path, how, forge=True)
    with pytest.raises(IntegrityError) as refusal:
        read_receipts(bundle)
    assert str(path) in refusal.value.message
    assert message in refusal.value.message


def test_a_receipt_for_an_earlier_build_is_refused(bundle: Bundle) -> None:
    path = written(bundle)
    put(bundle, recipe("model.onnx", "onnx", precision=Precision.FP16, parents={"from": "x"}), b"another model")
    with pytest.raises(IntegrityError, match=r"is a receipt of another model.onnx") as refusal:
        read_receipts(bundle)
    assert str(path) in refusal.value.message
    assert "skdeploy verify --receipt" in refusal.value.advice


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"digest": NaN}', b"[" * 100_000])
def test_what_is_no_receipt_is_refused(bundle: Bundle, content: bytes) -> None:
    path = written(bundle)
    path.write_bytes(content)
    with pytest.raises(IntegrityError) as refusal:
        read_receipts(bundle)
    assert f"{path} is not a receipt" in refusal.value.message


def test_a_link_out_of_the_bundle_and_a_huge_file_are_refused(bundle: Bundle) -> None:
    path = written(bundle)
    outside = bundle.folder.parent / "outside.json"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(IntegrityError, match="is a link that leaves the bundle"):
        read_receipts(bundle)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(IntegrityError, match="no record is that large"):
        read_receipts(bundle)


def test_no_receipt_is_written_of_a_file_that_was_altered(bundle: Bundle) -> None:
    (bundle.folder / "model.onnx").write_bytes(b"altered")
    fresh = Bundle(bundle.folder, bundle.manifest)
    with pytest.raises(IntegrityError, match="is not the file that the manifest describes"):
        written(fresh)
    assert not (bundle.folder / "receipts").exists()


def test_an_engine_has_no_receipt_without_a_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "devices", lambda: ())
    with pytest.raises(DependencyError, match="no receipt of tensorrt without a GPU"):
        write_receipt(
            bundle,
            artifact(bundle, "engines/x.engine"),
            "latency",
            Latency(median_ms=1.0, runs=1),
            backend="tensorrt",
            verdict="recorded",
        )


def test_an_engines_receipt_names_the_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "devices", lambda: (L4,))
    monkeypatch.setattr(cuda, "driver_version", lambda: "13.0")
    path = write_receipt(
        bundle,
        artifact(bundle, "engines/x.engine"),
        "parity",
        Latency(median_ms=1.0, runs=1),
        backend="tensorrt",
        verdict="pass",
    )
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
    path.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:00:00 UTC 2025\nGCC version: 13.3.0\n",
        encoding="utf-8",
    )
    assert driver_text(path) == "CUDA 13.0, driver 580.65.06"
    assert driver_text(tmp_path / "absent") == "CUDA 13.0"
