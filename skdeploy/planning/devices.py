"""The table of devices: peak figures with their sources, from devices.toml."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError, computed_field, model_validator

from skdeploy.core.architecture import Frozen
from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.spec import Precision

ALL: Final = "all"
TABLE: Final = "devices.toml"

LABELS: Final = {
    "fp32_tflops": "FP32",
    "fp16_tflops": "FP16",
    "int8_tops": "INT8",
    "bandwidth_gb_s": "GB/s",
    "memory_gb": "GB",
    "dla_int8_tops": "DLA's INT8",
}

Positive = Annotated[float, Field(gt=0)]


class Source(Frozen):
    """A page whose text was read; its title says so if it is a third party's, or a copy of a document of NVIDIA's."""

    title: str
    url: Annotated[str, Field(pattern="^https://")]


class Evidence(Frozen):
    """The evidence of a figure, one of three: ``read`` is the name of the source in which it stands, ``derived`` from what it
    follows, ``memory`` why it is believed though no page was found.

    ``how``: what was done to a figure that was read. ``of``: the sources of what a figure is derived from.
    """

    read: str = ""
    derived: str = ""
    memory: str = ""
    how: str = ""
    of: Annotated[tuple[str, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _is_one_of_three(self) -> Evidence:
        if sum(map(bool, (self.read, self.derived, self.memory))) != 1:
            raise ValueError("evidence is one of read, derived and memory")
        if self.how and not self.read:
            raise ValueError("how requires a figure that was read")
        if self.of and not self.derived:
            raise ValueError("of requires a figure that is derived")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources."""
        return (self.read,) if self.read else self.of


class FigureEvidence(Frozen):
    """The evidence of a device's figures, by their names."""

    fp32_tflops: Evidence
    fp16_tflops: Evidence
    int8_tops: Evidence
    bandwidth_gb_s: Evidence
    memory_gb: Evidence
    dla_int8_tops: Evidence | None = None

    def items(self) -> list[tuple[str, Evidence]]:
        """Each figure that has evidence, in the order of the table."""
        named = ((name, getattr(self, name)) for name in type(self).model_fields)
        return [(name, evidence) for name, evidence in named if evidence is not None]


class Device(Frozen):
    """Peaks of a device: dense operations a second, two for a multiply-accumulate, and bytes a second of its memory.

    ``source`` is the most informative source; ``evidence`` has each figure's own. ``about``: what the table cannot say.
    ``jetson_image``: the container image with JetPack's TensorRT, docs/how-to/docker.md; empty unless the device is a Jetson.
    """

    title: str
    source: str
    fp32_tflops: Positive
    fp16_tflops: Positive
    int8_tops: Positive
    bandwidth_gb_s: Positive
    memory_gb: Positive
    compute_capability: Annotated[str, Field(pattern=r"^\d+\.\d$")]
    dla_cores: Annotated[int, Field(ge=0)] = 0
    dla_int8_tops: Annotated[float, Field(ge=0)] = 0.0  # of all cores together
    about: str = ""
    jetson_image: str = ""
    evidence: FigureEvidence

    @model_validator(mode="after")
    def _a_dla_has_its_figure(self) -> Device:
        if not bool(self.dla_cores) == bool(self.dla_int8_tops) == (self.evidence.dla_int8_tops is not None):
            raise ValueError("dla_cores, dla_int8_tops and its evidence go together")
        return self

    @computed_field  # type: ignore[prop-decorator]  # mypy 1.x knows no decorated property; pydantic's documentation says so
    @property
    def note(self) -> str:
        """The footnote: what the device's figures mean, and which of them stand on no page as they are."""
        found = [(LABELS[name], evidence) for name, evidence in self.evidence.items()]
        parts = [self.about] if self.about else []
        for kind, words in (("how", "read"), ("derived", "derived"), ("memory", "from memory, no page found")):
            parts += [f"{label} {words}: {text}" for label, evidence in found if (text := getattr(evidence, kind))]
        return "; ".join(parts) or "every figure stands on a page as it is here"

    def macs_a_second(self, precision: Precision) -> float:
        """Multiply-accumulates a second at the peak."""
        return float(getattr(self, precision.peak)) * 1e12 / 2

    @property
    def bytes_a_second(self) -> float:
        return self.bandwidth_gb_s * 1e9


class DeviceTable(Frozen):
    """The whole file."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    source: dict[str, Source]
    device: dict[str, Device]


def parse_devices(text: str, shown: str = TABLE) -> DeviceTable:
    """Raises IntegrityError for what is not TOML, has an unknown key or names no source."""
    try:
        table = DeviceTable.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise IntegrityError(f"{shown} is not a table of devices: {error}", advice="reinstall skdeploy") from error
    for name, device in table.device.items():
        for source in (device.source, *(each for _, evidence in device.evidence.items() for each in evidence.sources)):
            if source not in table.source:
                raise IntegrityError(
                    f"{shown}: the source {source!r} of {name} is not in the file", advice="reinstall skdeploy"
                )
    return table


@cache
def device_table() -> DeviceTable:
    """The packaged table."""
    return parse_devices(resources.files("skdeploy.planning").joinpath(TABLE).read_text(encoding="utf-8"))


def device_named(given: str) -> tuple[str, Device]:
    """The one device that a text names, with its name in the table. Raises UsageError for none, or several."""
    names = devices_named((given,))
    if len(names) != 1:
        raise UsageError(f"{given!r} names {len(names)} devices, and one is needed", advice=_known_names(""))
    return names[0], device_table().device[names[0]]


def devices_named(given: Sequence[str]) -> tuple[str, ...]:
    """Names of the table, in the order given and each once. ``all`` is every one of the table.

    A text may hold several, with commas, in any case, with spaces or underscores for hyphens. Raises UsageError for none, and
    for an unknown one, with those that are like it.
    """
    known = device_table().device
    words = [word for text in given for word in text.split(",")]
    chosen: dict[str, None] = {}
    for word in words:
        name = re.sub(r"[\s_]+", "-", word.strip().lower())
        if name == ALL:
            chosen |= dict.fromkeys(known)
        elif name in known:
            chosen[name] = None
        else:
            raise UsageError(f"there is no device {word.strip()!r}", advice=_known_names(name))
    if not chosen:
        raise UsageError("no device is given", advice=_known_names(""))
    return tuple(chosen)


def _known_names(near: str) -> str:
    """The names of the table, after a guess at what was meant: names that hold ``near``, else those spelt like it."""
    known = list(device_table().device)
    holding = [name for name in known if near in name] if near else []
    alike = holding or difflib.get_close_matches(near, known, n=3, cutoff=0.5)
    guess = f"did you mean {', '.join(alike)}? " if alike else ""
    return f"{guess}known devices: {', '.join(known)}"
