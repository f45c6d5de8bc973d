"""``skdeploy plan``: from a bundle or a graph to its floors on devices, as one object that is also the JSON."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import onnx_ir as ir
from pydantic import Field

from skdeploy.backends.onnxruntime import load_graph
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.runners import last_graph
from skdeploy.core.architecture import Frozen
from skdeploy.core.errors import UsageError
from skdeploy.core.precision import PRECISIONS, Precision
from skdeploy.core.spec import SampleWord
from skdeploy.images.fed import check_sizes
from skdeploy.planning.devices import Device, Source, device_table, devices_named
from skdeploy.planning.dla import DlaReport, dla_report
from skdeploy.planning.layers import Layer, fuse
from skdeploy.planning.plain import Plain, read_plain, require_size
from skdeploy.planning.recommend import Recommendation, recommend, ways_to_export
from skdeploy.planning.roofline import Cost, costs, floor_ms, least_memory_bytes, types_of, work_of
from skdeploy.planning.tensor_cores import int8_reason
from skdeploy.quant.macs import Size
from skdeploy.quant.weight_only import growth_note, saving

NOTE: Final = (
    "an estimate from peak figures, the best possible: no kernel launches, and every layer reads and writes "
    "the device's memory once; measure with `skdeploy bench` on the device"
)
INT8_GROUPED: Final = (
    "in INT8 a group's tile is 32 channels wide, in FP16 16: below 16 channels a group INT8 is no faster by this model, and "
    "users saw TensorRT run such a convolution group by group (NVIDIA/TensorRT issue 4529)"
)


class LayerPlan(Frozen):
    """A fused layer on a device. ``intensity``: multiply-accumulates a byte."""

    name: str
    module: str
    kind: str
    nodes: tuple[str, ...]
    precision: Precision
    macs: int
    padded_macs: int
    bytes_moved: int
    intensity: float
    bound: Literal["compute", "memory"]
    floor_ms: float


class Floor(Frozen):
    """The whole graph in one precision, on one device."""

    precision: Precision
    latency_ms: float
    images_a_second: float


class DevicePlan(Frozen):
    """``floors`` are of all precisions that the device has, ``layers`` of the graph's own; ``dominating`` are the slowest of
    them. ``lacks``: the precisions that it does not have, in words.

    ``least_memory_bytes``: the weights, and what the layer that has most reads and writes, an estimate as the floors are;
    ``fits`` if the device has that, where a data sheet's GB may be 2^30 bytes.
    """

    name: str
    figures: Device
    source: Source
    floors: tuple[Floor, ...]
    dominating: tuple[LayerPlan, ...]
    layers: tuple[LayerPlan, ...]
    least_memory_bytes: int
    fits: bool
    recommendation: Recommendation
    dla: DlaReport | None
    lacks: tuple[str, ...] = ()


class GroupedConvolution(Frozen):
    """A grouped convolution, and why it is not for INT8; no reason means that it is. Channels are those of a group."""

    name: str
    groups: int
    into_group: int
    out_of_group: int
    int8_reason: str


class PlanReport(Frozen):
    """Everything that ``skdeploy plan`` found. ``macs`` are of one image, or of one ``sample`` of other inputs; ``sizes`` are
    those that free dimensions were given. ``weight_only``: what is to be known of INT8 weights alone in this network's plan.
    """

    graph: str
    precision: Precision
    batch: int
    dynamic: bool
    macs: int
    grouped: tuple[GroupedConvolution, ...]
    devices: tuple[DevicePlan, ...]
    note: str = NOTE
    sample: SampleWord = "image"
    sizes: dict[str, int] = Field(default={})
    weight_only: tuple[str, ...] = ()


def plan(
    path: Path,
    names: Sequence[str],
    *,
    batch: int | None = None,
    size: tuple[int, int] | None = None,
    sizes: Mapping[str, int] | None = None,
    top: int = 5,
) -> PlanReport:
    """Plan a bundle's last graph, or an .onnx file, for devices of the table.

    ``size`` is (height, width) in pixels, for a graph of dynamic size, and ``sizes`` are those of other free dimensions by
    name; a bundle has its card's. ``top``: how many of the slowest layers to pick out. Raises UsageError for anything but a
    bundle or an .onnx file, an unknown device, or a batch or size that the graph does not take; IntegrityError for a broken
    file or a bundle without a graph; ExportError if a shape stays unknown.
    """
    if top < 0:
        raise UsageError(f"--top {top}: must be at least 0")
    devices = devices_named(names)
    bundle = _bundle_at(path)
    graph = path if bundle is None else bundle.check(last_graph(bundle).artifact)
    model = load_graph(graph)
    is_image = _takes_an_image(model) if bundle is None else bundle.manifest.model.takes_images
    free = _free_sizes(model, bundle, sizes or {}, graph)
    taken: Size | None = free if not is_image or sizes else size
    if size is not None:
        if not is_image:
            raise UsageError(
                f"--imgsz is for images; {graph} takes arrays", advice="give --size NAME=N for a free size"
            )
        require_size(model, graph, size)
    elif bundle is not None and is_image and not sizes:
        taken = bundle.manifest.model.one_size
    plain = read_plain(model, graph, batch, taken)
    layers = fuse(plain.model)
    if not layers:
        raise UsageError(f"{graph} only reshapes, so it costs nothing", advice="name a network's graph")
    return PlanReport(
        graph=str(graph),
        precision=plain.precision,
        batch=plain.batch,
        dynamic=plain.dynamic,
        macs=sum(layer.macs for layer in layers) // plain.batch,
        grouped=tuple(_grouped(layer) for layer in layers if layer.groups > 1),
        devices=tuple(_device_plans(devices, plain, layers, top)),
        sample="image" if is_image else "sample",
        sizes=free,
        weight_only=growth_note(*saving(plain.model, types_of(plain, PRECISIONS["weight-only-int8"]).weighted)),
    )


def _takes_an_image(model: ir.Model) -> bool:
    """Whether a graph that no bundle describes has one input of four dimensions."""
    return [len(value.shape or ()) for value in model.graph.inputs] == [4]


def _free_sizes(model: ir.Model, bundle: Bundle | None, sizes: Mapping[str, int], shown: Path) -> dict[str, int]:
    """The sizes of free dimensions: those given, and of a bundle the card's usual ones. Raises UsageError."""
    names = {
        str(dim)
        for value in model.graph.inputs
        for dim in (value.shape or ())[1:]
        if not isinstance(dim, int) and dim.value is not None
    }
    spec = None if bundle is None else bundle.manifest.model
    for name in sizes:
        if name not in names:
            free = f"its free dimensions are {', '.join(sorted(names))}" if names else "leave --size out"
            raise UsageError(f"--size {name}: {shown} has no free dimension of that name", advice=free)
    if spec is None or spec.takes_images:
        return dict(sizes)
    check_sizes(sizes, spec, "--size")
    return {**spec.usual_sizes, **sizes}


