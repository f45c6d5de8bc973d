"""Networks with more weights than one protobuf message holds: through the whole line, with a second file for the largest."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from skdeploy.backends.onnxruntime import OnnxRuntimeSession, load_graph, open_session
from skdeploy.blame.repro import Parts
from skdeploy.bundle import contents
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.station_facts import SelectFacts, SimplifyFacts
from skdeploy.core.errors import IntegrityError
from skdeploy.core.precision import Precision
from skdeploy.ir import large, onnx_file
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import Export, export
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.passes.foreign import read_foreign
from tests.graphs.sk_files import classifier

# Bytes: the network has 6,000 to 12,000, of which each 3 x 3 convolution of the branches has 2,304 in FP32.
LOWERED, SMALL = 3000, 1024


def lower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowers the limits below the small network's weights."""
    monkeypatch.setattr(onnx_file, "WHOLE", LOWERED)
    monkeypatch.setattr(onnx_file, "SMALL", SMALL)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sk.onnx"
    onnx.save(classifier(17), path, save_as_external_data=True, location="sk.data", size_threshold=0)
    return path


def exported(
    file: Path, folder: Path, precision: Precision, target: str = "onnx", images: Path | None = None
) -> Export:
    asked = Int8Options(calibration=CalibrationOptions(images=images)) if precision.integer else None
    lowering = {} if asked is None else {"int8": asked}
    return export(
        ExportOptions(
            str(file), precision=precision, output=folder, target=target, num_images=4, lowering=lowering,
            assume_imagenet=True,
        )
    )  # fmt: skip


def outputs(bundle: Bundle, name: str) -> np.ndarray:
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16), np.float32)
    with open_session(bundle.folder / name) as session:
        return session.run({"input": images})["logits"]


def files_with_data(bundle: Bundle) -> dict[str, str]:
    return {each.path: each.data.path for each in bundle.manifest.artifacts if each.data is not None}


@pytest.mark.parametrize(("precision", "last"), [(Precision.FP16, contents.HALF), (Precision.INT8, contents.INT8)])
def test_weights_in_a_second_file_change_nothing(
    file: Path, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision, last: str
) -> None:
    """The same network with a limit that it is above, and with protobuf's: the same blocks, and the same numbers."""
    target = "tensorrt_rtx" if precision is Precision.FP16 else "onnx"
    usual = exported(file, tmp_path / "usual", precision, images=images).bundle
    lower(monkeypatch)
    done = exported(file, tmp_path / "large", precision, target, images)
    bundle = done.bundle
    assert done.parity.verdict == "pass"
    assert files_with_data(usual) == {}
    made = files_with_data(bundle)
    assert made[contents.MODEL] == "model.onnx.data"
    facts = bundle.artifact(contents.MODEL).facts_as(SimplifyFacts)
    assert len(facts.unfolded) >= 2
    (select,) = (each for each in bundle.manifest.artifacts if each.station == "select")
    assert len(select.facts_as(SelectFacts).rewritten) == 1
    # onnx-simplifier saw less of it, so sums may be in another order.
    assert outputs(bundle, contents.MODEL) == pytest.approx(outputs(usual, contents.MODEL), rel=1e-5, abs=1e-5)
    assert outputs(bundle, last) == pytest.approx(outputs(usual, last), rel=2e-2, abs=2e-2)
    artifact = bundle.artifact(contents.MODEL)
    assert artifact.size_bytes == sum((bundle.folder / name).stat().st_size for name in artifact.files)


