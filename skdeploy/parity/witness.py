"""Witnesses of the network: outputs that its author's code saved, or that code itself, run here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from skdeploy.backends.logits import fits
from skdeploy.bundle.manifest import Manifest
from skdeploy.core.architecture import TrunkSpec
from skdeploy.core.errors import UsageError
from skdeploy.core.progress import Progress
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.images.dataset import normalise
from skdeploy.parity.golden import Golden, read_golden
from skdeploy.parity.reference import Author
from skdeploy.parity.report import ParityReport, ReferenceKind
from skdeploy.zoo.assumed import Settled, assumptions_of, settled
from skdeploy.zoo.outputs import are_unnamed, with_outputs_in_order

if TYPE_CHECKING:
    from torch import nn

    from skdeploy.checkpoints.own_module import Shown

Witness = Golden | Author

AT_ONCE: Final = 64  # images that a network in training mode is given here: it takes them all at once
SAME: Final = 1e-2  # of the largest logit: a variance of few values is far less exact than a convolution
HALF: Final = 2e-3  # of the largest logit: FP16 rounds a logit by 2^-11, and as much again an input saved as FP16
BEYOND_CARDS: Final = (
    ". A card cannot describe other activations or another eps of batch norm: for these, export the author's "
    "code itself, package.module:function, or an ONNX file of it"
)
VISIBLE: Final = 1e-3  # of a normalised input: a fifth of a grey level, far above the rounding of float32


def find_witness(
    reference: str | None,
    golden: Path | None,
    spec: ModelSpec,
    checkpoint: Path | None,
    tell: Progress,
    *,
    takes_pixels: bool = False,
) -> Witness | None:
    """Open what ``--reference`` or ``--golden`` names; None without them.

    ``reference`` is ``package.module:function``, which runs here and returns a ``torch.nn.Module``. A ``checkpoint`` under the
    author's keys is loaded into it, each key of it; otherwise the module has to bring its weights. ``takes_pixels``: the
    preprocessing is inside the graph. Raises UsageError for both at once, for a file or module that is not the network's,
    WeightsError for a checkpoint that does not fit.
    """
    if golden is not None:
        if reference is not None:
            raise UsageError(
                "--reference and --golden cannot be used together: both give the outputs to compare with",
                advice="give one of them",
            )
        found = read_golden(golden, spec)
        found.fed(spec)  # what does not fit is told before anything is traced
        if takes_pixels and spec.takes_images and found.images is None:
            raise UsageError(
                f"--golden {found.name} has inputs after preprocessing, but --embed-preprocess puts that into "
                "the graph",
                advice="save `images`, uint8 (N, H, W, C), in the file too",
            )
        return found
    return None if reference is None else _author(reference, spec, checkpoint, tell)


def _author(factory: str, spec: ModelSpec, checkpoint: Path | None, tell: Progress) -> Author:
    from skdeploy.checkpoints.own_module import build_module, load_checkpoint, ready, require_finite

    if ":" not in factory:
        raise UsageError(
            f"--reference {factory} names no function", advice="write package.module:function, such as nets:build"
        )
    tell.note(f"--reference {factory} runs the code of that module here, as your own program would")
    network = build_module(factory)
    own = checkpoint is None or _has_our_keys(checkpoint)
    if not own and checkpoint is not None:
        load_checkpoint(network, checkpoint, factory)
    with_weights = "its own weights" if own else f"the weights in {checkpoint}"
    tell.note(f"{factory} is compared with {with_weights}")
    network = ready(network)
    require_finite(network, factory)
    shapes = _tried(network, spec, factory)
    if spec.outputs and are_unnamed(shapes) and len(shapes) == len(spec.outputs):
        shapes = dict(zip((wanted.name for wanted in spec.outputs), shapes.values(), strict=True))
        network = with_outputs_in_order(network, spec)
    gives, has = _in_words(shapes, spec, factory)
    if gives != has:
        raise UsageError(
            f"--reference {factory} gives {gives}, but {spec.name} has {has}",
            advice="it must return the network that the weights belong to",
        )
    return Author(factory, network)


def _tried(network: nn.Module, spec: ModelSpec, factory: str) -> Shown:
    """Its outputs for two images or samples of the spec."""
    from skdeploy.checkpoints.own_module import tried, tried_arrays

    if not spec.takes_images:
        return tried_arrays(network, spec, f"--reference {factory}")
    channels, height, width = spec.input.shape
    return tried(network, (channels,), (height, width), factory)[1][channels]


def _in_words(shown: Shown, spec: ModelSpec, factory: str) -> tuple[str, str]:
    """The outputs of a module, and those of the spec, in the same words; none where they are the same but for free sizes."""
    from skdeploy.checkpoints.own_module import classes_of, sizes_of

    if not spec.outputs:
        return f"{classes_of(shown, factory)} classes", f"{spec.network.classes} classes"
    wanted: dict[str, tuple[int | str, ...]] = {output.name: output.shape for output in spec.outputs}
    shapes = {name: made.shape for name, made in shown.items()}
    if shapes.keys() == wanted.keys() and all(
        fits(sizes_of(made)[1:], wanted[name][1:]) for name, made in shown.items()
    ):
        return "", ""
    return _shapes_in_words(shapes), _shapes_in_words(wanted)


def _shapes_in_words(shapes: Mapping[str, Sequence[int | str]]) -> str:
    return "; ".join(f"{name} ({', '.join(map(str, ('batch', *shape[1:])))})" for name, shape in shapes.items())


def _has_our_keys(checkpoint: Path) -> bool:
    """Whether a checkpoint is one that ``skdeploy convert`` wrote, whose keys no author's module has."""
    from skdeploy.checkpoints.read import read_checkpoint
    from skdeploy.checkpoints.recognise import OWN_KEYS

    return all(key.startswith(OWN_KEYS) for key in read_checkpoint(checkpoint).tensors)


