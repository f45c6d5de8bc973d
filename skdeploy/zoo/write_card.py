"""A spec as the text of a card: what ``cards.py`` reads, the other way round."""

from __future__ import annotations

from typing import Final

from skdeploy.core.spec import ModelSpec
from skdeploy.zoo.assumed import COMMENT


def card_text(spec: ModelSpec) -> str:
    """TOML that ``read_card`` makes an equal spec of; keys with their default value are left out, as in the zoo's cards."""
    import tomli_w

    content = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    content["network"] = {"family": spec.network.family} | content["network"]  # a default, but says which table this is
    assumed = content.pop("assumed", None)
    text = tomli_w.dumps(content)
    return text if assumed is None else f"{text}\n{COMMENT}{tomli_w.dumps({'assumed': assumed})}"


TO_FILL_IN: Final = (
    "# The card of {model}. What the network itself shows is filled in; check everything else.\n# "
    'models/README.md describes every key. Optional ones that are not set here:\n# labels = ["cat", "dog"]            '
    '# the name of each class, in the order of the logits\n# class_order = "name"               # how folders '
    '0 .. 11 are counted: "name" as ImageFolder does, or "number"\n# parity_images = "my/images.npz"    # '
    'images for the parity check; default: photographs\n# under [preprocess]: exif = "apply" # turn images '
    "upright, which training loaders do not do\n"
)
OTHER_TO_FILL_IN: Final = (
    "# The card of {model}. What the network itself shows is filled in; check everything else.\n# models/README.md "
    'describes every key. Optional ones that are not set here:\n# parity_images = "my/images.npz"    # images for the '
    "parity check; default: photographs\n# under [tolerance.fp16]: min_psnr_db, min_ssim, min_miou, max_pair_error, "
    "min_equal # limits of the task's figures\n"
)
ARRAYS_TO_FILL_IN: Final = (
    "# The card of {model}. What the network itself shows is filled in; check everything else.\n# models/README.md "
    "describes every key. Optional under [sizes.NAME], of a free dimension:\n# multiple = 8   # sizes that the "
    "network takes; default: 1\n# min = 64, max = 512   # the range of an engine; default: half to twice the usual\n"
)
RESTORES: Final = "image-to-image"
COMMENTS: Final = {
    "task": "classification, image-to-image, segmentation, features or raw",
    "summary": "one line about the network",
    "[network]": "what the network must return; export refuses a card that contradicts it",
    "classes": "number of logits",
    "[input]": "the image that the network takes, in pixels",
    "[preprocess]": "how the training code prepared images for validation: copy its numbers",
    "resize": "the shorter side is resized to this, then the centre is cropped to the input",
    "interpolation": "nearest, bilinear, bicubic or lanczos",
    "mean": "one value per channel, for pixels of 0 to 1",
    "std": "one value per channel, for pixels of 0 to 1",
    "[[inputs]]": "one sample of each input, without the batch",
    "usual": "the size that samples are cut to, and the engine's best",
    "[source]": "where the network comes from, for the report",
    "[tolerance.fp32]": "how far each precision's logits may be from FP32's",
    "max_rel_error": "relative to the largest logit",
    "min_cosine": "for the worst image",
    "min_sqnr_db": "for the worst image",
}


OF_OUTPUTS: Final = {
    "resize": "the shorter side is resized to this; without it, images are only cropped, as restoration needs",
    "[tolerance.fp32]": "how far each precision's outputs may be from FP32's",
    "max_rel_error": "relative to the largest value",
}  # in place of those of networks with classes
OF_IMAGES: Final = {
    "[preprocess]": "how the training code prepared images: pixels of 0 to 1, or of -1 to 1 with mean and std of 0.5",
    "max_rel_error": "relative to the largest value",
}


def card_to_fill_in(spec: ModelSpec, model: str) -> str:
    """The card of ``skdeploy init``: every key that a card of this kind needs, with a comment that says what it is."""
    import tomli_w

    content = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    for key in ("reference", "weights", "labels", "class_order", "parity_images", "training"):
        content.pop(key, None)
    content["network"].pop("total_stride")
    content.pop("outputs", None)  # an export records them anew
    assumed = content.pop("assumed").get("preprocessing")
    comments = COMMENTS | (OF_OUTPUTS if spec.outputs else {}) | (OF_IMAGES if spec.task == RESTORES else {})
    unsaid = set(comments)
    lines = []
    for line in tomli_w.dumps(content).splitlines():
        key = line.split(" = ")[0]
        lines.append(f"{line}  # {comments[key]}" if key in unsaid and not line.endswith("[") else line)
        unsaid.discard(key)
        if line.endswith("[") and key in comments:
            lines[-1] = f"# {key}: {comments[key]}\n{line}"
    # A name may hold a line break, which would end the comment.
    hints = OTHER_TO_FILL_IN if spec.outputs else TO_FILL_IN
    head = (hints if spec.takes_images else ARRAYS_TO_FILL_IN).format(model=" ".join(model.split()))
    text = f"{head}\n" + "\n".join(lines) + "\n"
    return text if assumed is None else f"{text}\n{COMMENT}{tomli_w.dumps({'assumed': {'preprocessing': assumed}})}"
