"""Does INT8 pay here? One sentence, which always names what was compared with what."""

from __future__ import annotations

from skdeploy import backends
from skdeploy.bench.statistics import Ratio, inverted
from skdeploy.bench.subjects import Subject
from skdeploy.core.spec import Precision


def int8_verdict(first: Subject, second: Subject, ratio: Ratio, batch: int) -> str | None:
    """``ratio`` is the latency of ``first`` to that of ``second``. None unless one of the two is INT8, and of one network."""
    kinds = [subject.runner.precision.integer for subject in (first, second)]
    if sum(kinds) != 1 or not is_same_network(first, second):
        return None
    int8, other = (first, second) if kinds[0] else (second, first)
    return int8_sentence(
        ratio if kinds[0] else inverted(ratio),
        int8=int8.runner.name,
        other=other.runner.name,
        precision=other.runner.precision,
        backend=int8.runner.backend,
        batch=batch,
        emulated=int8.opened.emulated,
    )


def is_same_network(first: Subject, second: Subject) -> bool:
    """Whether two cards describe one network with one input; whose weights may differ, which costs no time."""
    one, other = first.runner.spec, second.runner.spec
    return (one.network, one.image, one.inputs) == (other.network, other.image, other.inputs)


def int8_sentence(
    ratio: Ratio, *, int8: str, other: str, precision: Precision, backend: str, batch: int, emulated: str
) -> str:
    """``ratio`` is the latency of ``int8`` to that of ``other``, which has ``precision``; ``emulated`` as of ``Deployed``."""
    name, where = precision.words, f"on {backend}, batch {batch}"
    span = f"95 % interval {ratio.low:.3f} to {ratio.high:.3f}"
    if emulated:
        return (
            f"this does not show whether INT8 pays {where}: {int8} ran without INT8 kernels ({emulated}) and "
            f"took {ratio.ratio:.3f} times as long as {other} ({span})"
        )
    said = {
        "faster": f"{int8} is {1 / ratio.ratio:.2f} times as fast as {other}",
        "slower": f"{int8} takes {ratio.ratio:.2f} times as long as {other}",
        "no difference": f"no significant difference between {int8} and {other}",
    }[ratio.verdict]
    pays = "pays" if ratio.verdict == "faster" else "does not pay"
    # Against FP32 the question is open where FP16 is fast too: GPUs have kernels of its own for it.
    fast = precision is Precision.FP32 and backends.backend(backend).DEVICE == "gpu"
    more = "; FP16 may be faster there: give an FP16 bundle as --against" if fast else ""
    return f"INT8 {pays} compared with {name} {where}: {said} (latency {ratio.ratio:.3f} times, {span}){more}"