def kind_of(witness: Witness | None, torch: bool) -> ReferenceKind:
    """Who computes the reference, for a report."""
    if witness is not None:
        return "golden" if isinstance(witness, Golden) else "author"
    return "torch" if torch else "graph"


def settles(witness: Witness | None) -> tuple[Settled, ...]:
    """The assumptions that are confirmed if all artifacts agree with the witness."""
    if witness is None:
        return ()
    if isinstance(witness, Author):
        return ("architecture",)
    return ("architecture", "size", "preprocessing") if witness.images is not None else ("architecture", "size")


def after_proof(manifest: Manifest, report: ParityReport) -> Manifest:
    """The manifest without the assumptions that a passed proof has settled: a settled one is left out, not marked."""
    if not report.settles or report.failures:
        return manifest
    spec = settled(manifest.model, report.settles)
    return manifest.model_copy(update={"model": spec, "assumptions": assumptions_of(spec)})


def likely_cause(
    witness: Witness, report: ParityReport, manifest: Manifest, network: Callable[[], nn.Module | None]
) -> str:
    """Explain why even FP32 does not agree, if there is an explanation; empty where FP32 agrees.

    ``network`` gives ours, with its weights.
    """
    fp32 = [c for c in report.comparisons if c.precision is Precision.FP32]
    if not any(c.verdict == "fail" for c in fp32):
        return ""
    if isinstance(witness, Golden) and witness.looks_like_probabilities(manifest.model):
        return "the saved outputs are probabilities: save the values before the softmax"
    if isinstance(witness, Golden) and ((apart := witness.difference_of_inputs(manifest.model) or 0) > VISIBLE):
        return (
            f"preprocessing: the inputs made from the images differ from the saved ones by up to {apart:.3g}; "
            "correct [preprocess] of the card"
        )
    if isinstance(witness, Golden) and _is_of_training(witness, manifest.model, network()):
        return "the network was in training mode when the outputs were saved: call model.eval() first"
    if isinstance(witness, Golden) and witness.half and _is_within(report, HALF):
        return "the saved logits are FP16, which rounds them: save them in float32"
    own = BEYOND_CARDS if isinstance(manifest.model.network, TrunkSpec) else ""
    texts = [a.text for a in manifest.assumptions if a.about == "architecture" or "preprocessing" in report.settles]
    if texts:
        others = "" if isinstance(witness, Golden) else ". Or the author's code has other weights"
        return f"assumed: {'; '.join(texts)}. Write the right values in a card{others}{own}"
    if isinstance(manifest.model.network, TrunkSpec):
        return (
            "the card's strides, pool, dilations or preprocessing differ from the author's code; or the weights differ"
            + own
        )
    return "the author's code is another network, or has other weights"


def _is_of_training(golden: Golden, spec: ModelSpec, network: nn.Module | None) -> bool:
    """Whether the outputs are those of batch normalisation by the batch itself, which is what training mode gives."""
    if network is None or not isinstance(spec.network, TrunkSpec) or len(golden) > AT_ONCE:
        return False
    import torch

    fed = golden.fed(spec)
    inputs = fed if fed.dtype == np.float32 else normalise(fed.astype(np.uint8), spec.preprocess)
    trained = copy.deepcopy(network).train()
    with torch.no_grad():
        try:
            logits = trained(torch.from_numpy(np.ascontiguousarray(inputs))).numpy()
        except ValueError:  # one value a channel has no variance
            return False
    return bool(np.max(np.abs(logits - golden.logits)) <= SAME * np.max(np.abs(golden.logits)))


def _is_within(report: ParityReport, error: float) -> bool:
    measured = [c.metrics.max_rel_error for c in report.comparisons if c.precision is Precision.FP32 and c.metrics]
    known = [found for found in measured if found is not None]
    return bool(known) and max(known) <= error
