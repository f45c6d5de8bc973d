"""``skdeploy init``: a card to fill in, for an ONNX file or a module of the user's own."""

from __future__ import annotations

from pathlib import Path

from skdeploy.core.errors import UsageError
from skdeploy.core.files import write_error
from skdeploy.core.spec import ModelSpec
from skdeploy.line.options import ExportOptions
from skdeploy.line.sources import CardSource, find_source
from skdeploy.zoo.write_card import card_to_fill_in


def init_card(model: str, output: Path | None, image_size: tuple[int, int] | None = None) -> tuple[Path, ModelSpec]:
    """Write the card of ``model`` and return its path and spec: all that the network shows, and ImageNet's preprocessing.

    Raises UsageError: ``model`` is a card, ``output`` is there already or is not a .toml file; and as ``find_source``.
    """
    if not model.endswith(".onnx") and (":" not in model or model.endswith(".toml")):
        raise UsageError(
            f"{model} is not an ONNX file or a package.module:function",
            advice="networks of the zoo have cards (`skdeploy models`); for a checkpoint, `skdeploy convert` writes "
            "one",
        )
    path = output or Path(Path(model).stem + ".toml" if model.endswith(".onnx") else f"{model.rpartition(':')[2]}.toml")
    if path.suffix != ".toml":
        raise UsageError(f"{path}: a card's name must end in .toml", advice=f"-o {path}.toml")
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} already exists; init overwrites nothing", advice="choose another name with -o")
    source = find_source(ExportOptions(model, image_size=image_size))
    assert not isinstance(source, CardSource)  # the names of cards were refused above
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(card_to_fill_in(source.spec, model))
    except OSError as error:
        raise write_error(path, error) from error
    return path, source.spec
