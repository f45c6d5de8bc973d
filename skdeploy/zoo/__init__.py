"""The networks: one family a module. A new family is its spec, its module, and a line here."""

from __future__ import annotations

from typing import Final

from skdeploy.zoo.family import Family, shuffle_in_words, trunk_in_words

FAMILIES: Final[dict[str, Family]] = {
    "sknet": Family("skdeploy.zoo.sknet:SKNet", trunk_in_words),
    "resnet": Family("skdeploy.zoo.resnet:SKResNet", trunk_in_words),
    "linear_sknet": Family(
        "skdeploy.zoo.linear_sknet:LinearSKNet",
        trunk_in_words,
        forward="ReLU in the branches and at the end of a unit only, batch norm eps 1e-5 and no softmax at the end",
    ),
    "shufflenet_v2": Family("skdeploy.zoo.shufflenet:SKShuffleNetV2", shuffle_in_words),
}
