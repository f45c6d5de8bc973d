"""A spec as the text of a card: what ``cards.py`` reads, the other way round."""

from __future__ import annotations

from skdeploy.spec import ModelSpec
from skdeploy.zoo.assumed import COMMENT


def card_text(spec: ModelSpec) -> str:
    """TOML that ``read_card`` makes an equal spec of; keys with their default value are left out, as in the zoo's cards."""
    import tomli_w

    content = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    content["network"] = {"family": spec.network.family} | content[
        "network"
    ]  # a default too, but it says which table this is
    assumed = content.pop("assumed", None)
    text = tomli_w.dumps(content)
    return text if assumed is None else f"{text}\n{COMMENT}{tomli_w.dumps({'assumed': assumed})}"
