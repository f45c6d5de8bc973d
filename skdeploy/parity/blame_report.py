"""Where the line goes wrong: the contents of ``evidence/blame.json``, and the same in words."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from skdeploy.backends.metrics import decibels_text
from skdeploy.core.spec import Frozen, Precision, SampleWord
from skdeploy.parity.cause import Kind

StageVerdict = Literal["reference", "pass", "fail", "unproven"]


class StageResult(Frozen):
    """One stage's logits against those of the stage it was made from, ``before``, and against the first of the line.

    SQNR in dB, of the worst image; None where there is none, since logits are not finite or the stage cannot run here.
    ``problems`` are what its precision cannot explain, ``reason`` is why it is unproven.
    """

    stage: str
    precision: Precision
    verdict: StageVerdict
    before: str | None = None
    sqnr_before_db: float | None = None
    sqnr_first_db: float | None = None
    problems: Annotated[tuple[str, ...], Field(strict=False)] = ()
    reason: str = ""


class LayerResult(Frozen):
    """One tensor of the guilty stage against the same one of the stage before; SQNR in dB, None where not finite.

    ``own_db``: with what it is made of taken from the stage before, so that this is its own error and no other. ``run_db``: as
    the stage runs, with all errors before it. ``inputs_db``: ``run_db`` of the worst tensor that it is made of.
    """

    tensor: str
    module: str
    own_db: float | None
    run_db: float | None
    inputs_db: float | None


class BlamedTensor(LayerResult):
    """The first tensor whose own error is more than its precision explains, and what that error looks like.

    ``reference`` is its name in the stage before, ``node`` and ``operator`` make it.
    """

    reference: str
    node: str
    operator: str
    cause: Kind
    words: str


class BlameReport(Frozen):
    """The stages of the line in order, the first that fails, and inside it the tensor.

    ``first`` names the stage that all are measured against. ``guilty`` is a stage's name, or ``preprocessing``, then
    ``fed_to`` names the stage that is fed wrongly. ``image`` is the one whose inner tensors were compared. ``note`` says why no
    tensor is blamed in a guilty stage, or no graph was saved. ``repro`` is the folder of the smallest graph that shows it.
    """

    model: str
    dataset: str
    images: int
    first: str
    stages: Annotated[tuple[StageResult, ...], Field(strict=False)]
    guilty: str | None = None
    fed_to: str | None = None
    image: str | None = None
    sample: SampleWord = "image"
    tensor: BlamedTensor | None = None
    layers: Annotated[tuple[LayerResult, ...], Field(strict=False)] = ()
    floor_db: float | None = None
    note: str = ""
    repro: str | None = None

    @property
    def verdict(self) -> str:
        """The conclusion, in a sentence or two."""
        from skdeploy.passes.preprocess import MODULE as PREPROCESS  # with onnx-ir, which reading a bundle needs not

        if self.guilty is None:
            unproven = [stage.stage for stage in self.stages if stage.verdict == "unproven"]
            return "no stage is to blame" + (f"; not run here: {', '.join(unproven)}" if unproven else "")
        if self.fed_to is not None:
            what = self.tensor.words if self.tensor else self.note
            return f"the preprocessing is to blame: the input of {self.fed_to} is not the card's; {what}"
        if self.tensor is None:
            return f"{self.guilty} is to blame: {self.note}"
        blamed = self.tensor
        part = "the preprocessing, " if blamed.module == PREPROCESS else ""
        inputs, run, own = map(decibels_text, (blamed.inputs_db, blamed.run_db, blamed.own_db))
        return (
            f"{self.guilty} is to blame, and in it {part}module {blamed.module or '(top level)'}, tensor {blamed.tensor} "
            f"({blamed.operator} {blamed.node}): its inputs are {inputs}, it is {run}, "
            f"and {own} with exact inputs; {blamed.words}"
        )
