"""examples/cpp: compiled, run, and compared with what skdeploy itself computes of the same image."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

import skdeploy as sk
from skdeploy.bundle.folder import load_bundle
from skdeploy.bundle.station_facts import EngineFacts
from skdeploy.core.spec import Precision
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import export
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from tests.bundle.recorded import put_engine
from tests.conftest import FAST
from tests.headers import include_folder
from tests.tiny import CARD, noise

EXAMPLES: Final = Path(__file__).parents[2] / "examples/cpp"
STRICT: Final = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
LABELS: Final = ("a cat", "b", "c", "d", "e")
# Both run the same library on the same graph; only the order of sums may differ, and the print has six digits.
SAME: Final = 1e-5
FIXED: Final = 1e-4  # the library's own INT8 rounding falls alike, but for a value right between two steps


@pytest.fixture(scope="module")
def json_headers() -> Path:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed: the examples cannot be compiled")
    return include_folder("nlohmann/json.hpp")


@pytest.fixture(scope="module")
def classify(json_headers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example for ONNX Runtime, linked to the library in Python's own package."""
    headers = include_folder("onnxruntime/onnxruntime_cxx_api.h") / "onnxruntime"
    folder = tmp_path_factory.mktemp("cpp")
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.1.*")
    (folder / "libonnxruntime.so.1").symlink_to(library)
    link = [str(folder / "libonnxruntime.so.1"), f"-Wl,-rpath,{folder}"]
    source, program = EXAMPLES / "classify_onnx.cpp", folder / "classify_onnx"
    compile_(source, "-o", str(program), include=(json_headers, headers), link=link)
    return program


def compile_(source: Path, *options: str, include: Sequence[Path], link: Sequence[str] = ()) -> None:
    """Compiles without a warning. The compiler's own folders are not named: that would change their order."""
    folders = [word for folder in include if folder != Path("/usr/include") for word in ("-isystem", str(folder))]
    done = subprocess.run(
        ["g++", *STRICT, *folders, *options, str(source), *link], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def run(program: Path, bundle: Path, image: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, bundle, image], capture_output=True, text=True, check=False)


