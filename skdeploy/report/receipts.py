"""Records of devices about the artifacts: latency, and all else that cannot be measured where a bundle is made."""

from __future__ import annotations

from pydantic import JsonValue

from skdeploy.bundle.receipts import FOLDER, Receipt
from skdeploy.report.blocks import (
    Absent,
    Block,
    Cell,
    Facts,
    Fold,
    Section,
    Table,
    Text,
    columns,
    counted,
    digest,
    judged,
    name,
)
from skdeploy.report.findings import Findings
from skdeploy.report.latency import benched, latency_blocks


def receipts_section(found: Findings) -> Section:
    """Every receipt, and the figures of those of a latency. Without a receipt nothing is claimed."""
    title = "Latency and receipts"
    receipts = found.receipts
    blocks: list[Block] = []
    latencies = [receipt for receipt in receipts if receipt.kind == "latency"]
    found_latencies = benched(latencies)
    if found_latencies:
        blocks += latency_blocks(found_latencies)
    read = [one.receipt for one in found_latencies]
    for receipt in (receipt for receipt in latencies if receipt not in read):
        figures = tuple(
            (key.replace("_", " "), _figure(value)) for key, value in receipt.content.items() if _is_plain(value)
        )
        blocks += [
            Text(f"Latency of {receipt.artifact} with {receipt.backend} on {receipt.device.name}:"),
            Facts(figures),
        ]
    if not latencies:
        blocks.append(
            Absent(
                "No receipt, no claim: latency is measured on the device, and this bundle has no receipt of it.",
                f"skdeploy bench {found.shell_folder} --batch 1,8,32 --receipt",
            )
        )
    if receipts:
        words = "A receipt is bound to the artifact's digest. It is not signed: trust it only if you trust the device."
        blocks.append(Fold(counted(len(receipts), "receipt"), (Text(words), _receipts_table(receipts))))
    else:
        blocks.append(Absent("On the device, this records parity:", f"skdeploy verify {found.shell_folder} --receipt"))
    return Section("latency", title, "", tuple(blocks))


def _receipts_table(receipts: tuple[Receipt, ...]) -> Table:
    heads = columns("artifact", "what", "verdict", "device", "backend", "made", "receipt")
    rows = tuple(
        (
            name(receipt.artifact),
            Cell(receipt.kind),
            judged(receipt.verdict),
            Cell(receipt.device.name, note=", ".join(filter(None, (receipt.device.driver, receipt.device.system)))),
            Cell(receipt.backend, note=", ".join(f"{tool} {version}" for tool, version in receipt.runtime.items())),
            Cell(receipt.created[:10], receipt.created),
            digest(receipt.digest),
        )
        for receipt in receipts
    )
    return Table("What devices have recorded", heads, rows, FOLDER)


def _is_plain(value: JsonValue) -> bool:
    return isinstance(value, str | int | float)


def _figure(value: JsonValue) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
