"""A precision and a pass with a flag that are registered from outside the package go through the whole line like the others."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from skdeploy.backends.onnxruntime import open_model
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.errors import IntegrityError
from skdeploy.core.precision import PRECISIONS
from skdeploy.report.findings import read_findings
from skdeploy.report.line import export_command
from skdeploy.zoo.cardless import spec_without_card
from skdeploy.zoo.cards import read_card
from tests.cli.conftest import QUICK
from tests.outside import toy_precision as toy

pytestmark = pytest.mark.usefixtures("outside")

Run = Callable[..., Any]
GRAPHS = ["model.traced.onnx", "model.onnx", "model.coarse.onnx", "model.coarse.max.onnx"]


@pytest.fixture
def export(run: Run, card: Path, weights: Path, images: Path, tmp_path: Path) -> Run:
    def call(*arguments: object, model: Path = card, folder: str = "made") -> Any:
        given = ("--weights", weights, "--images", images, "--output", tmp_path / folder, "--json")
        return run("export", model, *arguments, *given, *QUICK)

    return call


def test_the_help_lists_their_flags(run: Run) -> None:
    text = run("export", "--help").out
    assert all(words in text for words in ("--coarse", "What layers read, in BF16.", "--coarse-spare", "--relu"))
    assert text.index("--int8") < text.index("--coarse ")


def test_the_line_makes_proves_records_reproduces_and_resumes_it(export: Run, run: Run, tmp_path: Path) -> None:
    asked = ("--coarse", "--coarse-spare", "Gemm", "--relu", "max")
    done = export(*asked)
    assert done.code == 0, done.err

    bundle = load_bundle(tmp_path / "made")
    assert [graph.path for graph in bundle.graphs] == GRAPHS
    assert bundle.manifest.precision is toy.COARSE
    assert [graph.precision for graph in bundle.graphs] == ["fp32", "fp32", "coarse", "coarse"]
    assert json.loads((tmp_path / "made/manifest.json").read_text(encoding="utf-8"))["precision"] == "coarse"
    facts = bundle.graphs[2].facts_as(toy.CoarseFacts)
    operators = [node.op_type for node in onnx.load(bundle.check(bundle.graphs[2])).graph.node]
    assert facts.rounded == 2 * operators.count("Conv") > 0
    assert "Gemm" in operators
    assert "Relu" not in {node.op_type for node in onnx.load(bundle.check(bundle.graphs[3])).graph.node}

    judged = {row["artifact"]: row for row in done.json["parity"]["comparisons"]}
    assert list(judged) == GRAPHS
    errors = {name: row["metrics"]["max_rel_error"] for name, row in judged.items()}
    # BF16 of one rounding is 2^-9: above what FP32 may lose, below what coarse may.
    assert errors["model.onnx"] < 1e-4 < errors["model.coarse.onnx"] < toy.COARSE.tolerance.max_rel_error
    assert any("no [tolerance.coarse], so the default of COARSE is used" in note for note in bundle.manifest.notes)

    again = export(*asked)
    assert all(row["reused"] for row in again.json["artifacts"])
    command = export_command(read_findings(bundle))
    assert command is not None
    assert " --coarse --" in command
    assert all(words in command for words in ("--coarse-spare Gemm", "--relu max"))
    plain = export(*asked[:1], *asked[3:])
    assert {row["path"] for row in plain.json["artifacts"] if row["reused"] and row["path"] in GRAPHS} == set(
        GRAPHS[:2]
    )
    assert run("report", tmp_path / "made").code == 0


def test_the_command_of_the_report_makes_the_same_graphs(
    export: Run,
    run: Run,
    weights: Path,
    tmp_path: Path,
    card: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export("--coarse", "--relu", "max")
    first = load_bundle(tmp_path / "made")
    words = shlex.split(export_command(read_findings(first)) or "")
    monkeypatch.chdir(tmp_path)
    given = [str(card) if word == "tiny" else str(weights) if word == weights.name else word for word in words[1:]]
    assert run(*given).code == 0
    again = load_bundle(tmp_path / "build/again")
    assert [graph.sha256 for graph in again.graphs] == [graph.sha256 for graph in first.graphs]


def test_the_cards_tolerance_comes_first_and_can_fail(export: Run, card: Path, tmp_path: Path) -> None:
    strict = tmp_path / "strict.toml"
    tolerance = "\n[tolerance.coarse]\nmax_rel_error = 1e-6\nmin_cosine = 0.999999\nmin_sqnr_db = 100.0\n"
    strict.write_text(card.read_text(encoding="utf-8") + tolerance, encoding="utf-8")
    done = export("--coarse", model=strict)
    assert done.code == 8
    verdicts = {row["artifact"]: row["verdict"] for row in done.json["parity"]["comparisons"]}
    assert verdicts == {"model.traced.onnx": "pass", "model.onnx": "pass", "model.coarse.onnx": "fail"}


def test_other_verbs_take_a_bundle_of_it(export: Run, run: Run, images: Path, tmp_path: Path) -> None:
    export("--coarse")
    made = tmp_path / "made"
    assert run("verify", made, "--images", images, "--blame").code == 0
    planned = run("plan", made, "--device", "orin-nano", "--json").json
    assert planned["precision"] == "coarse"
    floors = {floor["precision"]: floor["latency_ms"] for floor in planned["devices"][0]["floors"]}
    assert floors["coarse"] == floors["fp16"]  # the same peak, tile and width
    weighed = {choice["options"] for choice in planned["devices"][0]["recommendation"]["choices"]}
    assert {"--coarse", "--fp16", "--int8"} <= weighed
    timed = run("bench", made, "--seconds", "0.1", "--json")
    assert timed.code == 0, timed.err
    assert "model.coarse.onnx" in timed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--coarse", "--int8"), "--int8 and --coarse cannot be used together"),
        (("--coarse", "--relu", "max", "--attention"), "--relu max with --attention"),
        (("--fp16", "--coarse-spare", "Gemm"), "--coarse-spare is for COARSE, and this is an export to FP16"),
    ],
)
def test_what_contradicts_itself_is_refused(export: Run, arguments: tuple[str, ...], message: str) -> None:
    done = export(*arguments)
    assert done.code == 2
    assert message in done.err


def test_a_bundle_of_a_precision_that_is_not_registered_names_it(
    export: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export("--coarse")
    monkeypatch.delitem(PRECISIONS, "coarse")
    with pytest.raises(IntegrityError, match="'coarse' is not a precision that this skdeploy knows: fp32, fp16, "):
        load_bundle(tmp_path / "made")


def test_a_network_without_a_card_gets_its_tolerance(card: Path) -> None:
    assert spec_without_card("x", read_card(card).network, 3).tolerance[toy.COARSE] == toy.COARSE.tolerance


def test_a_cpu_rounds_each_tensor_of_its_type() -> None:
    """1 + 2^-8 and 1.5 * 2^-8: BF16 has 8 bits, so the sum is rounded to even, and a product of it again; by ml_dtypes."""
    bfloat16 = onnx.TensorProto.BFLOAT16
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], "narrow", to=bfloat16),
        helper.make_node("Add", ["narrow", "narrow"], ["sum"], "sum"),
        helper.make_node("Mul", ["sum", "narrow"], ["product"], "product"),
        helper.make_node("Cast", ["product"], ["y"], "y", to=onnx.TensorProto.FLOAT),
    ]
    interface = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [256]) for name in "xy"]
    inner = [helper.make_tensor_value_info(name, bfloat16, [256]) for name in ("narrow", "sum", "product")]
    made = helper.make_model(
        helper.make_graph(nodes, "g", interface[:1], interface[1:], value_info=inner),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )
    x = np.random.default_rng(0).standard_normal(256, np.float32)
    narrow = x.astype(ml_dtypes.bfloat16)
    expected = ((narrow + narrow) * narrow).astype(np.float32)
    assert not np.array_equal(expected, 2 * x * x)
    with open_model(ir.from_proto(made)) as session:
        assert np.array_equal(session.run({"x": x})["y"], expected)