def test_a_changed_second_file_is_an_altered_bundle(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower(monkeypatch)
    bundle = exported(file, tmp_path / "b", Precision.FP32).bundle
    artifact = bundle.artifact(contents.MODEL)
    assert ir.load(bundle.folder / contents.MODEL).metadata_props[large.DIGEST] == artifact.data.sha256
    load_bundle(bundle.folder).check_all()
    data = bundle.folder / artifact.data.path
    good = data.read_bytes()
    data.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(IntegrityError, match=r"model\.onnx\.data is not the file that the manifest describes"):
        load_bundle(bundle.folder).check_all()
    data.unlink()
    with pytest.raises(IntegrityError, match=r"model\.onnx\.data is missing"):
        load_bundle(bundle.folder).check_all()
    again = exported(file, bundle.folder, Precision.FP32).bundle
    assert data.read_bytes() == good
    again.check_all()


def test_second_files_of_an_earlier_export_go(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as lowered:
        lower(lowered)
        exported(file, tmp_path / "b", Precision.FP32)
    assert list((tmp_path / "b").glob("*.data"))
    file.touch()
    bundle = exported(file, tmp_path / "b", Precision.FP16).bundle
    bundle.check_all()
    kept = {artifact.data.path for artifact in bundle.manifest.artifacts if artifact.data is not None}
    assert {path.name for path in bundle.folder.glob("*.data")} == kept


@pytest.mark.parametrize("opset", [7, 11, 21])
def test_other_opsets_are_converted_with_weights_beside(
    opset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(classifier(opset), path, save_as_external_data=True, location="m.data", size_threshold=0)
    usual = large.portable(read_foreign(path))
    lower(monkeypatch)
    found = large.portable(read_foreign(path))  # compared with the file in there
    assert usual.weights == {}
    assert found.weights
    assert sum(map(len, (found.message, *map(bytes, found.weights.values())))) >= len(usual.message) * 0.9


def test_a_weight_with_nan_outside_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = classifier(17)
    weight = np.frombuffer(proto.graph.initializer[1].raw_data, np.float32).copy()
    weight[3] = np.nan
    proto.graph.initializer[1].raw_data = weight.tobytes()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    lower(monkeypatch)
    with pytest.raises(IntegrityError, match="1 are NaN"):
        read_foreign(tmp_path / "m.onnx")


def test_blame_runs_and_cuts_out_parts_whose_weights_are_beside(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower(monkeypatch)
    bundle = exported(file, tmp_path / "b", Precision.FP32).bundle
    parts = Parts(load_graph(bundle.folder / contents.MODEL))
    feeds = {"input": np.random.default_rng(1).standard_normal((2, 3, 16, 16), np.float32)}
    everything = range(len(parts.nodes))
    with open_session(bundle.folder / contents.MODEL) as session:
        expected = session.run(feeds)["logits"]
    assert np.array_equal(parts.run(everything, feeds, ["logits"], "m")["logits"], expected)
    with OnnxRuntimeSession(parts.cut(everything, feeds, ["logits"]).SerializeToString(), "cpu", None) as session:
        assert np.array_equal(session.run(feeds)["logits"], expected)


LAYERS, WIDTH = 4, 12_288  # 604 MB each in FP32, 2.4 GB together


def huge(path: Path) -> Path:
    """input (N, 3, 8, 8) -> four linear layers of 12,288 features -> (N, 4), written tensor by tensor."""
    nodes = [helper.make_node("Tile", ["x", "times"], ["wide"]), helper.make_node("Flatten", ["wide"], ["t0"])]
    constants = [
        helper.make_tensor("times", TensorProto.INT64, [4], [1, 64, 1, 1]),
        helper.make_tensor(
            "last", TensorProto.FLOAT, [WIDTH, 4], np.full(WIDTH * 4, 1e-3, np.float32).tobytes(), raw=True
        ),
    ]
    generator, place = np.random.default_rng(0), 0
    with path.with_suffix(".data").open("wb") as stream:
        for layer in range(LAYERS):
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            tensor.data_location = TensorProto.EXTERNAL
            size = WIDTH * WIDTH * 4
            for key, value in (("location", path.with_suffix(".data").name), ("offset", place), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
            for _ in range(16):  # He's, so that numbers keep their size
                rows = generator.standard_normal((WIDTH // 16, WIDTH), np.float32) * np.float32(np.sqrt(2 / WIDTH))
                stream.write(rows.tobytes())
            constants.append(tensor)
            place += size
            nodes.append(helper.make_node("Gemm", [f"t{layer}", f"w{layer}"], [f"a{layer}"], transB=1))
            nodes.append(helper.make_node("Relu", [f"a{layer}"], [f"t{layer + 1}"]))
    nodes.append(helper.make_node("MatMul", [f"t{LAYERS}", "last"], ["y"]))
    graph = helper.make_graph(
        nodes, "huge", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])], constants,
    )  # fmt: skip
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


@pytest.mark.parametrize("large_from", [0, large.COPIED])
def test_a_spent_graph_is_written_the_same_and_loses_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large_from: int
) -> None:
    """Also one that is large enough for its memory to be given back on the way."""
    monkeypatch.setattr(large, "COPIED", large_from)
    for name, spent in (("kept", False), ("spent", True)):
        model = ir.from_proto(classifier(17))
        large.save_model(model, tmp_path / name, spent=spent)
        assert all((value.const_value is None) is spent for value in model.graph.initializers.values())
    assert (tmp_path / "spent").read_bytes() == (tmp_path / "kept").read_bytes()


@pytest.mark.slow
def test_more_than_2_gb_of_weights_go_through_the_line(tmp_path: Path) -> None:
    """FP16 with an engine. Disk: about 12 GB, which go with the folder. Memory: 13.8 GB at the peak, of which 11.6 GB are not
    mapped files, sampled once on 2026-11-29.
    """
    file, folder = huge(tmp_path / "huge.onnx"), tmp_path / "b"
    try:
        assert file.with_suffix(".data").stat().st_size > 2**31
        done = export(
            ExportOptions(
                str(file), precision=Precision.FP16, output=folder, target="tensorrt_rtx", num_images=2,
                assume_imagenet=True, task="raw",
            )
        )  # fmt: skip
        assert done.parity.verdict == "pass"
        assert {contents.MODEL, contents.READ} <= set(files_with_data(done.bundle))
        (engine,) = done.bundle.engines
        assert engine.size_bytes > 2**30
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        file.with_suffix(".data").unlink(missing_ok=True)