def test_the_example_sends_no_figures_to_the_librarys_maker(
    classify: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """ONNX Runtime's telemetry would keep an identity of the machine in the home."""
    Image.fromarray(noise(40, 40, 3)).save(tmp_path / "image.ppm")
    (tmp_path / "home").mkdir()
    variables = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    variables["HOME"] = str(tmp_path / "home")
    subprocess.run([classify, bundles["fp32"], tmp_path / "image.ppm"], env=variables, check=True, capture_output=True)
    assert list((tmp_path / "home").rglob("*")) == []


def logits_of(program: Path, bundle: Path, image: Path) -> NDArray[np.float64]:
    """The program's logits in the order of the classes, once its table says what it must."""
    done = run(program, bundle, image)
    assert done.returncode == 0, done.stderr
    rows = [re.fullmatch(r" *([\d.]+) %  +(\S+)  (.+)", line) for line in done.stdout.splitlines()]
    assert len(rows) == len(LABELS)
    found = {row[3]: (float(row[1]), float(row[2])) for row in rows if row is not None}
    assert set(found) == set(LABELS)
    logits = np.array([found[label][1] for label in LABELS])
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose([found[label][0] for label in LABELS], 100 * shares, atol=0.006)  # printed to 0.01
    return logits


def expected(bundle: Path, image: Path) -> NDArray[np.float32]:
    """The logits of skdeploy, which ``predict`` makes its percentages of."""
    opened = sk.load_bundle(bundle)
    with opened.session() as session:
        return session(opened.preprocess([image]))[0]


def distance(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Largest difference, relative to the largest logit."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny network with labels: FP32; INT8; and raw pixels as input with a cubic resize."""
    folder = tmp_path_factory.mktemp("bundles")
    text = CARD.read_text(encoding="utf-8").replace("[network]", f"labels = {json.dumps(LABELS)}\n[network]", 1)
    (folder / "plain.toml").write_text(text, encoding="utf-8")
    (folder / "cubic.toml").write_text(text.replace("bilinear", "bicubic"), encoding="utf-8")
    np.save(folder / "images.npy", noise(4, 40, 44, 3))
    plain = ExportOptions(
        str(folder / "plain.toml"), trace=FAST, images=folder / "images.npy", target="onnx", output=folder / "fp32"
    )
    calibration = CalibrationOptions(images=folder / "images.npy")
    int8 = replace(
        plain,
        precision=Precision.INT8,
        lowering={"int8": Int8Options(calibration=calibration, fallback=Precision.FP32)},
        output=folder / "int8",
    )
    embedded = FAST.model_copy(update={"embed_preprocess": True})
    pixels = replace(plain, model=str(folder / "cubic.toml"), trace=embedded, output=folder / "pixels")
    for options in (plain, int8, pixels):
        export(options)
    return {name: folder / name for name in ("fp32", "int8", "pixels")}


@pytest.mark.parametrize(
    ("name", "width", "height", "tolerance"),
    [
        ("fp32", 71, 50, SAME),
        ("fp32", 36, 36, SAME),
        ("fp32", 20, 90, SAME),
        ("pixels", 301, 200, SAME),
        ("int8", 71, 50, FIXED),
    ],
)
def test_logits_are_those_of_skdeploy_on_images_of_any_size(
    classify: Path, bundles: dict[str, Path], tmp_path: Path, name: str, width: int, height: int, tolerance: float
) -> None:
    image, other = tmp_path / "image.ppm", tmp_path / "other.ppm"
    Image.fromarray(noise(height, width, 3)).save(image)
    Image.fromarray(noise(height, width, 3)[..., ::-1]).save(other)  # red for blue
    wanted = expected(bundles[name], image)
    assert distance(logits_of(classify, bundles[name], image), wanted) <= tolerance
    assert distance(logits_of(classify, bundles[name], other), wanted) > 10 * tolerance


def test_the_preprocessing_is_the_manifests(classify: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    image, bundle = tmp_path / "image.ppm", Path(shutil.copytree(bundles["fp32"], tmp_path / "bundle"))
    Image.fromarray(noise(50, 60, 3)).save(image)
    before = logits_of(classify, bundle, image)
    edit(bundle, lambda manifest: manifest["model"]["preprocess"].update(mean=[0.1, 0.5, 0.9], resize=44))
    after = logits_of(classify, bundle, image)
    assert distance(after, before) > 10 * SAME
    assert distance(after, expected(bundle, image)) <= SAME


def edit(bundle: Path, change: Any) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda manifest: manifest["model"]["preprocess"].pop("mean"),
            "manifest.json is damaged: .*key 'mean' not found",
        ),
        (
            lambda manifest: manifest["model"]["preprocess"].update(mean=[0.5]),
            "manifest.json is damaged: .*out of range",
        ),
        (lambda manifest: manifest["model"]["preprocess"].update(std="x"), "manifest.json is damaged: "),
        (lambda manifest: manifest["model"]["preprocess"].update(interpolation="lanczos"), "the manifest says lanczos"),
        (lambda manifest: manifest["model"]["preprocess"].update(resize=20), "larger than its resize"),
        (
            lambda manifest: manifest["model"]["input"].update(width=16),
            "the image size in the manifest is not that of the graph",
        ),
        (
            lambda manifest: manifest["model"]["network"].update(classes=6),
            "gives 5 logits, the manifest says 6 classes",
        ),
        (lambda manifest: manifest.update(schema=1), "another schema than 2"),
        (lambda manifest: manifest.update(verdict="failed"), "was not verified"),
        (lambda manifest: manifest.update(artifacts=[]), "holds no ONNX file"),
    ],
)
def test_a_damaged_manifest_ends_in_a_clear_error(
    classify: Path, bundles: dict[str, Path], tmp_path: Path, change: Any, message: str
) -> None:
    image, bundle = tmp_path / "image.ppm", Path(shutil.copytree(bundles["fp32"], tmp_path / "bundle"))
    Image.fromarray(noise(40, 40, 3)).save(image)
    edit(bundle, change)
    refused(run(classify, bundle, image), message)


def refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert re.search(f"error: .*{message}", done.stderr, re.DOTALL), done.stderr
    assert done.stdout == ""


