"""A denoiser that selects kernels, from its weights to the verdict: what FP16 and INT8 cost in PSNR, and the gate both ways.

Measured on 64 held-out crops: noisy 20.6 dB, FP32 30.24 dB (29.61 to 30.86), FP16 loses 0.0001 dB (-0.00004 to 0.0003), INT8
0.024 dB (0.019 to 0.031). The tests use 24, and ask for what follows from the arithmetic.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from skdeploy.accuracy.evaluate import EvaluationOptions
from skdeploy.accuracy.evaluate_quality import evaluate_quality
from skdeploy.accuracy.facts import read_facts
from skdeploy.accuracy.pairs_as_truth import PairsAsTruth
from skdeploy.accuracy.predict_images import write_images
from skdeploy.accuracy.quality import Quality
from skdeploy.accuracy.sensitivity import SensitivityOptions, sensitivity_of
from skdeploy.accuracy.verdict import State, decide_verdict
from skdeploy.backends.onnxruntime import load_graph
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.errors import AccuracyError, UsageError
from skdeploy.core.options import NoOptions
from skdeploy.core.spec import Precision
from skdeploy.line.accuracy_options import AccuracyOptions
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import Export, export, run_line
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.quant.mixed import MixedPrecision, search
from skdeploy.quant.quantize import quantize
from skdeploy.quant.ranges import load_ranges
from skdeploy.report.int8 import sensitivity_findings
from skdeploy.report.terminal import Terminal
from tests.conftest import FAST
from tests.networks.denoising import noisy_pairs, write_pairs
from tests.networks.skff_unet import WEIGHTS

CARD = Path(__file__).parents[1] / "fixtures/denoiser.toml"
PAIRS = 24
SMALL = ("^enlarge", "^shrink", r"^(up|down)\.1")  # units that cost next to nothing in INT8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("denoiser")
    write_pairs(folder / "pairs", *noisy_pairs(PAIRS))
    write_pairs(folder / "calib", *noisy_pairs(32, 9, held_out=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # figures of pairs are kept
        yield folder


def exported(folder: Path, precision: Precision, max_drop: float | None) -> Export:
    calibration = CalibrationOptions(images=folder / "calib/input")
    return run_line(
        ExportOptions(
            "tests.networks.skff_unet:SKFFUNet",
            precision,
            output=folder / precision,
            card=str(CARD),
            weights=str(WEIGHTS),
            trace=FAST,
            target="onnx",
            accuracy=AccuracyOptions(data=folder / "pairs", max_drop=max_drop),
            lowering={precision: Int8Options(calibration=calibration)} if precision is Precision.INT8 else {},
        )
    )


@pytest.fixture(scope="module")
def int8(folder: Path) -> Export:
    return exported(folder, Precision.INT8, None)


def quality_of(done: Export) -> Quality:
    assert isinstance(done.accuracy, Quality)  # a classifier's would be top-1
    return done.accuracy


def test_int8_costs_psnr_and_the_gate_decides_both_ways(int8: Export, folder: Path) -> None:
    quality = evaluate_quality(folder / "int8", EvaluationOptions(folder / "pairs", max_drop=0.01))
    psnr, ssim = quality.drops
    assert (psnr.figure, psnr.decision, ssim.figure, ssim.decision) == ("PSNR", "fail", "SSIM", None)
    # 8 bits of a network with 20 layers cost tenths of a dB, not nothing and not whole ones
    assert 0.01 < psnr.drop_low < psnr.drop < psnr.drop_high < 0.5
    assert [(drop.figure, drop.drop) for drop in quality_of(int8).drops] == [(d.figure, d.drop) for d in quality.drops]
    assert int8.verdict.state is State.FAILED
    assert "model.int8.onnx on onnxruntime drops by" in int8.verdict.text
    with pytest.raises(AccuracyError, match=r"dB of PSNR, 0.01 allowed"):
        quality.check()
    wide = evaluate_quality(folder / "int8", EvaluationOptions(folder / "pairs", max_drop=1.0))
    assert wide.verdict == "pass"
    wide.check()
    assert decide_verdict(read_facts(load_bundle(folder / "int8"))).state is State.VERIFIED


def test_a_budget_among_what_may_be_is_undecided(int8: Export, folder: Path) -> None:
    drop = quality_of(int8).drops[0]
    found = evaluate_quality(
        folder / "int8", EvaluationOptions(folder / "pairs", max_drop=(drop.drop + drop.drop_high) / 2)
    )
    assert found.verdict == "inconclusive"
    assert found.drops[0].images_to_decide is not None
    assert found.drops[0].images_to_decide > PAIRS
    with pytest.raises(AccuracyError, match="too few pairs"):
        found.check()
    found.check(allow_inconclusive=True)
    verdict = decide_verdict(read_facts(load_bundle(folder / "int8")))
    assert verdict.state is State.UNDECIDED
    assert f"a budget of {found.drops[0].passing_budget:g} would pass" in verdict.text


def test_the_figures_are_scikit_images_of_onnx_runtimes_outputs(int8: Export, folder: Path) -> None:
    noisy, clean = noisy_pairs(PAIRS)
    session = onnxruntime.InferenceSession(str(folder / "int8/model.onnx"))
    planes = noisy.transpose(0, 3, 1, 2).astype(np.float32) / 255
    restored = 255 * np.clip(session.run(None, {"input": planes})[0], 0, 1).transpose(0, 2, 3, 1)
    pairs = list(zip(clean.astype(float), restored.astype(float), strict=True))
    psnr = np.mean([peak_signal_noise_ratio(one, other, data_range=255) for one, other in pairs])
    ssim = np.mean([structural_similarity(one, other, data_range=255, channel_axis=2) for one, other in pairs])
    figures = {figure.name: figure for figure in quality_of(int8).artifacts[0].figures}
    # torch's and ONNX Runtime's sums differ in the last of float32's 7 digits
    assert figures["PSNR"].value == pytest.approx(psnr, abs=1e-4)
    assert figures["SSIM"].value == pytest.approx(ssim, abs=1e-5)
    before = np.mean([peak_signal_noise_ratio(one, other) for one, other in zip(clean, noisy, strict=True)])
    assert quality_of(int8).untouched["PSNR"] == pytest.approx(before)
    assert figures["PSNR"].low - before > 7  # what it was trained for: +9.6 dB


def test_the_pair_that_loses_most_is_shown_as_onnx_runtime_computes_it(int8: Export, folder: Path) -> None:
    quality = quality_of(int8)
    assert quality.worst is not None
    assert quality.worst.image == quality.drops[0].worst
    noisy = noisy_pairs(PAIRS)[0][int(Path(quality.worst.image).stem)]
    session = onnxruntime.InferenceSession(str(folder / "int8/model.onnx"))
    (restored,) = session.run(None, {"input": noisy.transpose(2, 0, 1)[None].astype(np.float32) / 255})
    with Image.open(io.BytesIO(base64.b64decode(quality.worst.pictures.reference))) as shown:
        levels = 255 * np.clip(restored[0].transpose(1, 2, 0), 0, 1)
        assert np.abs(np.asarray(shown) - levels).max() <= 0.501  # rounded to 8 bits
    kept = read_facts(load_bundle(folder / "int8")).quality
    assert kept is not None
    assert kept.worst == quality.worst


def test_units_stay_in_the_fallback_until_the_psnr_holds(int8: Export, folder: Path) -> None:
    """On the graph and ranges of the export itself; what is kept is judged anew, by scikit-image."""
    model, ranges = load_graph(folder / "int8/model.onnx"), load_ranges(folder / "int8/ranges.json")
    spec = int8.bundle.manifest.model
    pairs = PairsAsTruth.of(folder / "pairs", spec, None, 6)
    asked = {"keep": SMALL, "dataset": "pairs"}
    noisy, clean = (images[::4] for images in noisy_pairs(PAIRS))

    def psnr(graph: ir.Model) -> NDArray[Any]:
        return psnr_of(ir.to_proto(graph).SerializeToString(), noisy, clean)

    before = psnr(model)
    budget = float(np.mean(before - psnr(quantize(model, spec, ranges, SMALL, half=False).model))) / 2
    found = search(model, spec, ranges, pairs.crops, pairs, budget, **asked)
    assert (found.figure, found.unit, found.images, found.top1) == ("PSNR", "dB", 6, None)
    assert found.kept
    assert found.drop.points <= budget < found.probes[0].drop.points
    after = psnr(quantize(model, spec, ranges, found.keep, half=False).model)
    # ONNX Runtime's optimiser may fold Q/DQ into kernels that round a value to the next step
    assert found.fp32_value == pytest.approx(np.mean(before), abs=1e-4)
    assert found.drop.points == pytest.approx(np.mean(before - after), abs=0.003)
    assert found.drop.standard_error == pytest.approx(np.std(before - after, ddof=1) / np.sqrt(6), rel=0.2)
    assert MixedPrecision.model_validate_json(found.model_dump_json()) == found
    # Of its own results FP32 loses nothing but their rounding, so INT8 is worse whatever is kept.
    restored = restored_by(ir.to_proto(model).SerializeToString(), noisy)
    own = write_pairs(folder / "own", noisy, np.rint(255 * np.clip(restored, 0, 1)).astype(np.uint8))
    pairs = PairsAsTruth.of(own, spec, None, 6)
    with pytest.raises(AccuracyError, match=r"within 0 dB on 6 images of pairs"):
        search(model, spec, ranges, pairs.crops, pairs, 0.0, **asked)


def restored_by(graph: bytes, noisy: NDArray[Any]) -> NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(graph, options)
    restored = session.run(None, {"input": noisy.transpose(0, 3, 1, 2).astype(np.float32) / 255})[0]
    return np.asarray(restored).transpose(0, 2, 3, 1)


def psnr_of(graph: bytes, noisy: NDArray[Any], clean: NDArray[Any]) -> NDArray[Any]:
    levels = 255 * np.clip(restored_by(graph, noisy), 0, 1)
    pairs = zip(clean.astype(float), levels.astype(float), strict=True)
    return np.array([peak_signal_noise_ratio(one, other, data_range=255) for one, other in pairs])


def test_the_cost_of_each_unit_is_in_db_with_pairs_and_noise_alone_without(
    int8: Export, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_targets = sensitivity_of(int8.bundle, SensitivityOptions(folder / "pairs", 5))
    assert (with_targets.figure, with_targets.unit, with_targets.images) == ("PSNR", "dB", 5)
    assert with_targets.fp32.figure is not None
    assert with_targets.all_int8.figure is not None
    # each unit alone costs less than all of them
    costs = [with_targets.fp32.figure - (unit.only_on.figure or 0) for unit in with_targets.units]
    assert max(costs) < with_targets.fp32.figure - with_targets.all_int8.figure
    alone = sensitivity_of(int8.bundle, SensitivityOptions(folder / "pairs/input", 2))
    assert (alone.figure, alone.fp32.figure, alone.images) == ("", None, 2)
    assert {unit.unit for unit in alone.units} == {unit.unit for unit in with_targets.units}
    for report, said in ((with_targets, "PSNR: the change in dB"), (alone, "all but it: SQNR")):
        Terminal().section(sensitivity_findings(report))
        out = capsys.readouterr().out
        assert said in out
        assert "same class" not in out
    assert "PSNR" not in out


@pytest.mark.slow
def test_fp16_costs_next_to_nothing(folder: Path) -> None:
    done = exported(folder, Precision.FP16, 0.01)
    done.check()
    (psnr, _) = quality_of(done).drops
    assert psnr.decision == "pass"
    # 11 bits: an error of 76 dB below white, beside noise that is 30 dB below it
    assert abs(psnr.drop) < 0.005


def test_a_metric_of_the_users_own_judges_a_restoration_too(int8: Export, folder: Path) -> None:
    options = EvaluationOptions(folder / "pairs", max_drop=1.0, metric=f"{__name__}:levels")
    found = evaluate_quality(folder / "int8", options)
    assert (found.metric, found.metric_file) == (f"{__name__}:levels", __file__)
    assert [drop.figure for drop in found.drops] == [f"{__name__}:levels"]
    assert found.verdict == "pass"
    assert 0 < found.drops[0].drop < 1  # of a grey level: more error is worse
    assert __name__ not in (folder / "int8/manifest.json").read_text()


def levels(outputs: dict[str, np.ndarray], target: np.ndarray) -> float:  # type: ignore[type-arg]  # as a user writes it
    """The mean error in grey levels."""
    assert outputs["output"].shape == (3, 64, 64)
    assert target.shape == (64, 64, 3)
    return float(np.abs(255 * outputs["output"].transpose(1, 2, 0) - target).mean())


levels.lower_is_better = True  # type: ignore[attr-defined]  # as a user writes it


def test_predict_writes_what_onnx_runtime_gives_and_overwrites_nothing(
    int8: Export, folder: Path, tmp_path: Path
) -> None:
    done = write_images(folder / "int8", [folder / "pairs/input"], tmp_path / "out")
    assert [file.name for file in sorted((tmp_path / "out").iterdir())] == [f"{n:03}.png" for n in range(PAIRS)]
    session = onnxruntime.InferenceSession(str(folder / "int8/model.onnx"))
    noisy, _ = noisy_pairs(PAIRS)
    planes = noisy[:1].transpose(0, 3, 1, 2).astype(np.float32) / 255
    expected = 255 * np.clip(session.run(None, {"input": planes})[0][0], 0, 1).transpose(1, 2, 0)
    with Image.open(tmp_path / "out/000.png") as image:
        # INT8 is some levels away from FP32: a mean of less than two, where the noise has twenty
        assert np.abs(np.asarray(image, float) - expected).mean() < 2
    assert len(done.written) == PAIRS
    with pytest.raises(UsageError, match=r"000\.png already exists"):
        write_images(folder / "int8", [folder / "pairs/input"], tmp_path / "out")


def test_labels_and_pairs_that_do_not_fit_are_refused_before_the_long_part(folder: Path, tmp_path: Path) -> None:
    asked = ExportOptions(
        "tests.networks.skff_unet:SKFFUNet",
        Precision.FP16,
        output=tmp_path / "out",
        card=str(CARD),
        weights=str(WEIGHTS),
        target="onnx",
        accuracy=AccuracyOptions(data=folder / "pairs/input", max_drop=1),
        lowering={Precision.FP16: NoOptions()},
    )
    with pytest.raises(UsageError, match="has no folder of inputs"):
        export(asked)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def without_card(folder: Path) -> Path:
    """0..1 is assumed."""
    run_line(
        ExportOptions(
            "tests.networks.skff_unet:SKFFUNet",
            Precision.FP16,
            output=folder / "cardless",
            weights=str(WEIGHTS),
            image_size=(64, 64),
            trace=FAST,
            target="onnx",
        )
    )
    return folder / "cardless"


def test_pairs_need_no_card_and_an_assumption_that_is_right_is_judged(without_card: Path, folder: Path) -> None:
    found = evaluate_quality(without_card, EvaluationOptions(folder / "pairs", max_drop=0.5))
    assert (found.verdict, found.drops[0].guessing) == ("pass", "")
    assumed = [assumption.text for assumption in load_bundle(without_card).manifest.assumptions]
    assert "pixels of 0 to 1, images not resized, RGB order" in assumed


def test_a_network_that_does_not_improve_its_inputs_is_not_judged(without_card: Path, folder: Path) -> None:
    """Here the targets are the inputs: any network but the identity is worse than doing nothing."""
    noisy, _ = noisy_pairs(8)
    same = write_pairs(folder / "same", noisy, noisy)
    found = evaluate_quality(without_card, EvaluationOptions(same, max_drop=5))
    assert found.verdict == "inconclusive"
    assert "not better than the inputs as they are" in found.drops[0].sentence
    with pytest.raises(AccuracyError, match=r"accuracy cannot be judged: model\.onnx on onnxruntime reaches"):
        found.check()
    found.check(allow_inconclusive=True)
    verdict = decide_verdict(read_facts(load_bundle(without_card)))
    assert verdict.state is State.UNDECIDED
    assert "not better than the inputs" in verdict.text
    pairs = PairsAsTruth.of(same, load_bundle(without_card).manifest.model, None)
    assert "FP32 reaches 5" in pairs.guessing(np.full((8, 1), 5.0))
