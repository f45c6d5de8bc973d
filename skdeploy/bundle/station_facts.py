"""Facts that each station records about its file: the manifest keeps them, later stations and reports read them.

``FACTS`` are those that the whole package may read, and that the published schema describes. A new station may have its facts
in its own file: the manifest keeps what it does not know as it is, and ``read_as`` makes it what the station writes.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, ValidationError

from skdeploy.core.architecture import AnyNetworkSpec
from skdeploy.core.errors import first_problem
from skdeploy.core.spec import Assumed, CalibrationMethod, Frozen, Precision, TensorSpec
from skdeploy.engines import COMPILERS
from skdeploy.engines.compatibility import BuiltFor
from skdeploy.engines.proof import PrecisionProof
from skdeploy.images.audit_report import AuditReport

Names = Annotated[tuple[str, ...], Field(strict=False)]
Tensors = Annotated[tuple[TensorSpec, ...], Field(strict=False)]


class StationFacts(Frozen):
    """Facts of one file. ``station`` says which they are; ``inputs`` and ``outputs`` are kept by the artifact, not here."""

    station: str
    inputs: Tensors = Field(default=(), exclude=True)
    outputs: Tensors = Field(default=(), exclude=True)

    def dump(self) -> dict[str, JsonValue]:
        """As JSON, without the station's name: what ``--json`` prints."""
        return self.model_dump(mode="json", exclude={"station"})


class OtherFacts(StationFacts):
    """Facts of a station that this skdeploy does not know."""

    model_config = ConfigDict(extra="allow")


class UnreadFacts(OtherFacts):
    """Facts that this skdeploy cannot read: a hand or a newer version has written them. ``problem`` says where."""

    problem: str = Field(exclude=True)


class WeightsFacts(StationFacts):
    """Of canonical weights: the layout they came in, the network that they fit exactly, and what the layout assumes of it."""

    station: Literal["weights"] = "weights"
    layout: str
    network: AnyNetworkSpec
    notes: Names = ()
    assumed: Assumed = Assumed()


class GraphFacts(StationFacts):
    """Of any ONNX file. ``parser_refusal`` is what TensorRT-RTX says of a graph that it does not take.

    ``fallback``: what an INT8 graph has beside INT8, which decides how it runs; None in any other. ``has_qdq``: whether it
    rounds to INT8 in QuantizeLinear/DequantizeLinear pairs.
    """

    nodes: int = 0
    rank_above_4: Names = ()
    parser_refusal: str = ""
    fallback: Precision | None = None
    has_qdq: bool = False


class TraceFacts(GraphFacts):
    """Of a traced network."""

    station: Literal["trace"] = "trace"


class ReadFacts(GraphFacts):
    """Of an ONNX file made elsewhere."""

    station: Literal["read"] = "read"


class SelectFacts(GraphFacts):
    """Of the search for selective kernel blocks: where they are, and why what looks like one was left."""

    station: Literal["select"] = "select"
    rewritten: Names = ()
    in_deploy_form: Names = ()
    near_misses: Names = ()


class SimplifyFacts(GraphFacts):
    """Of a simplified graph. ``unfolded``: weights that the simplifier did not see, because all together are too large."""

    station: Literal["simplify"] = "simplify"
    unfolded: Names = ()


class HalvedFacts(GraphFacts):
    """Of a graph with FP16 in it: its FP16 tensors, and the nodes that stayed FP32 and why."""

    fp16_tensors: Names = ()
    kept_fp32: dict[str, str] = Field(default_factory=dict)


class HalfFacts(HalvedFacts):
    """Of an FP16 graph: the constants that lost a share of their values to zero."""

    station: Literal["half"] = "half"
    constants_flushed_to_zero: dict[str, float] = Field(default_factory=dict)


class BF16Facts(GraphFacts):
    """Of a BF16 graph: its opset, its BF16 tensors, and the nodes that stayed FP32 and why."""

    station: Literal["bf16"] = "bf16"
    opset: int
    bf16_tensors: Names = ()
    kept_fp32: dict[str, str] = Field(default_factory=dict)


class HeadroomFacts(StationFacts):
    """Of the headroom report: the tensor that comes nearest to the end of FP16, and how many times it fits."""

    station: Literal["headroom"] = "headroom"
    least_headroom: float
    tensor: str


class RangesFacts(StationFacts):
    """Of a ranges file, measured here or given. ``dead_tensors`` were zero on every image.

    ``chosen`` is what the method ``auto`` took, by ``scored_images`` held back; 0 where there were too few.
    """

    station: Literal["calibrate", "ranges"]
    images: int
    dataset: str = ""
    random: bool = False
    method: Annotated[CalibrationMethod | None, Field(strict=False)] = None
    chosen: str = ""
    scored_images: int = 0
    tensors: int = 0
    dead_tensors: Names = ()
    audit: AuditReport | None = None


class MixedFacts(StationFacts):
    """Of the search for the units that must stay out of INT8: their patterns, of how many units, in how many evaluations."""

    station: Literal["mixed"] = "mixed"
    keep: Names
    units: int
    evaluations: int


class Int8Facts(HalvedFacts):
    """Of an INT8 graph: what is INT8 and what share of the multiply-accumulates, what stayed out of it and why.

    ``raised_steps``: output channels by weight whose INT8 step FP16 does not hold.
    """

    station: Literal["int8"] = "int8"
    int8_tensors: int = 0
    shifted_tensors: int = 0
    int8_weights: Names = ()
    int8_macs: float = 0.0
    kept: dict[str, str] = Field(default_factory=dict)
    raised_steps: dict[str, int] = Field(default_factory=dict)


