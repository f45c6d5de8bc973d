"""A graph of a bundle has its numbers in files with a digest, and no compiled code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from skdeploy.bundle.folder import bundle_for_writing, load_bundle
from skdeploy.core.errors import IntegrityError
from tests.bundle.recorded import put, recipe
from tests.tiny import head


def elsewhere(name: str = "w") -> TensorProto:
    """A weight in ``other.bin``."""
    tensor = numpy_helper.from_array(np.ones(4, np.float32), name)
    set_external_data(tensor, "other.bin", 0, 16)
    tensor.ClearField("raw_data")
    return tensor


def graph(node: onnx.NodeProto, *weights: TensorProto) -> onnx.GraphProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    return helper.make_graph([node], "g", [x], [y], list(weights))


def constant() -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["y"], value=elsewhere())


def in_weights() -> onnx.ModelProto:
    return helper.make_model(graph(helper.make_node("Add", ["x", "w"], ["y"]), elsewhere()))


def in_a_node() -> onnx.ModelProto:
    return helper.make_model(graph(constant()))


def in_a_branch() -> onnx.ModelProto:
    return helper.make_model(graph(helper.make_node("If", ["c"], ["y"], then_branch=graph(constant()))))


def in_a_function() -> onnx.ModelProto:
    function = helper.make_function("d", "F", ["x"], ["y"], [constant()], [helper.make_opsetid("", 19)])
    return helper.make_model(graph(helper.make_node("F", ["x"], ["y"], domain="d")), functions=[function])


def compiled() -> onnx.ModelProto:
    node = helper.make_node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0, ep_cache_context="a.engine"
    )
    return helper.make_model(graph(node))


def check(folder: Path, model: onnx.ModelProto) -> None:
    with bundle_for_writing(folder, head()) as bundle:
        artifact = put(bundle, recipe("x.onnx", "onnx"), model.SerializeToString())
    load_bundle(folder).check(artifact)


@pytest.mark.parametrize("make", [in_weights, in_a_node, in_a_branch, in_a_function])
def test_weights_in_a_file_without_a_digest_are_refused(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"x\.onnx has weights in other\.bin, and the manifest has no digest"):
        check(tmp_path / "b", make())


def test_compiled_code_in_a_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="EPContext: it would load compiled code"):
        check(tmp_path / "b", compiled())


def test_a_name_with_the_word_is_a_name(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones(4, np.float32), "location")
    node = helper.make_node("Add", ["x", "location"], ["y"], name="EPContext")
    check(tmp_path / "b", helper.make_model(graph(node, weight)))


def test_a_broken_file_with_the_word_is_refused(tmp_path: Path) -> None:
    with bundle_for_writing(tmp_path / "b", head()) as bundle:
        artifact = put(bundle, recipe("x.onnx", "onnx"), b"\xff\xfflocation")
    with pytest.raises(IntegrityError, match="cannot be read as ONNX"):
        load_bundle(tmp_path / "b").check(artifact)
