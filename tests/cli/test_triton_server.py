"""What a real Triton answers for a repository that ``skdeploy triton`` wrote: the bundle's own bits, under load and reload."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from PIL import Image

from skdeploy.backends import onnxruntime
from skdeploy.bundle.folder import load_bundle
from skdeploy.images.decoding import crop_file
from skdeploy.images.feeds import feeds_of
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from skdeploy.parity.report import ParityReport
from skdeploy.report.parity import receipt_findings
from skdeploy.serve.triton.repository import TritonOptions, write_repository
from tests import tiny, triton_server
from tests.cli.conftest import Run
from tests.triton_server import Server, running

grpc = pytest.importorskip("tritonclient.grpc", reason="the extra triton is not installed", exc_type=ImportError)

LABELS: Final = ("red fox", "kit: fox", "dog", "cat", "ünï")
CLIENTS: Final = 8


@pytest.fixture(scope="session")
def labelled(asked: ExportOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified FP32 bundle whose card has labels. Do not change it."""
    folder = tmp_path_factory.mktemp("labelled")
    names = ", ".join(f'"{label}"' for label in LABELS)
    (folder / "tiny.toml").write_text(f"labels = [{names}]\n{tiny.CARD.read_text()}")
    export(replace(asked, model=str(folder / "tiny.toml"), output=folder / "bundle"))
    return folder / "bundle"


@pytest.fixture(scope="session")
def served(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the bundle, and of images."""
    folder = tmp_path_factory.mktemp("served")
    write_repository(labelled, TritonOptions(folder / "models", backend="python", image=True))
    with running(folder / "models", folder / "log") as server:
        yield server


def ask(server: Server, feeds: dict[str, Any], model: str = "tiny") -> Any:
    """The logits that a server gives over gRPC."""
    given = []
    for name, array in feeds.items():
        tensor = grpc.InferInput(name, list(array.shape), "BYTES" if array.dtype == object else "FP32")
        tensor.set_data_from_numpy(array)
        given.append(tensor)
    with grpc.InferenceServerClient(server.grpc.removeprefix("grpc://")) as client:
        return client.infer(model, given, client_timeout=60).as_numpy("logits")


def own(bundle: Path, pixels: Any) -> Any:
    """The logits that the bundle gives for crops."""
    loaded = load_bundle(bundle)
    with onnxruntime.open_session(loaded.path(loaded.graphs[-1])) as session:
        return session.run(feeds_of(pixels, loaded.manifest.model, session.inputs))["logits"]


def fed(count: int, seed: int = 0) -> tuple[Any, dict[str, Any]]:
    pixels = tiny.noise(count, 32, 32, 3, seed=seed)
    return pixels, feeds_of(pixels, tiny.spec(), tiny.spec().taken)


def encoded(seed: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(tiny.noise(40, 50, 3, seed=seed)).save(file, kind)
    return file.getvalue()


def own_of_file(bundle: Path, content: bytes, folder: Path) -> Any:
    """The logits that the bundle gives for an image file, by skdeploy's own reader."""
    path = folder / "image"
    path.write_bytes(content)
    return own(bundle, crop_file(path, tiny.spec()).pixels[None])


@pytest.mark.parametrize("batch", [1, 2, 5, 32])
def test_any_batch_gives_the_bundle_s_own_bits(served: Server, labelled: Path, batch: int) -> None:
    pixels, feeds = fed(batch)
    assert np.array_equal(ask(served, feeds), own(labelled, pixels))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_encoded_image_gives_the_bits_of_its_file(served: Server, labelled: Path, kind: str, tmp_path: Path) -> None:
    content = encoded(1, kind)
    batch = np.array([[content], [encoded(2, kind)]], dtype=object)
    found = ask(served, {"image": batch}, "tiny-images")
    assert np.array_equal(found[:1], own_of_file(labelled, content, tmp_path))


def test_a_broken_image_fails_alone(served: Server, labelled: Path, tmp_path: Path) -> None:
    wanted = {seed: own_of_file(labelled, encoded(seed), tmp_path) for seed in range(4)}

    def one(index: int) -> Any:
        content = b"not an image" if index % 3 == 0 else encoded(index % 4)
        try:
            return ask(served, {"image": np.array([[content]], dtype=object)}, "tiny-images")
        except grpc.InferenceServerException as error:
            return str(error)

    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(one, range(48)))
    for index, answer in enumerate(found):
        if index % 3 == 0:
            assert "cannot read the image" in answer
        else:  # the dynamic batcher has put it beside others
            np.testing.assert_allclose(answer, wanted[index % 4], rtol=0, atol=1e-5)  # batches may sum in another order


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_verify_gives_the_same_verdict_through_a_server_and_a_receipt(
    run: Run, served: Server, labelled: Path, images: Path, tmp_path: Path, scheme: str
) -> None:
    bundle = Path(shutil.copytree(labelled, tmp_path / "bundle"))
    done = run("verify", bundle, "--images", images, "--server", getattr(served, scheme), "--receipt", "--json")
    assert done.code == 0, done.err
    rows = {row["backend"]: row for row in done.json["parity"]["comparisons"] if row["artifact"] == "model.onnx"}
    assert rows["triton"]["metrics"] == rows["onnxruntime"]["metrics"]  # the same bits, so the same figures
    (receipt,) = (bundle / "receipts").glob("parity-triton-2-51-0-at-*.json")
    assert '"verdict": "pass"' in receipt.read_text()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_verify_asks_the_ensemble_too_and_shows_a_receipt_once(
    run: Run, served: Server, labelled: Path, images: Path, tmp_path: Path, scheme: str
) -> None:
    bundle = Path(shutil.copytree(labelled, tmp_path / "bundle"))
    done = run("verify", bundle, "--images", images, "--server", getattr(served, scheme), "--receipt", "--json")
    assert done.code == 0, done.err
    said = "tiny-images: 3 encoded images give what tiny gives for their crops, equal in every bit"
    assert said in " ".join(done.err.split())
    report = ParityReport.model_validate_json(json.dumps(done.json["parity"]))
    assert [each.artifact for each in report.comparisons].count("model.onnx") == 2  # on ONNX Runtime and on the server
    shown = [finding.name for finding in receipt_findings(report)]
    assert sorted(shown) == sorted(path.relative_to(bundle).as_posix() for path in (bundle / "receipts").iterdir())


