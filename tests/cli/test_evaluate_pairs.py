"""``evaluate`` and ``predict`` of a network that segments, on pictures and masks: files, screens, exit codes, refusals."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from tests.cli.conftest import QUICK, Result, Run
from tests.networks import sk_unet

IMAGES = 12
METRIC = "tests.cli.test_evaluate_pairs:right_pixels"


def right_pixels(outputs: dict[str, np.ndarray], target: np.ndarray) -> float:  # type: ignore[type-arg]  # as users write it
    """The share of pixels with the right class."""
    return float((outputs["output"].argmax(0) == target).mean())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a card and pictures with masks, a border of which nobody judges."""
    folder = tmp_path_factory.mktemp("segmentation")
    (folder / "card.toml").write_text(sk_unet.CARD)
    masks = sk_unet.save_images(folder / "pairs/images", IMAGES, 1000)
    (folder / "pairs/masks").mkdir()
    for number, mask in enumerate(masks):
        mask = mask.copy()
        mask[:2] = 255
        Image.fromarray(mask).save(folder / f"pairs/masks/{number:04}.png")
    return folder


@pytest.fixture(scope="module")
def exported(made: Path) -> Path:
    """In FP16, evaluated at the end with a budget that it meets."""
    import contextlib
    import io
    import sys

    from skdeploy.__main__ import main

    words = ["export", "tests.networks.sk_unet:trained", "--card", made / "card.toml", "--fp16", *QUICK]
    words += ["--data", made / "pairs", "--max-drop", "1", "-o", made / "bundle", "--json"]
    out, before = io.StringIO(), sys.argv
    sys.argv = ["skdeploy", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as end:
            main()
    finally:
        sys.argv = before
    assert not end.value.code
    (made / "export.json").write_text(out.getvalue())
    return made / "bundle"


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def evaluated(run: Run, bundle: Path, made: Path, *words: object) -> Result:
    return run("evaluate", bundle, "--data", made / "pairs", *words)


def iou(bundle: Path, made: Path) -> float:
    """Counted from ONNX Runtime's own outputs, class by class."""
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
    pictures = [np.asarray(Image.open(file)) for file in sorted((made / "pairs/images").iterdir())]
    masks = np.stack([np.asarray(Image.open(file)) for file in sorted((made / "pairs/masks").iterdir())])
    found = session.run(None, {"input": sk_unet.inputs_of(np.stack(pictures)).numpy()})[0].argmax(1)
    judged = masks != 255
    shares = []
    for each in range(len(sk_unet.CLASSES)):
        one, other = (masks == each) & judged, (found == each) & judged
        shares.append((one & other).sum() / (one | other).sum())
    return 100 * float(np.mean(shares))


def test_an_export_ends_with_the_iou_and_its_verdict(run: Run, exported: Path, made: Path) -> None:
    document = json.loads((made / "export.json").read_text())
    accuracy = document["accuracy"]
    (figure,) = accuracy["artifacts"][0]["figures"]
    # torch and ONNX Runtime may give an undecided pixel of 27,000 to the next class
    assert figure["value"] == pytest.approx(iou(exported, made), abs=0.1)
    assert figure["low"] < figure["value"] < figure["high"]
    assert accuracy["drops"][0]["decision"] == "pass"
    assert "Accuracy within budget" in [point["label"] for point in document["verdict"]["points"]]
    jsonschema.validate(document, run("export", "--json-schema").json)


def test_the_json_is_as_its_schema_says_and_junit_and_the_page_say_the_same(
    run: Run, bundle: Path, made: Path, tmp_path: Path
) -> None:
    result = evaluated(run, bundle, made, "--max-drop", 1, "--json", "--junit", tmp_path / "j.xml")
    assert result.code == 0, result.err
    jsonschema.validate(result.json, run("evaluate", "--json-schema").json)
    sentence = f"drops by {result.json['drops'][0]['drop']:+.3g} points of mIoU"
    cases = {case.get("name"): case for case in ET.parse(tmp_path / "j.xml").iter("testcase")}
    ours = cases["mIoU of model.fp16.onnx on onnxruntime against model.onnx on onnxruntime"]
    assert sentence in str(ours.findtext("system-out"))
    assert run("report", bundle, "-o", tmp_path / "page.html").code == 0
    page = re.sub("<[^>]*>", "", (tmp_path / "page.html").read_text())
    assert sentence in page
    assert "Drop against the reference, on the same pairs" in page


@pytest.mark.slow  # another export
def test_a_budget_that_is_broken_ends_with_10(run: Run, bundle: Path, made: Path, tmp_path: Path) -> None:
    """Against a network that calls everything background: its export is a bundle too."""
    model = "tests.cli.test_evaluate_pairs:blank"
    card = ("--card", made / "card.toml", "--images", made / "pairs/images", *QUICK)
    assert run("export", model, *card, "-o", tmp_path / "blank").code == 0
    words = ("--against", bundle, "--max-drop", 1, "--junit", tmp_path / "j.xml")
    result = run("evaluate", tmp_path / "blank", "--data", made / "pairs", *words)
    assert result.code == 10
    assert "accuracy is out of its budget: model.onnx on onnxruntime drops by" in result.err
    assert ET.parse(tmp_path / "j.xml").getroot().get("failures") == "1"


def blank() -> object:
    """Logits that are largest for the background."""
    from torch import nn

    network = sk_unet.trained()
    head = network.head
    assert isinstance(head, nn.Conv2d)  # nn.Module's attributes have no type: the head's is known here
    assert head.bias is not None
    head.bias.data[0] += 1000.0
    return network


def test_the_screen_fits_80_columns(run: Run, bundle: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("skdeploy.report.terminal.LOG_WIDTH", 80)
    result = evaluated(run, bundle, made)
    tables = [line for line in result.out.splitlines() if line.startswith(("artifact", "model."))]
    assert tables
    assert [line for line in tables if len(line) > 80 and "drops" not in line] == []
    assert "mIoU" in result.out


def test_the_users_metric_says_that_code_runs_and_is_not_in_the_manifest(run: Run, bundle: Path, made: Path) -> None:
    result = evaluated(run, bundle, made, "--metric", METRIC, "--json")
    assert result.code == 0, result.err
    assert f"running your code: --metric {METRIC} from {__file__}" in result.err
    assert 0.5 < result.json["artifacts"][0]["figures"][0]["value"] <= 1
    assert METRIC not in (bundle / "manifest.json").read_text()


def test_a_metric_in_a_file_of_options_is_refused(
    run: Run, bundle: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "skdeploy.toml").write_text(f'[evaluate]\nmetric = "{METRIC}"\n')
    result = evaluated(run, bundle, made)
    assert result.code == 2
    assert "runs code and so must be typed" in result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--class-order", "name"), "--class-order is for accuracy against class labels"),
        (("--num-images", 1), "1 pair is too few"),
        (("--confidence", 99.99), "at most 99.9 for mIoU"),
        (("--metric", "nowhere"), "must be module:function"),
    ],
)
def test_options_that_do_not_fit_pairs_are_refused(
    words: tuple[object, ...], said: str, run: Run, bundle: Path, made: Path
) -> None:
    result = evaluated(run, bundle, made, *words)
    assert result.code == 2
    assert said in result.err


