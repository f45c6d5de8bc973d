"""All parts of one job, each once: whatever is missing, doubled, foreign or damaged is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from skdeploy.core.errors import UsageError
from skdeploy.core.listing import some, some_lines
from skdeploy.core.progress import Progress
from skdeploy.shards.part import Job, Part, read_part

Collect = Callable[[Job], Sequence[Part]]  # all parts of a job, checked, in the order of their shards
MIXED_CPUS = "--allow-mixed-cpus"


def collect(
    patterns: Sequence[str], job: Job, tell: Progress, *, allow_mixed_cpus: bool = False, here: str | None = None
) -> list[Part]:
    """The parts that ``patterns`` name, files or globs, in the order of their shards.

    ``here`` is the kind of this machine, where the merge computes too.

    Raises IntegrityError for a damaged file; UsageError for a part of another job, one that is there twice, one that is
    missing, and for machines of different kinds unless ``allow_mixed_cpus``.
    """
    return checked(
        [read_part(path) for path in paths_of(patterns)], job, tell, allow_mixed_cpus=allow_mixed_cpus, here=here
    )


def paths_of(patterns: Sequence[str]) -> list[Path]:
    """The files, each once, in the order of their names. Raises UsageError for a pattern that names none."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        names = [Path(pattern)] if Path(pattern).is_file() else _matching(pattern)
        if not names:
            raise UsageError(
                f"--parts {pattern}: no such file", advice="give the files that --shard wrote, or a pattern"
            )
        found |= dict.fromkeys(names)
    return list(found)


def _matching(pattern: str) -> list[Path]:
    found = glob(pattern, recursive=True)  # noqa: PTH207  (pathlib's raises three kinds of errors for patterns such as ".")
    return sorted(path for path in map(Path, found) if path.is_file())


def checked(
    parts: Sequence[Part], job: Job, tell: Progress, *, allow_mixed_cpus: bool, here: str | None = None
) -> list[Part]:
    """The same, in the order of their shards. Raises as ``collect``."""
    for part in parts:
        check_job(part.header.job, job, part.name)
    first, *others = parts
    for part in others:
        if part.header.count != first.header.count:
            raise UsageError(
                f"{first.name} is shard {first.header.shard} and {part.name} is shard {part.header.shard}: "
                "they belong to different divisions",
                advice="merge parts of one COUNT only",
            )
    by_index: dict[int, Part] = {}
    for part in parts:
        twin = by_index.setdefault(part.header.index, part)
        if twin is not part:
            raise UsageError(
                f"{twin.name} and {part.name} are both shard {part.header.shard}", advice="leave one of the two out"
            )
    count = first.header.count
    missing = [f"{index}/{count}" for index in range(1, count + 1) if index not in by_index]
    if missing:
        raise UsageError(
            f"{len(missing)} of {count} parts are missing: shard {some(missing)}",
            advice=f"make them with the same command and --shard {missing[0]} -o FILE",
        )
    _check_machines(parts, here, tell, allow_mixed_cpus=allow_mixed_cpus)
    return [by_index[index] for index in range(1, count + 1)]


def check_job(found: Job, job: Job, name: str) -> None:
    """Raises UsageError unless the part ``name``, of the job ``found``, belongs to this job."""
    if found == job:
        return
    advice = "leave it out, or merge it with the command that made it"
    if found.verb != job.verb:
        raise UsageError(f"{name} is a part of `skdeploy {found.verb}`, not of {job.verb}", advice=advice)
    if found.made_of != job.made_of:
        shown = _differences(found.made_of, job.made_of, short=True)
        raise UsageError(f"{name} was made of another bundle or other artifacts:\n{shown}", advice=advice)
    if (found.data_sha256, found.samples) != (job.data_sha256, job.samples):
        raise UsageError(
            f"{name} was made of other data: {found.samples:,} samples of {found.data}, where --data and its options "
            f"give {job.samples:,} of {job.data}"
            + (" with other names or labels" if found.samples == job.samples else ""),
            advice=advice,
        )
    if found.options != job.options:
        shown = _differences(found.options, job.options)
        raise UsageError(f"{name} was made with other options:\n{shown}", advice=advice)
    shown = _differences(found.versions, job.versions)
    raise UsageError(
        f"{name} was made with other versions of packages, which may round differently:\n{shown}",
        advice="use the same environment for all parts and for merging them",
    )


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], *, short: bool = False) -> str:
    """A line for each key whose value differs."""

    def shown(values: Mapping[str, Any], key: str) -> str:
        return str(values[key])[: 12 if short else None] if key in values else "none"

    keys = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    return some_lines([f"{key}: {shown(found, key)} in the part, {shown(wanted, key)} here" for key in keys])


def _check_machines(parts: Sequence[Part], here: str | None, tell: Progress, *, allow_mixed_cpus: bool) -> None:
    """Raises UsageError where machines of different kinds computed: float arithmetic is not the same on them."""
    kinds: dict[str, list[str]] = {}
    for part in parts:
        kinds.setdefault(part.header.cpu, []).append(part.name)
    lines = [f"{cpu}: {len(names)} parts, such as {names[0]}" for cpu, names in kinds.items()]
    if here is not None and here not in kinds:
        kinds[here] = []
        lines.append(f"{here}: this machine, which computes the last step")
    if len(kinds) == 1:
        return
    if not allow_mixed_cpus:
        raise UsageError(
            f"the work was done on {len(kinds)} kinds of machines, which may round differently:\n{some_lines(lines)}",
            advice=f"use machines of one kind, or accept that the last bits may differ: {MIXED_CPUS}",
        )
    tell.note(f"the work of {len(kinds)} kinds of machines is merged, which may round differently: {'; '.join(lines)}")