def test_an_ensemble_with_another_preprocessing_is_refused(
    run: Run, labelled: Path, images: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    write_repository(labelled, TritonOptions(models, backend="python", image=True))
    config = models / "tiny-preprocess/config.pbtxt"
    text = config.read_text()
    config.write_text(text.replace(r"\"resize\": 36", r"\"resize\": 40"))
    assert config.read_text() != text
    with running(models, tmp_path / "log") as server:
        refused = run("verify", labelled, "--images", images, "--server", server.http)
    assert refused.code == 9
    assert "tiny-images on" in refused.err
    assert "gives another logits for a JPEG of" in refused.err


def test_a_version_written_under_load_loses_no_request(labelled: Path, other: Path, tmp_path: Path) -> None:
    """The server polls; clients go on while ``skdeploy triton --version next`` writes another network of the same card."""
    options = TritonOptions(tmp_path / "models", backend="python", name="tiny")
    unlabelled = Path(shutil.copytree(other, tmp_path / "first"))
    write_repository(unlabelled, options)
    pixels, feeds = fed(1)
    before, found, stop = own(unlabelled, pixels), [], threading.Event()
    with running(
        tmp_path / "models", tmp_path / "log", "--model-control-mode=poll", "--repository-poll-secs=1"
    ) as server:

        def client() -> None:
            while not stop.wait(0.02):  # a load, and not all that this machine can do
                found.append(ask(server, feeds))

        with ThreadPoolExecutor(4) as pool:
            running_clients = [pool.submit(client) for _ in range(4)]
            try:
                write_repository(unlabelled, replace(options, version="next"))
                for _ in range(300):
                    if b'"2"' in _metadata(server) or stop.wait(0.1):
                        break
                assert b'"2"' in _metadata(server), server.said[-2000:]
            finally:
                stop.set()
            for each in running_clients:
                each.result()  # raises what a lost request raised
    assert len(found) > 20
    assert all(np.allclose(answer, before, rtol=0, atol=1e-5) for answer in found)


def _metadata(server: Server) -> bytes:
    return json.dumps(server.ask("v2/models/tiny")["versions"]).encode()


def test_sigterm_answers_what_is_under_way(labelled: Path, tmp_path: Path) -> None:
    write_repository(labelled, TritonOptions(tmp_path / "models", backend="python"))
    pixels, feeds = fed(32)
    with running(tmp_path / "models", tmp_path / "log") as server:
        with ThreadPoolExecutor(CLIENTS) as pool:
            under_way = [pool.submit(ask, server, feeds) for _ in range(CLIENTS)]
            next(iter(under_way)).result()
            server.process.send_signal(signal.SIGTERM)
            refused = [error for each in under_way if (error := each.exception()) is not None]
            ended = [each.result() for each in under_way if each.exception() is None]
        assert server.process.wait(triton_server.STOP_S) == 0
    wanted = own(labelled, pixels)
    assert all(error.status() == "StatusCode.UNAVAILABLE" for error in refused)  # sent after the signal: not lost
    assert all(np.array_equal(answer, wanted) for answer in ended)


def test_the_server_reads_the_config_of_backends_that_it_does_not_have(bundle: Path, tmp_path: Path) -> None:
    """A misspelt field or a wrong type is another error: see the last model."""
    models = tmp_path / "models"
    write_repository(bundle, TritonOptions(models, image=True))
    write_repository(bundle, TritonOptions(models, name="plan"))
    config = models / "plan/config.pbtxt"
    config.write_text(config.read_text().replace('"onnxruntime"', '"tensorrt"'))
    shutil.copytree(models / "plan", models / "misspelt")
    (models / "misspelt/config.pbtxt").write_text(config.read_text().replace("max_batch_size", "max_batchsize"))
    options = ("--exit-on-error=false", "--strict-readiness=false")
    with running(models, tmp_path / "log", *options) as server:
        index = {each["name"]: each for each in server.ask("v2/repository/index", {})}
        said = server.said
    for name, backend in (("tiny", "onnxruntime"), ("plan", "tensorrt")):
        assert f"unable to find backend library for backend '{backend}'" in index[name]["reason"]
    assert index["tiny-preprocess"]["state"] == "READY"
    assert "max_batchsize" in said


def test_a_graph_that_is_not_the_bundle_s_is_not_loaded(labelled: Path, tmp_path: Path) -> None:
    write_repository(labelled, TritonOptions(tmp_path / "models", backend="python"))
    graph = tmp_path / "models/tiny/1/model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with running(tmp_path / "models", tmp_path / "log", "--exit-on-error=false", "--strict-readiness=false") as server:
        (tiny_model,) = server.ask("v2/repository/index", {})
    assert tiny_model["state"] == "UNAVAILABLE"
    assert "is not the bundle's: its sha256" in tiny_model["reason"]


def test_a_numpy_that_this_server_reads_wrong_is_refused(labelled: Path, tmp_path: Path) -> None:
    if int(np.__version__.split(".")[0]) < 2:
        pytest.skip("numpy 1 is installed here, and the server reads its arrays right")
    write_repository(labelled, TritonOptions(tmp_path / "models", backend="python"))
    programs = triton_server.python(tmp_path / "python", numpy=False)
    options = ("--exit-on-error=false", "--strict-readiness=false")
    with running(tmp_path / "models", tmp_path / "log", *options, programs=programs) as server:
        (tiny_model,) = server.ask("v2/repository/index", {})
    assert f"reads arrays of numpy {np.__version__} wrong" in tiny_model["reason"]


Spoil = Callable[[Path], None]


def _replace(old: str, new: str) -> Spoil:
    def spoil(model: Path) -> None:
        config = model / "config.pbtxt"
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))

    return spoil


