"""Recipes: where they are found, what they may say, and that their images are the ones they were written for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from skdeploy.core.errors import CalibrationError, UsageError
from skdeploy.core.spec import CalibrationMethod
from skdeploy.quant.ranges import Algorithm
from skdeploy.quant.recipe import Recipe, load_recipe, open_images
from skdeploy.zoo.cards import load_card

TOP = Path(__file__).parents[2] / "calibration"
GOOD: dict[str, Any] = {
    "schema": 1,
    "model": "sknet-fashion",
    "images": "pixels.npy",
    "split": "validation",
    "number": 4,
    "method": "minmax",
}


def write(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps({**GOOD, **changes}))
    return path


def pixels(folder: Path, count: int = 6) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    np.save(folder / "pixels.npy", images)
    return images


def test_a_recipe_is_found_by_path_in_the_working_folder_and_among_the_packaged_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    explicit = write(tmp_path / "elsewhere/mine.toml", number=7)
    assert load_recipe(str(explicit))[0].number == 7
    assert load_recipe("fashion")[1] == TOP / "fashion.toml"
    own = write(tmp_path / "calibration/fashion.toml", number=9)
    recipe, path = load_recipe("fashion")
    assert recipe.number == 9
    assert path.resolve() == own


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe named 'fashon'") as error:
        load_recipe("fashon")
    assert error.value.advice == "did you mean fashion?"
    with pytest.raises(UsageError, match="no recipe at"):
        load_recipe(str(tmp_path / "gone.toml"))


def test_what_is_left_out_has_these_defaults(tmp_path: Path) -> None:
    recipe, _ = load_recipe(str(write(tmp_path / "r.toml")))
    assert recipe.method is CalibrationMethod.MINMAX
    assert (recipe.seed, recipe.percentile, recipe.exclude, recipe.images_sha256) == (0, None, (), None)
    assert (recipe.equalize, recipe.bias_correction, recipe.shift, recipe.exact_input) == (True, True, True, True)
    assert (recipe.weight_scales, recipe.note) == ("mse", "")


def test_the_switches_of_a_recipe_are_those_of_the_algorithm_with_the_same_defaults() -> None:
    """A new choice in one of them is a choice in the other."""
    choices = {name: field for name, field in Algorithm.model_fields.items() if name != "version"}
    assert choices.keys() <= Recipe.model_fields.keys()
    for name, field in choices.items():
        assert field.default == Recipe.model_fields[name].default


def test_everything_that_can_be_said_is_read(tmp_path: Path) -> None:
    said: dict[str, Any] = {
        "method": "percentile",
        "percentile": 99.99,
        "seed": 3,
        "exclude": ["gate", r"^stem\."],
        "equalize": False,
        "bias_correction": False,
        "shift": False,
        "exact_input": False,
        "weight_scales": "max",
        "fallback": "fp32",
        "regroup": 4,
        "weight_rounding": "gptq",
        "shift_padded": True,
        "float_skips": True,
        "images_sha256": "0" * 64,
        "note": "why",
    }
    recipe, _ = load_recipe(str(write(tmp_path / "r.toml", **said)))
    assert recipe.model_dump(mode="json", by_alias=True) == {**GOOD, **said}
    assert set(Recipe.model_fields) == {*GOOD, *said} - {"schema"} | {"schema_version"}  # `said` leaves no key out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, r"schema: Input should be 1 \(given 2\)"),
        ({"imags": "x"}, "imags: unknown key, did you mean 'images'?"),
        ({"number": 0}, r"number: .*greater than or equal to 1 \(given 0\)"),
        ({"number": "4"}, "number: Input should be a valid integer"),
        ({"seed": -1}, "seed: "),
        ({"method": "median"}, r"method: Input should be 'auto', .*\(given 'median'\)"),
        ({"method": "percentile"}, "method percentile needs a percentile"),
        ({"percentile": 99.9}, "method minmax takes no percentile"),
        ({"method": "percentile", "percentile": 101.0}, "percentile: "),
        ({"images": "../secret"}, "images: '../secret' is not a path inside its folder"),
        ({"images": "/etc/passwd"}, "images: '/etc/passwd' is not a path inside its folder"),
        ({"exclude": ["("]}, r"exclude\.0: '\(' is not a regular expression"),
        ({"exclude": ["(" * 5000 + ")" * 5000]}, r"exclude\.0: '\(+\.\.\. is not a regular expression"),
        ({"exclude": [""]}, r"exclude\.0: "),
        ({"images_sha256": "abc"}, "images_sha256: "),
        ({"equalize": 1}, "equalize: "),
        ({"shift": "yes"}, "shift: "),
        ({"weight_scales": "min"}, r"weight_scales: .*\(given 'min'\)"),
        ({"split": ""}, "split: "),
    ],
)
def test_a_key_that_makes_no_sense_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe(str(write(tmp_path / "r.toml", **changes)))


@pytest.mark.parametrize("key", sorted(GOOD))
def test_a_key_that_must_be_there_is_named(key: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(tomli_w.dumps({name: value for name, value in GOOD.items() if name != key}))
    with pytest.raises(UsageError, match=f"{key}: missing"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"schema = ", "not valid TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"#" * ((1 << 20) + 1), "at most 1,048,576 are read"),
        (b"x = " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b'images = "a\\u0000b"', "control character in 'a.x00b'"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_recipe(str(tmp_path / "r.toml"))


def test_images_lie_beside_the_recipe_and_their_digest_is_checked(tmp_path: Path) -> None:
    images = pixels(tmp_path)
    digest = hashlib.sha256(repr(images.shape).encode() + images.tobytes()).hexdigest()
    recipe, path = load_recipe(str(write(tmp_path / "r.toml", images_sha256=digest)))
    assert len(open_images(recipe, path)) == 6  # all of them: which 4 are used is the seed's choice
    images[0, 0, 0, 0] ^= 1
    np.save(tmp_path / "pixels.npy", images)
    with pytest.raises(CalibrationError, match="are not the images of the recipe") as error:
        open_images(recipe, path)
    other = hashlib.sha256(repr(images.shape).encode() + images.tobytes()).hexdigest()
    assert digest in error.value.message
    assert other in error.value.message


def test_without_a_digest_any_images_will_do(tmp_path: Path) -> None:
    recipe, path = load_recipe(str(write(tmp_path / "r.toml")))
    with pytest.raises(UsageError, match="no images at"):
        open_images(recipe, path)
    pixels(tmp_path)
    assert len(open_images(recipe, path)) == 6


def test_fewer_images_than_asked_for_are_refused(tmp_path: Path) -> None:
    pixels(tmp_path, 3)
    recipe, path = load_recipe(str(write(tmp_path / "r.toml")))
    with pytest.raises(CalibrationError, match=r"asks for 4 images, but .* has 3"):
        open_images(recipe, path)


@pytest.mark.parametrize("path", sorted(TOP.glob("*.toml")), ids=lambda path: path.stem)
def test_a_committed_recipe_has_its_images_its_digest_and_its_card(path: Path) -> None:
    recipe, _ = load_recipe(str(path))
    assert recipe.images_sha256 is not None
    assert len(open_images(recipe, path)) >= recipe.number
    load_card(recipe.model)


def test_every_key_is_described_where_the_errors_send_the_user() -> None:
    described = (TOP / "README.md").read_text(encoding="utf-8")
    keys = [field.alias or name for name, field in Recipe.model_fields.items()]
    assert [key for key in keys if f"| `{key}` |" not in described] == []
