"""Sentences about INT8 and weight-only INT8 graphs."""

from __future__ import annotations

from skdeploy.bundle.station_facts import RangesFacts, WeightOnlyFacts
from skdeploy.line.stations.calibrate import calibration_notes
from skdeploy.report.int8 import weight_only_text


def test_arithmetic_in_fp32_is_said_where_the_user_asked_for_it_and_not_for_sums() -> None:
    facts = WeightOnlyFacts(fallback="fp16", int8_weights=("a/Conv",), kept_fp32={"a/ReduceMean": "a sum over space"})
    assert "arithmetic in FP16:" in weight_only_text(facts)
    asked = facts.model_copy(update={"kept_fp32": {"a/Conv": "--keep-fp32 a"}})
    assert "arithmetic in FP16, and in FP32 where --keep-fp32 asks:" in weight_only_text(asked)


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
