"""Small classifiers, each around one operator whose schema says something particular of types."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.graphs.small_files import model_of, node

Array = np.ndarray
HALF, FLOAT, BOOL, INT64 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
CHANNELS, SIZE, CLASSES = 4, 6, 3


class Middle:
    """Nodes that make ``z`` of ``b``, both (N, 4, 6, 6), and their constants."""

    def __init__(self, *nodes: onnx.NodeProto, opset: int = 19, **constants: Array) -> None:
        self.nodes, self.opset, self.constants = nodes, opset, constants


def classifier(middle: Middle) -> onnx.ModelProto:
    """Conv, Relu, the middle, Conv, mean and matrix product: (N, 3, 6, 6) to (N, 3). Its weights are FP16 numbers."""
    generator = np.random.default_rng(0)

    def weight(*shape: int) -> Array:
        spread = (2 / np.prod(shape[1:])) ** 0.5
        return (generator.standard_normal(shape) * spread).astype(np.float16).astype(np.float32)

    constants = {
        "w1": weight(CHANNELS, 3, 3, 3),
        "w2": weight(CHANNELS, CHANNELS, 1, 1),
        "fc": weight(CHANNELS, CLASSES),
        **middle.constants,
    }
    nodes = [
        node("Conv", "input", "w1", "a", name="stem/Conv", pads=[1] * 4),
        node("Relu", "a", "b", name="stem/Relu"),
        *middle.nodes,
        node("Conv", "z", "w2", "d", name="last/Conv"),
        node("GlobalAveragePool", "d", "e", name="last/GlobalAveragePool"),
        node("Flatten", "e", "flat", name="last/Flatten"),
        node("MatMul", "flat", "fc", "logits", name="classifier/MatMul"),
    ]
    for index, one in enumerate(middle.nodes):
        one.name = f"middle/{one.op_type}_{index}"
    shapes = {"input": [2, 3, SIZE, SIZE]}, {"logits": [2, CLASSES]}
    return model_of(nodes, *shapes, constants, opset=middle.opset)


def pixels() -> Array:
    return np.random.default_rng(1).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)


def _branch(operator: str, inputs: list[str], name: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(name, FLOAT, [2, CHANNELS, SIZE, SIZE])
    return helper.make_graph([node(operator, *inputs, name)], name, [], [output])


def _loop_body() -> onnx.GraphProto:
    """Adds ``b``, from outside, and a constant of its own."""
    carried = [2, CHANNELS, SIZE, SIZE]
    return helper.make_graph(
        [
            node("Identity", "more", "again"),
            node("Constant", "own", value=helper.make_tensor("own", FLOAT, [], [0.5])),
            node("Mul", "carried", "own", "less"),
            node("Add", "less", "b", "next"),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", INT64, []),
            helper.make_tensor_value_info("more", BOOL, []),
            helper.make_tensor_value_info("carried", FLOAT, carried),
        ],
        [helper.make_tensor_value_info("again", BOOL, []), helper.make_tensor_value_info("next", FLOAT, carried)],
    )


def _shape(*sizes: int) -> Array:
    return np.array(sizes, np.int64)


FOURTH, TENTH = np.float32(0.25), np.float32(0.1)
FLOAT_MAX = np.float32(np.finfo(np.float32).max)
ZEROS = helper.make_tensor("zeros", FLOAT, [1], [0.5])

# Each row sees itself and those before it: the mask of a causal attention.
CAUSAL = np.where(np.tri(SIZE, dtype=np.bool_), 0, -np.inf).astype(np.float32)

MIDDLES: dict[str, Middle] = {
    "mask that is added": Middle(
        node("Add", "b", "mask", "m"), node("Softmax", "m", "s"), node("MatMul", "s", "b", "z"), mask=CAUSAL
    ),
    "mask that is chosen": Middle(
        node("Where", "seen", "b", "no", "m"),
        node("Softmax", "m", "s"),
        node("MatMul", "s", "b", "z"),
        seen=CAUSAL == 0,
        no=np.float32(-np.inf),
    ),
    "comparison": Middle(node("Greater", "b", "limit", "m"), node("Where", "m", "b", "limit", "z"), limit=FOURTH),
    "comparison with more than FP16 has": Middle(
        node("Less", "b", "limit", "m"), node("Where", "m", "b", "zero", "z"), limit=np.float32(1e9), zero=np.float32(0)
    ),
    "resize": Middle(
        node("Resize", "b", "", "up", "u", mode="nearest"),
        node("MaxPool", "u", "z", kernel_shape=[2, 2], strides=[2, 2]),
        up=np.array([1, 1, 2, 2], np.float32),
    ),
    "resize with a region": Middle(
        node(
            "Resize", "b", "roi", "", "sizes", "z", mode="linear", coordinate_transformation_mode="tf_crop_and_resize"
        ),
        roi=np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32),
        sizes=_shape(2, CHANNELS, SIZE, SIZE),
    ),
    "celu": Middle(node("Celu", "b", "z")),
    "zeros of a shape": Middle(node("Shape", "b", "s"), node("ConstantOfShape", "s", "o"), node("Add", "b", "o", "z")),
    "numbers of a shape": Middle(
        node("Shape", "b", "s"), node("ConstantOfShape", "s", "o", value=ZEROS), node("Add", "b", "o", "z")
    ),
    "identity matrix": Middle(
        node("Slice", "b", "zero", "one", "axis", "r"),
        node("Squeeze", "r", "both", "q"),
        node("EyeLike", "q", "i", dtype=FLOAT),
        node("MatMul", "b", "i", "z"),
        zero=_shape(0, 0),
        one=_shape(1, 1),
        axis=_shape(0, 1),
        both=_shape(0, 1),
    ),
    "identity matrix of the input's type": Middle(
        node("Slice", "b", "zero", "one", "axis", "r"),
        node("Squeeze", "r", "both", "q"),
        node("EyeLike", "q", "i"),
        node("MatMul", "b", "i", "z"),
        zero=_shape(0, 0),
        one=_shape(1, 1),
        axis=_shape(0, 1),
        both=_shape(0, 1),
    ),
    "cast to float": Middle(
        node("Cast", "b", "i", to=INT64), node("Cast", "i", "f", to=FLOAT), node("Add", "b", "f", "z")
    ),
    "cast of a comparison": Middle(
        node("GreaterOrEqual", "b", "t", "m"), node("Cast", "m", "f", to=FLOAT), node("Mul", "b", "f", "z"), t=FOURTH
    ),
    "cast like": Middle(node("Cast", "b", "i", to=INT64), node("CastLike", "i", "b", "f"), node("Add", "b", "f", "z")),
    "branches": Middle(
        node("ReduceMax", "b", "top", keepdims=0),
        node("Greater", "top", "t", "m"),
        node("If", "m", "z", then_branch=_branch("Relu", ["b"], "t1"), else_branch=_branch("Neg", ["b"], "e1")),
        t=FOURTH,
    ),
    "loop": Middle(
        node("Loop", "turns", "go", "b", "z", body=_loop_body()), turns=np.array(2, np.int64), go=np.array(True)
    ),
    "clamped by the largest number": Middle(node("Clip", "b", "low", "high", "z"), low=TENTH, high=FLOAT_MAX),
    "clamped above only": Middle(node("Clip", "b", "", "high", "z"), high=np.float32(1)),
    "largest of two": Middle(node("Max", "b", "low", "z"), low=-FLOAT_MAX),
    "power": Middle(node("Pow", "b", "two", "z"), two=np.float32(2)),
    "power of a whole number": Middle(node("Pow", "b", "two", "z"), two=np.array(2, np.int64)),
    "normalisation": Middle(node("LayerNormalization", "b", "s", "z", axis=-1), s=np.arange(SIZE, dtype=np.float32)),
    "batch normalisation": Middle(
        node("BatchNormalization", "b", "s", "o", "m", "v", "z"),
        s=np.ones(CHANNELS, np.float32),
        o=np.zeros(CHANNELS, np.float32),
        m=np.full(CHANNELS, 0.125, np.float32),
        v=np.full(CHANNELS, 0.5, np.float32),
    ),
    "dropout that drops nothing": Middle(node("Dropout", "b", "ratio", "z"), ratio=np.float32(0.5)),
    "largest indices": Middle(
        node("ArgMax", "b", "i", axis=-1, keepdims=1), node("Cast", "i", "f", to=FLOAT), node("Add", "b", "f", "z")
    ),
    "sorted": Middle(helper.make_node("TopK", ["b", "k"], ["z", "i"], axis=-1), k=_shape(SIZE)),
    "sum of products": Middle(
        node("Einsum", "b", "square", "z", equation="nchw,wv->nchv"), square=np.eye(SIZE, dtype=np.float32)
    ),
    "infinities": Middle(node("IsInf", "b", "m"), node("Where", "m", "t", "b", "z"), t=FOURTH),
    "not a number": Middle(node("IsNaN", "b", "m"), node("Where", "m", "t", "b", "z"), t=FOURTH),
    "infinities of opset 21": Middle(node("IsInf", "b", "m"), node("Where", "m", "t", "b", "z"), t=FOURTH, opset=21),
    "remainder": Middle(node("Mod", "b", "t", "z", fmod=1), t=FOURTH),
    "range": Middle(
        node("Range", "begin", "end", "step", "r"),
        node("Add", "b", "r", "z"),
        begin=np.float32(0),
        end=np.float32(SIZE),
        step=np.float32(1),
    ),
    "spread": Middle(node("ReduceMax", "b", "axes", "top"), node("Sub", "top", "b", "z"), axes=_shape(2, 3)),
}
