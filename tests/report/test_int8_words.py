"""Sentences about INT8 and weight-only INT8 graphs."""

from __future__ import annotations

from skdeploy.bundle.station_facts import RangesFacts, WeightOnlyFacts
from skdeploy.line.stations.calibrate import calibration_notes
from skdeploy.line.stations.weight_only import plan_note
from skdeploy.report.int8 import weight_only_text


def test_arithmetic_in_fp32_is_said_where_the_user_asked_for_it_and_not_for_sums() -> None:
    facts = WeightOnlyFacts(fallback="fp16", int8_weights=("a/Conv",), kept_fp32={"a/ReduceMean": "a sum over space"})
    assert "arithmetic in FP16:" in weight_only_text(facts)
    asked = facts.model_copy(update={"kept_fp32": {"a/Conv": "--keep-fp32 a"}})
    assert "arithmetic in FP16, and in FP32 where --keep-fp32 asks:" in weight_only_text(asked)


def test_a_plan_that_kernels_make_larger_is_announced() -> None:
    """The three networks whose plans were measured: 2.7 to 5.0 MB, 3.6 to 5.3 MB, and 57 to 34 MB, which is smaller."""
    fashion, digits, sknet50 = (
        WeightOnlyFacts(
            fallback="fp16",
            int8_weights=tuple(f"{layer}/Conv" for layer in range(layers)),
            weight_bytes_before=saved,
            weight_bytes_after=0,
        )
        for layers, saved in ((41, 298_000), (29, 374_000), (105, 27_000_000))
    )
    (said,) = plan_note(fashion)
    assert "INT8 weights save 0.30 MB" in said
    assert "about 2.67 MB more (65 kB a layer)" in said  # 2.64 MB were measured
    assert len(plan_note(digits)) == 1
    assert plan_note(sknet50) == ()
    assert (
        plan_note(fashion.model_copy(update={"fallback": "fp32"})) == ()
    )  # compared with FP16's plan it is another graph


def test_one_image_is_one_image() -> None:
    said = [calibration_notes(_ranges(images))[-1] for images in (1, 16)]
    assert said[0].startswith("calibration: 1 image is too few")
    assert said[1].startswith("calibration: 16 images are too few")


def _ranges(images: int) -> RangesFacts:
    return RangesFacts(
        station="calibrate",
        images=images,
        dataset="x",
        random=False,
        method="auto",
        chosen="mse",
        scored_images=0,
        tensors=1,
    )
