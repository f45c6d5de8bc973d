"""The node tests of the onnx package, each operator in a small classifier, and what becomes of it in the line.

The package brought them as files until 1.16.2; they are fetched once, into the user's cache. Later ones bring the code that
makes them.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test.case.node as cases
import onnxruntime as ort
from onnx import TensorProto, numpy_helper
from onnx.helper import make_node as node

from skdeploy.bundle.station_facts import GraphFacts, ReadFacts
from skdeploy.core.architecture import GraphSpec
from skdeploy.core.errors import SkdeployError
from skdeploy.core.spec import CalibrationMethod, ModelSpec
from skdeploy.images.dataset import Dataset
from skdeploy.line.written import write_graph
from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.trace_options import MAX_OPSET
from skdeploy.quant.calibrate import CalibrationSettings, calibrate
from skdeploy.quant.quantize import quantize
from skdeploy.quant.ranges import Algorithm
from skdeploy.zoo.cardless import spec_without_card
from tests.graphs.small_files import model_of

VERSION = "1.16.2"
FLOAT = TensorProto.FLOAT
FRACTIONS = frozenset({FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
NUMBERS = (
    TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32, TensorProto.INT16,
    TensorProto.INT8, TensorProto.UINT64, TensorProto.UINT32, TensorProto.UINT16, TensorProto.UINT8, TensorProto.BOOL,
)  # fmt: skip
SIZE, CHANNELS, CLASSES = 8, 4, 5
INSIDE = "onnx/backend/test/data/node/"


def wheel() -> Path:
    """The package's wheel, in the cache. Raises CalledProcessError where it cannot be fetched."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skdeploy" / "tests"
    if not list(root.glob(f"onnx-{VERSION}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(root)]
        version = ["--python-version", "3.11", "--only-binary=:all:", f"onnx=={VERSION}"]
        subprocess.run([*command, *version], check=True, capture_output=True, timeout=120)
    return next(root.glob(f"onnx-{VERSION}-*.whl"))


def classifiers(file: Path) -> Iterator[tuple[str, str, onnx.ModelProto]]:
    """Name, operator and classifier of each test that fits: of one ONNX operator with a tensor of numbers to read."""
    with zipfile.ZipFile(file) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith(INSIDE) and name.endswith("/model.onnx"))
        for name in names:
            test = onnx.ModelProto.FromString(archive.read(name))
            folder = f"{name.removesuffix('model.onnx')}test_data_set_0/"
            data = []
            for index, value in enumerate(test.graph.input):
                if not value.type.HasField("tensor_type"):
                    break
                data.append(
                    numpy_helper.to_array(onnx.TensorProto.FromString(archive.read(f"{folder}input_{index}.pb")))
                )
            made = classifier(test, data) if len(data) == len(test.graph.input) else None
            if made is not None:
                yield Path(name).parent.name, test.graph.node[-1].op_type, made


def installed(module: str, names: tuple[str, ...]) -> Iterator[tuple[str, str, onnx.ModelProto]]:
    """As ``classifiers``, of tests that the installed onnx makes in ``module``, in an opset that the line takes.

    The module is loaded alone: ``collect_testcases`` loads all, which takes ten seconds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the tests make infinities, of what does not fit a type
        importlib.import_module(f"{cases.__name__}.{module}")
    found = {case.name: case for case in cases._NodeTestCases}  # it fills as modules are loaded
    for name in names:
        test = onnx.ModelProto.FromString(found[name].model.SerializeToString())
        test.opset_import[0].version = min(test.opset_import[0].version, MAX_OPSET)
        given = found[name].data_sets[0][0]
        arrays = [numpy_helper.to_array(one) if isinstance(one, TensorProto) else np.asarray(one) for one in given]
        made = classifier(test, arrays)
        assert made is not None, name
        yield name, test.graph.node[-1].op_type, made


def classifier(test: onnx.ModelProto, data: list[np.ndarray]) -> onnx.ModelProto | None:
    """A classifier of images with the test's nodes in it. Its first FP32 input is the test's data, moved a little by the
    image; without one, it is the first of other numbers, made of the same. The others are constants. What they make is added to
    the logits. None where the test does not fit.
    """
    graph = test.graph
    opset = next((entry.version for entry in test.opset_import if entry.domain == ""), 0)
    kinds = [value.type.tensor_type.elem_type for value in graph.input]
    moved = next((index for wanted in (FLOAT, *NUMBERS) for index, kind in enumerate(kinds) if kind == wanted), None)
    tensors = all(value.type.HasField("tensor_type") for value in graph.output)
    if moved is None or not tensors or len(test.opset_import) != 1 or opset < 7:
        return None
    generator = np.random.default_rng(0)
    constants = {value.name: array for value, array in zip(graph.input, data, strict=True)}
    # Weights that are no numbers are refused, and what is asked here is another question.
    name = graph.input[moved].name
    array = np.nan_to_num(constants.pop(name).astype(np.float32), posinf=2.0, neginf=-2.0)
    if kinds[moved] not in FRACTIONS:
        array += np.float32(0.5)  # less than that is added, and Floor takes it away
    constants |= {
        "t_conv": (generator.standard_normal((CHANNELS, 3, 3, 3)) * 0.2).astype(np.float32),
        "t_spread": (generator.standard_normal((CHANNELS, max(array.size, 1))) * 0.01).astype(np.float32)[
            :, : array.size
        ],
        "t_fc": (generator.standard_normal((CHANNELS, CLASSES)) * 0.5).astype(np.float32),
        "t_data": array,
        "t_shape": np.array(array.shape, np.int64),
        "t_flat": np.array([-1], np.int64),
        "t_small": np.float32(0.01),
    }
    nodes = [
        node("Conv", ["t_image", "t_conv"], ["t_a"], name="/stem/Conv", pads=[1] * 4),
        node("Relu", ["t_a"], ["t_b"], name="/stem/Relu"),
        node("GlobalAveragePool", ["t_b"], ["t_c"], name="/stem/GlobalAveragePool"),
        node("Flatten", ["t_c"], ["t_d"], name="/stem/Flatten"),
        node("MatMul", ["t_d", "t_spread"], ["t_e"], name="/spread/MatMul"),
        node(
            "Reshape", ["t_e", "t_shape"], ["t_f"], name="/spread/Reshape", **({"allowzero": 1} if opset >= 14 else {})
        ),
        *_read(name, kinds[moved]),
        *graph.node,
        node("MatMul", ["t_d", "t_fc"], ["t_logits_0"], name="/classifier/MatMul"),
    ]
    for index, one in enumerate(graph.node):
        one.name = f"/tested/{one.op_type}_{index}"
    last = "t_logits_0"
    for index, value in enumerate(graph.output):
        flat, single, mean, part, total = (f"t_{what}_{index + 1}" for what in ("r", "f", "m", "p", "logits"))
        nodes += [
            node("Reshape", [value.name, "t_flat"], [flat], name=f"/tail/Reshape_{index}"),
            node("Cast", [flat], [single], name=f"/tail/Cast_{index}", to=FLOAT),
            node("ReduceMax", [single], [mean], name=f"/tail/ReduceMax_{index}", keepdims=1),
            node("Mul", [mean, "t_small"], [part], name=f"/tail/Mul_{index}"),
            node("Add", [last, part], [total], name=f"/tail/Add_{index}"),
        ]
        last = total
    nodes.append(node("Identity", [last], ["t_scores"], name="/tail/Identity"))
    made = model_of(nodes, {"t_image": [1, 3, SIZE, SIZE]}, {"t_scores": [1, CLASSES]}, constants, opset=opset)
    made.ir_version = min(max(test.ir_version, 4), 10)
    return made


def _read(name: str, kind: int) -> list[onnx.NodeProto]:
    """The data that the image moves, in the type that the test takes."""
    if kind == FLOAT:
        return [node("Add", ["t_f", "t_data"], [name], name="/spread/Add")]
    whole = kind not in FRACTIONS
    return [
        node("Add", ["t_f", "t_data"], ["t_g"], name="/spread/Add"),
        *([node("Floor", ["t_g"], ["t_h"], name="/spread/Floor")] if whole else []),
        node("Cast", ["t_h" if whole else "t_g"], [name], name="/spread/Cast", to=kind),
    ]


@dataclass(frozen=True)
class Fate:
    """What became of a classifier in one precision: ``exported``, ``refused`` in ``words``, or ``invalid``."""

    outcome: str
    words: str = ""


def fates(proto: onnx.ModelProto, folder: Path) -> dict[str, Fate]:
    """FP16 and INT8, by the functions of the line. What is no SkdeployError is raised."""
    file = folder / "tested.onnx"
    file.write_bytes(proto.SerializeToString())
    spec = spec_without_card("tested", GraphSpec(classes=CLASSES), 3, (SIZE, SIZE))
    try:
        read = read_foreign(file)
        single = folder / "single.onnx"
        facts = write_graph(read, single, ReadFacts(), any_rank=True)
    except SkdeployError as error:
        refused = Fate("refused", str(error))
        return {"fp16": refused, "int8": refused}
    return {"fp16": _half(file, folder, spec), "int8": _int8(file, folder, spec, facts)}


def _half(file: Path, folder: Path, spec: ModelSpec) -> Fate:
    path = folder / "half.onnx"
    try:
        write_graph(HalfPrecision()(read_foreign(file)).model, path, GraphFacts(station="lowered"), any_rank=True)
    except SkdeployError as error:
        return Fate("refused", str(error))
    return _judged(path)


def _int8(file: Path, folder: Path, spec: ModelSpec, facts: GraphFacts) -> Fate:
    path = folder / "int8.onnx"
    pixels = np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    settings = CalibrationSettings(Algorithm(version=1, method=CalibrationMethod.MINMAX), 4, 1)
    try:
        model = read_foreign(file)
        ranges = calibrate(model, facts.inputs, spec, Dataset("noise", pixels=pixels), settings)
        write_graph(
            HalfPrecision()(quantize(model, spec, ranges).model).model,
            path,
            GraphFacts(station="lowered"),
            any_rank=True,
        )
    except SkdeployError as error:
        return Fate("refused", str(error))
    return _judged(path)


def _judged(path: Path) -> Fate:
    """By the checker and ONNX Runtime, not by what wrote it."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  (whatever it is, the file is not what it should be)
        return Fate("invalid", str(error))
    return Fate("exported")