def _bundle_at(path: Path) -> Bundle | None:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", advice="name a bundle or an .onnx file") from error
    if is_folder:
        return load_bundle(path)
    if path.suffix != ".onnx":
        raise UsageError(
            f"{path} is not a bundle and not an .onnx file", advice="plan reads a bundle's folder or an .onnx file"
        )
    return None


def _device_plans(names: Sequence[str], plain: Plain, layers: Sequence[Layer], top: int) -> Iterator[DevicePlan]:
    table = device_table()
    types = {each: types_of(plain, each) for each in PRECISIONS.values() if each.peak}
    works = {each: work_of(layers, found) for each, found in types.items()}
    least_memory = least_memory_bytes(layers, types[plain.precision])
    ways = ways_to_export(plain, layers)
    dla = dla_report(plain, layers)
    for name in names:
        device = table.device[name]
        found = {each: costs(work, device) for each, work in works.items()}
        latencies = {each: floor_ms(layer_costs) for each, layer_costs in found.items()}
        rows = tuple(map(_layer_plan, found[plain.precision]))
        yield DevicePlan(
            name=name,
            figures=device,
            source=table.source[device.source],
            floors=tuple(
                Floor(precision=each, latency_ms=latency, images_a_second=1000 * plain.batch / latency)
                for each, latency in latencies.items()
                if each.runs_on(device.compute_capability)
            ),
            lacks=tuple(
                each.lacking(device.title, device.compute_capability)
                for each in latencies
                if not each.runs_on(device.compute_capability)
            ),
            dominating=tuple(sorted(rows, key=lambda row: -row.floor_ms)[:top]),
            layers=rows,
            least_memory_bytes=least_memory,
            fits=least_memory <= device.memory_gb * 2**30,
            recommendation=recommend(ways, device),
            dla=dla if device.dla_cores else None,
        )


def _layer_plan(cost: Cost) -> LayerPlan:
    layer = cost.layer
    return LayerPlan(
        name=layer.name,
        module=layer.module,
        kind=layer.kind,
        nodes=tuple(node.name or "" for node in layer.nodes),
        precision=cost.precision,
        macs=layer.macs,
        padded_macs=cost.padded_macs,
        bytes_moved=cost.bytes_moved,
        intensity=cost.intensity,
        bound=cost.bound,
        floor_ms=cost.floor_ms,
    )


def _grouped(layer: Layer) -> GroupedConvolution:
    return GroupedConvolution(
        name=layer.name,
        groups=layer.groups,
        into_group=layer.into_group,
        out_of_group=layer.out_of_group,
        int8_reason=int8_reason(layer),
    )
