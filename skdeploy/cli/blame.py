"""``skdeploy verify --blame``: find the stage where a bundle goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from skdeploy.core.progress import Progress
    from skdeploy.parity.blame_report import BlameReport

EVIDENCE: Final = "blame"


def blame_bundle(
    folder: Path,
    images: Path | None = None,
    num_images: int = 1,
    *,
    repro: Path | None = None,
    fed: Path | None = None,
    progress: Progress | None = None,
) -> BlameReport:
    """Runs the line of a bundle stage by stage, and keeps what was found as its evidence ``blame``.

    The bundle need not have passed parity: that is when one asks. ``images``: the card's own if None, the first
    ``num_images`` of them. ``repro``: a folder for the smallest graph that shows it. ``fed``: an .npy with what the user's
    own code feeds for these images, float32 (N, C, H, W), to be compared with the card's preprocessing.

    Raises IntegrityError for an altered file, UsageError for images or a ``fed`` that cannot be used.
    """
    import time

    from skdeploy.blame.blame import blame
    from skdeploy.blame.chain import chain_of
    from skdeploy.blame.fed import read_fed
    from skdeploy.bundle.evidence import keep_evidence
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.core.progress import Silent
    from skdeploy.line.parity_images import parity_dataset

    tell = progress or Silent()
    started = time.perf_counter()
    tell.begin(EVIDENCE)
    bundle = load_bundle(folder)
    bundle.check_all()
    spec = bundle.manifest.model
    dataset = parity_dataset(spec, images, num_images)
    pixels = dataset.load(spec)
    report = blame(
        chain_of(bundle),
        pixels,
        spec,
        fed=None if fed is None else read_fed(fed, len(pixels), spec),
        dataset=dataset.name,
        name_of=dataset.name_of,
        repro=repro,
        progress=tell,
    )
    keep_evidence(bundle, EVIDENCE, report, bundle.manifest.artifacts, tell, advice="what is printed is all of it")
    tell.end(EVIDENCE, time.perf_counter() - started, reused=False)
    return report