def test_masks_of_which_nothing_is_judged_pass_no_budget(run: Run, bundle: Path, made: Path, tmp_path: Path) -> None:
    """0 % against 0 % is a drop of 0."""
    shutil.copytree(made / "pairs/images", tmp_path / "pairs/images")
    (tmp_path / "pairs/masks").mkdir()
    for image in (made / "pairs/masks").iterdir():
        Image.fromarray(np.full(np.asarray(Image.open(image)).shape, 255, np.uint8)).save(
            tmp_path / "pairs/masks" / image.name
        )
    result = run("evaluate", bundle, "--data", tmp_path / "pairs", "--max-drop", 1)
    assert result.code == 2
    assert "no pixel of any mask is judged" in result.err


def test_predict_writes_masks_that_evaluate_reads(run: Run, bundle: Path, made: Path, tmp_path: Path) -> None:
    """Masks of the network itself are right in every pixel."""
    shutil.copytree(made / "pairs/images", tmp_path / "own/images")
    result = run("predict", bundle, tmp_path / "own/images", "-o", tmp_path / "own/masks", "--json")
    assert result.code == 0, result.err
    jsonschema.validate(result.json, run("predict", "--json-schema").json)
    assert len(result.json["written"]) == IMAGES
    figures = run("evaluate", bundle, "--data", tmp_path / "own", "--artifact", "model.fp16.onnx", "--json")
    assert figures.json["artifacts"][-1]["figures"][0]["value"] == 100
    again = run("predict", bundle, tmp_path / "own/images", "-o", tmp_path / "own/masks")
    assert again.code == 2
    assert "already exists" in again.err
    assert run("predict", bundle, tmp_path / "own/images", "-o", tmp_path / "own/masks", "--overwrite").code == 0
    inside = run("predict", bundle, tmp_path / "own/images", "-o", tmp_path / "own/images", "--overwrite")
    assert "is one of the inputs" in inside.err


def test_predict_without_a_folder_says_where_to_write(run: Run, bundle: Path, made: Path) -> None:
    result = run("predict", bundle, made / "pairs/images")
    assert result.code == 2
    assert "give --output FOLDER" in result.err


@pytest.mark.parametrize(
    "metric",
    [(), pytest.param(("--metric", METRIC), marks=pytest.mark.slow)],  # the same parts, with another figure
)
def test_parts_and_workers_give_the_figures_of_one_run(
    metric: tuple[str, ...], run: Run, bundle: Path, made: Path, tmp_path: Path
) -> None:
    command = ("evaluate", bundle, "--data", made / "pairs", "--batch", 2, *metric)

    def figures(result: Result) -> dict[str, object]:
        assert result.code == 0, result.err
        return {key: value for key, value in result.report.items() if key not in ("seconds", "reused")}

    whole = figures(run(*command, "--fresh", "--json"))
    pattern = tmp_path / "part-*"
    for index in (3, 1, 2):
        assert run(*command, "--shard", f"{index}/3", "-o", tmp_path / f"part-{index}").code == 0
    assert figures(run(*command, "--parts", pattern, "--json")) == whole
    if metric:
        done = run(*command[:-2], "--parts", pattern)  # the task's own figures are of other parts
        assert (done.code, "was made with other options:\n  --metric" in done.err) == (2, True)
        assert figures(run(*command, "--workers", 2, "--json")) == whole


def test_parts_of_other_pairs_are_refused_by_name(run: Run, bundle: Path, made: Path, tmp_path: Path) -> None:
    pairs = Path(shutil.copytree(made / "pairs", tmp_path / "pairs"))
    command = ("evaluate", bundle, "--data", pairs)
    for index in (1, 2):
        assert run(*command, "--shard", f"{index}/2", "-o", tmp_path / f"part-{index}").code == 0
    shutil.copy(pairs / "masks/0001.png", pairs / "masks/0000.png")
    done = run(*command, "--parts", tmp_path / "part-*")
    assert (done.code, "part-1 was made of other data: " in done.err) == (2, True)
    (tmp_path / "part-2").unlink()
    done = run(*command, "--parts", tmp_path / "part-*")
    assert (done.code, "1 of 2 parts are missing: shard 2/2" in done.err) == (2, True)
