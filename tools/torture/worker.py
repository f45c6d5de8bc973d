"""Reads damaged files in a process of its own, one after the other, and says on stdout how each ended.

python -m tools.torture.worker SEEDS KIND SEED FIRST COUNT
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Final

from tools.torture.readers import KINDS, Kind

MEMORY_BYTES: Final = 2 << 30  # beyond what the process has once it has read the good file


def damaged(kind: Kind, content: bytes, seed: int, index: int) -> bytes:
    """The input that a seed and a number name."""
    return kind.mutate(content, Random(f"{seed}/{kind.file}/{index}"))


def outcome(kind: Kind, path: Path) -> str:
    """How reading a file ended: read, refused and the exit code, memory, or the error that nobody explains."""
    from skdeploy.core.errors import SkdeployError

    try:
        kind.read(path)
    except SkdeployError as error:
        return f"refused {error.exit_code}" if error.message else "traceback an error that says nothing"
    except MemoryError:
        return "memory"
    except BaseException as error:  # noqa: BLE001  (what nobody foresaw is what is looked for)
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where is not None else ""
        return f"traceback {type(error).__name__} at {place}: {' '.join(str(error).split())[:200]}"
    return "read"


def main(seeds: Path, name: str, seed: int, first: int, count: int) -> None:
    kind = KINDS[name]
    content = (seeds / kind.file).read_bytes()
    said = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no answer
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(seeds, Path(scratch) / "seeds")) if kind.whole else Path(scratch)
        path = folder / (kind.file if kind.whole else Path(kind.file).name)
        if name == "list":
            for image in seeds.glob("image.*"):
                shutil.copy(image, folder)
        path.write_bytes(content)
        if (good := outcome(kind, path)) not in ("read", "refused 8", "refused 3"):
            print(f"good {good}", file=said, flush=True)
            return
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
        for index in range(first, first + count):
            print(f"begin {index}", file=said, flush=True)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            kind.place(path, damaged(kind, content, seed, index))
            print(f"end {index} {outcome(kind, path)}", file=said, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]))