def _labels(model: Path) -> None:
    (model / "labels.txt").write_text("red fox\nwolf\ndog\ncat\nünï\n")


SPOILT: Final[dict[str, tuple[Spoil, str]]] = {
    "unlabelled": (_replace(' label_filename: "labels.txt"', ""), "labels.txt is missing"),
    "relabelled": (_labels, "other labels than the card: class 1 is 'wolf'"),
    "undigested": (_replace("sha256.1.model.onnx", "digest"), "has no digest"),
}


@pytest.fixture(scope="module")
def wrong(labelled: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of models that are not, or not quite, the bundle's."""
    folder = tmp_path_factory.mktemp("wrong")
    models = folder / "models"
    write_repository(other, TritonOptions(models, backend="python", name="another"))
    write_repository(labelled, TritonOptions(models, name="unloaded"))
    for name, (spoil, _) in SPOILT.items():
        write_repository(labelled, TritonOptions(models, backend="python", name=name))
        spoil(models / name)
    with running(models, folder / "log", "--exit-on-error=false", "--strict-readiness=false") as server:
        yield server


@pytest.mark.parametrize(
    ("model", "code", "said"),
    [
        ("another", 9, "serves another network"),
        ("unloaded", 2, "unable to find backend library"),
        ("absent", 2, "has no model named 'absent'"),
        ("unlabelled", 9, SPOILT["unlabelled"][1]),
        ("relabelled", 9, SPOILT["relabelled"][1]),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_model_that_is_not_the_bundle_s_is_refused_with_the_reason(
    run: Run, wrong: Server, labelled: Path, images: Path, scheme: str, model: str, code: int, said: str
) -> None:
    refused = run("verify", labelled, "--images", images, "--server", getattr(wrong, scheme), "--server-model", model)
    assert refused.code == code
    assert said in refused.err


def test_each_metric_of_the_page_is_one_that_the_server_has(served: Server) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/triton.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(nv_\w+)`", page))
    with urllib.request.urlopen(f"{served.metrics}/metrics", timeout=10) as answer:
        found = answer.read().decode()
    assert len(named) > 5
    assert [name for name in named if f"\n{name}{{" not in found] == []