class WeightOnlyFacts(HalvedFacts):
    """Of a graph whose weights alone are INT8: which layers have them, which do not and why, and bytes of those weights in the
    fallback and in INT8, scales included. ``raised_steps`` as of ``Int8Facts``.
    """

    station: Literal["weight-only int8"] = "weight-only int8"
    int8_weights: Names = ()
    kept: dict[str, str] = Field(default_factory=dict)
    raised_steps: dict[str, int] = Field(default_factory=dict)
    weight_bytes_before: int = 0
    weight_bytes_after: int = 0


class TrainedInt8Facts(HalvedFacts):
    """Of an INT8 graph that keeps the scales of a file: what is INT8, what the file left out of it, and what INT8 costs there.

    ``sqnr_to_float_db``: the file against itself without Q/DQ.
    """

    station: Literal["trained int8"] = "trained int8"
    int8_tensors: int = 0
    int8_weights: Names = ()
    int8_macs: float = 0.0
    kept: dict[str, str] = Field(default_factory=dict)
    sqnr_to_float_db: float


INT8_FACTS: Final = (Int8Facts, TrainedInt8Facts)


class LegacyGraphFacts(GraphFacts):
    """Of the graph that a calibration cache belongs to."""

    station: Literal["legacy graph"] = "legacy graph"


class LegacyCacheFacts(StationFacts):
    """Of a calibration cache: for which TensorRT, and of how many tensors."""

    station: Literal["legacy cache"] = "legacy cache"
    tensorrt: str
    tensors: int


class RegroupFacts(GraphFacts):
    """Of merged groups: by convolution, how many times the weights it has now; bytes of weights before and after."""

    station: Literal["regroup"] = "regroup"
    regrouped: dict[str, int] = Field(default_factory=dict)
    weight_bytes_before: int = 0
    weight_bytes_after: int = 0
    not_regrouped: dict[str, str] = Field(default_factory=dict)


class PoolFacts(GraphFacts):
    """Of average pools in place of means: each pool's windows, (height, width), and the means that were left.

    ``lowered``: whether the graph around them is FP16 or INT8, where FP32 pools are the exception.
    """

    station: Literal["average pool"] = "average pool"
    average_pools: dict[
        str, Annotated[tuple[Annotated[tuple[int, int], Field(strict=False)], ...], Field(strict=False)]
    ] = Field(default_factory=dict)
    fp32_pools: Names = ()
    lowered: bool = False
    means_left: dict[str, str] = Field(default_factory=dict)


def _known_compiler(name: str) -> str:
    if name not in COMPILERS:
        raise ValueError(f"this skdeploy has no compiler {name!r}")
    return name


class EngineFacts(StationFacts):
    """Of an engine, as ``engines._build.EngineReport``. ``built_for`` and ``proof`` are None in bundles of earlier versions."""

    model_config = ConfigDict(extra="ignore")

    station: Literal["build"] = "build"
    compiler: Annotated[str, AfterValidator(_known_compiler)]
    version: str = ""
    plan_bytes: int = 0
    runs_on: Names = ()
    profile: dict[str, JsonValue] = Field(default_factory=dict)
    more_profiles: Annotated[tuple[dict[str, JsonValue], ...], Field(strict=False)] = ()
    weights_memory_bytes: int | None = None
    activation_memory_bytes: int | None = None
    workspace_bytes: int | None = None
    tactic_bytes: int | None = None
    layers: int = 0
    layer_types: dict[str, int] = Field(default_factory=dict)
    log_warnings: Names = ()
    seconds: float = 0.0
    built_for: BuiltFor | None = None
    proof: PrecisionProof | None = None

    @property
    def memory(self) -> dict[str, int]:
        """Bytes on the device, by the names of ``EngineReport``, if they are known."""
        names = ("weights_memory_bytes", "activation_memory_bytes", "workspace_bytes", "tactic_bytes")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class ParityFacts(StationFacts):
    """Of a parity report."""

    station: Literal["parity"] = "parity"
    verdict: Literal["pass", "fail", "unproven"]


def _stations(kind: type[StationFacts]) -> tuple[str, ...]:
    """The stations whose facts are of this kind."""
    return get_args(kind.model_fields["station"].annotation)


FACTS: Final[dict[str, type[StationFacts]]] = {
    name: kind
    for kind in (
        WeightsFacts, TraceFacts, ReadFacts, SelectFacts, SimplifyFacts, HalfFacts, BF16Facts, HeadroomFacts, RangesFacts,
        MixedFacts, Int8Facts, WeightOnlyFacts, TrainedInt8Facts, LegacyGraphFacts, LegacyCacheFacts, RegroupFacts, PoolFacts,
        EngineFacts, ParityFacts,
    )
    for name in _stations(kind)
}  # fmt: skip


def read_facts_of(value: Any) -> StationFacts:
    """Facts from a manifest, by the station that they name: one file of which it says nonsense makes no other unreadable.

    Raises pydantic's ValidationError for what names no station.
    """
    if isinstance(value, StationFacts):
        return value
    other = OtherFacts.model_validate_json(json.dumps(value))
    return read_as(FACTS.get(other.station, OtherFacts), other)


def read_as(kind: type[StationFacts], facts: StationFacts) -> StationFacts:
    """The facts as ``kind``, if they are those of a station that writes it and were kept unread; else as they are."""
    if type(facts) is not OtherFacts or facts.station not in _stations(kind):
        return facts
    try:
        return kind.model_validate_json(json.dumps(facts.model_dump()))
    except ValidationError as error:
        return UnreadFacts.model_validate({**facts.model_dump(), "problem": first_problem(error)})