def test_files_that_are_no_bundle_or_no_image_end_in_a_clear_error(
    classify: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    image, bundle = tmp_path / "image.ppm", Path(shutil.copytree(bundles["fp32"], tmp_path / "bundle"))
    Image.fromarray(noise(40, 40, 3)).save(image)
    refused(run(classify, tmp_path, image), "is not a bundle")
    refused(run(classify, bundle, tmp_path / "absent.ppm"), "is not an 8-bit P6 image")
    content = image.read_bytes()
    for broken, message in (
        (content[:-1], "ends before its last pixel"),
        (content.replace(b"P6", b"P3", 1), "is not an 8-bit P6 image"),
        (content.replace(b"40 40", b"40 -1", 1), "is not an 8-bit P6 image"),
        (b"", "is not an 8-bit P6 image"),
    ):
        image.write_bytes(broken)
        refused(run(classify, bundle, image), message)
    image.write_bytes(content)
    text = (bundle / "manifest.json").read_text(encoding="utf-8")
    (bundle / "manifest.json").write_text(text[: len(text) // 2], encoding="utf-8")
    refused(run(classify, bundle, image), "manifest.json is damaged: .*parse error")
    (bundle / "manifest.json").write_text(text, encoding="utf-8")
    (bundle / "model.onnx").write_bytes(b"nothing")
    refused(run(classify, bundle, image), "model.onnx")
    assert run(classify, bundle, Path("a")).returncode == 1
    assert subprocess.run([classify], capture_output=True, check=False).returncode == 2


# TensorRT


@pytest.fixture(scope="module")
def classify_tensorrt(json_headers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example for TensorRT over headers of ours with its signatures: what it does before an engine is loaded."""
    include = (Path(__file__).parent / "stand_in", json_headers, include_folder("openssl/evp.h"))
    program = tmp_path_factory.mktemp("tensorrt") / "classify_tensorrt"
    compile_(EXAMPLES / "classify_tensorrt.cpp", "-o", str(program), include=include, link=["-lcrypto"])
    return program


def test_the_engines_digest_is_checked_before_it_is_loaded(
    classify_tensorrt: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    image, folder = tmp_path / "image.ppm", Path(shutil.copytree(bundles["fp32"], tmp_path / "bundle"))
    Image.fromarray(noise(40, 40, 3)).save(image)
    refused(run(classify_tensorrt, folder, image), "holds no TensorRT engine")
    bundle = load_bundle(folder)
    graph = bundle.artifact("model.onnx")
    assert graph is not None
    facts = EngineFacts(compiler="tensorrt", inputs=graph.inputs, outputs=graph.outputs)
    put_engine(bundle, "engines/tensorrt-fp32.engine", b"ftrt" + bytes(60), facts)
    bundle.finish(bundle.manifest.artifacts, "verified")
    done = run(classify_tensorrt, folder, image)
    assert "loading 64 bytes" in done.stdout
    assert "cannot load the engine: make one here with `skdeploy build`" in done.stderr
    (folder / "engines/tensorrt-fp32.engine").write_bytes(b"ftrt" + bytes(59) + b"\1")
    refused(run(classify_tensorrt, folder, image), "not the engine of the manifest")  # nothing on stdout: not loaded
    edit(folder, lambda manifest: manifest["model"]["preprocess"].pop("std"))
    (folder / "engines/tensorrt-fp32.engine").write_bytes(b"ftrt" + bytes(60))
    refused(run(classify_tensorrt, folder, image), "key 'std' not found")


def test_the_tensorrt_example_fits_tensorrts_own_headers(json_headers: Path) -> None:
    """No package index has them. They were NVIDIA's of 10.0, 10.3, 10.13 and 11.1 when the example was written."""
    places = [Path(place) for place in os.environ.get("TENSORRT_INCLUDE", "").split(os.pathsep) if place]
    places += [Path("/usr/include") / kind for kind in (".", "x86_64-linux-gnu", "aarch64-linux-gnu")]
    headers = next((place for place in places if (place / "NvInfer.h").is_file()), None)
    if headers is None:
        pytest.skip(
            "TensorRT's C++ headers are not installed: no package index has them, only NVIDIA's images and repositories"
        )
    cuda = [place for place in (*places, Path("/usr/local/cuda/include")) if (place / "cuda_runtime_api.h").is_file()]
    include = (headers, *cuda, json_headers, include_folder("openssl/evp.h"))
    compile_(EXAMPLES / "classify_tensorrt.cpp", "-fsyntax-only", include=include)
