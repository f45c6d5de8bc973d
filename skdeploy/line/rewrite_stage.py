"""The station that rewrites the last graph for hardware: the same function in a form that suits some devices."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, Product, Stage
from skdeploy.core.spec import Precision
from skdeploy.line.options import ExportOptions
from skdeploy.line.stages import GRAPH_TOOLS, write_graph


def rewrite(bundle: Bundle, graph: Artifact, options: ExportOptions) -> Stage:
    """The rewrites that were asked for, on the lowered graph, which stays in the bundle to be compared with."""

    def make(path: Path) -> Product:
        from skdeploy.backends.onnxruntime import load_graph
        from skdeploy.passes.average_pool import AveragePoolForMean
        from skdeploy.passes.regroup import Regroup

        model = load_graph(bundle.check(graph))
        details: dict[str, JsonValue] = {}
        if options.regroup is not None:
            regroup = Regroup(options.regroup)
            model = regroup(model).model
            before = sum(merged.weight_bytes for merged in regroup.merged)
            after = sum(merged.weight_bytes * merged.factor for merged in regroup.merged)
            details |= {
                "regrouped": {merged.node: merged.factor for merged in regroup.merged},
                "regrouped_weight_bytes": [before, after],
                "not_regrouped": dict(regroup.declined),
            }
        if options.gap is not None:
            pools = AveragePoolForMean()
            model = pools(model).model
            details |= {
                "average_pools": {name: [list(one) for one in row] for name, row in pools.windows.items()},
                "fp32_pools": list(pools.single),
                "means_left": dict(pools.declined),
            }
        if "fallback" in graph.details:
            details["fallback"] = graph.details["fallback"]  # what an INT8 graph has beside INT8 decides how it runs
        return write_graph(model, path, bundle.manifest.model, **details)

    return Stage(
        name="rewrite",
        output=f"{graph.path.removesuffix('.onnx')}.rewritten.onnx",
        format="onnx",
        precision=graph.precision,
        parents={graph.path: graph.sha256},
        options={"regroup": options.regroup, "gap": options.gap},
        tools=(*GRAPH_TOOLS, "numpy"),
        make=make,
    )


def rewrite_notes(rewritten: Artifact) -> tuple[str, ...]:
    """What was rewritten and what was left, with the reasons, in words."""
    details, notes = rewritten.details, []
    factors, sizes = details.get("regrouped"), details.get("regrouped_weight_bytes")
    if isinstance(factors, dict) and isinstance(sizes, list):
        before, after = (int(str(size)) for size in sizes)
        counts = ", ".join(sorted({f"{factor}x" for factor in factors.values()}))
        notes.append(
            f"regrouped: {len(factors)} convolutions, each with {counts} the weights and multiply-accumulates: "
            f"{before:,} bytes of weights became {after:,}"
        )
        notes += _left("not regrouped", details.get("not_regrouped"))
    pools, single = details.get("average_pools"), details.get("fp32_pools")
    if isinstance(pools, dict):
        notes.append(f"average pools: for {len(pools)} means over the map, {_windows(pools)}")
        notes += _left("mean left as it is", details.get("means_left"))
        if isinstance(single, list) and single and rewritten.precision is not Precision.FP32:
            notes.append(
                f"the pools of {len(single)} means stay FP32, as the gate's statistics must: a DLA leaves them to the GPU"
            )
    return tuple(notes)


def _windows(pools: dict[str, JsonValue]) -> str:
    """The distinct windows, and whether one is too large for a DLA."""
    from skdeploy.passes.average_pool import LARGEST

    rows = dict.fromkeys(tuple(_pair(window) for window in row) for row in pools.values() if isinstance(row, list))
    shown = ", ".join(" then ".join(f"{height}x{width}" for height, width in row) for row in rows)
    large = any(size > LARGEST for row in rows for window in row for size in window)
    return f"{shown}; DLA has none above {LARGEST}" if large else shown


def _pair(window: JsonValue) -> tuple[int, int]:
    assert isinstance(window, list)  # written by the stage above
    height, width = (int(str(size)) for size in window)
    return height, width


def _left(what: str, reasons: JsonValue) -> list[str]:
    return [f"{what}, {node}: {reason}" for node, reason in reasons.items()] if isinstance(reasons, dict) else []
