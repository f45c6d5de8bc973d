"""Places where a run may find itself: a full disk, a read-only folder, a clock that is set back, other runs beside it.

Each is what surrounds a command: variables, a shell script, what is done with its folder before and while it runs. Mounts need
a mount namespace of one's own, see ``places.py``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

STRANGER: Final = 12345  # a user that no file names
ODD: Final = os.fsdecode(b"b\xfcndle\xff")
SMALL: Final = 1 << 20  # bytes that a full disk has left, at most; a bundle of the tiny network has 100 kB
GROUP: Final = "skdeploy-torture"


@dataclass(frozen=True)
class Place:
    """``works``: every verb must end with 0 there, and write what it writes elsewhere. ``again``: the same
    command must end well once the place is ``mended``.

    ``script`` gets the command as ``"$@"``, in the folder. ``meanwhile`` is called once at a random moment of the run.
    ``crowd`` says how many runs begin at once; ``mixed`` of several verbs. ``verbs``: only these.
    """

    works: bool = False
    again: bool = False
    script: str = 'exec "$@"'
    variables: Mapping[str, str | None] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Path, Random], None] | None = None
    meanwhile: Callable[[Path, Random], None] | None = None
    mend: Callable[[Path], None] | None = None
    crowd: tuple[int, int] = (1, 1)
    verbs: tuple[str, ...] = ()
    mixed: bool = False
    needs: Callable[[], str] | None = None  # why it cannot be had here; empty where it can


def mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


def unmount(folder: Path) -> None:
    """Whatever is mounted on or below the folder."""
    for line in reversed(Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()):
        place = Path(line.split(" ")[1])
        if place.is_relative_to(folder):
            subprocess.run(["umount", "--lazy", str(place)], check=True, capture_output=True)


def _disk(folder: Path, inside: str, random: Random) -> None:
    """A file system of its own with a few bytes free, which holds what the folder held."""
    place = folder / inside
    place.mkdir(exist_ok=True)
    kept = folder.with_name(f"{folder.name}.kept")
    shutil.copytree(place, kept)
    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", place)
    shutil.copytree(kept, place, dirs_exist_ok=True)
    shutil.rmtree(kept)
    found = os.statvfs(place)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    mount("-o", f"remount,size={used + int(random.choice((0, SMALL * random.random() ** 3)))}", place)


def _room(folder: Path) -> None:
    mount("-o", "remount,size=64m", folder)


def full_disk(folder: Path, random: Random) -> None:
    _disk(folder, "", random)


def full_cache(folder: Path, random: Random) -> None:
    _disk(folder, "cache", random)


def full_temporary(folder: Path, random: Random) -> None:
    _disk(folder, "temporary", random)


def read_only(folder: Path, random: Random) -> None:
    del random
    mount("--bind", folder, folder)
    mount("-o", "remount,bind,ro", folder)


def read_only_bundle(folder: Path, random: Random) -> None:
    read_only(folder / "bundle", random)


def closed_folder(folder: Path, random: Random) -> None:
    """By modes, for a stranger; the files are another's."""
    del random
    _modes(folder, 0o555, 0o444)


def _modes(folder: Path, folders: int, files: int) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(folders if path.is_dir() else files)


def owned_by_stranger(folder: Path, random: Random) -> None:
    del random
    for path in (folder, *folder.rglob("*")):
        os.chown(path, STRANGER, STRANGER)


def vanish(folder: Path, random: Random) -> None:
    """One of the folders goes; that of the run itself, too."""
    victim = folder / random.choice(("", "bundle", "cache", "made", "images.npz"))
    if victim.is_file():
        victim.unlink()
    shutil.rmtree(victim, ignore_errors=True)


def clock(folder: Path, random: Random) -> None:
    (folder / "clock").write_text(random.choice(("+0", "+400d")), encoding="ascii")


def set_back(folder: Path, random: Random) -> None:
    (folder / "clock").write_text(random.choice(("-1h", "-3000d", "-19000d")), encoding="ascii")


def _faketime() -> str:
    return "" if _library() else "libfaketime is not installed"


def _library() -> str:
    return next((str(path) for path in Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), "")


def _root() -> str:
    mapped = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    return "" if os.geteuid() == 0 and int(mapped[2]) > STRANGER else "only root can run as another user"


def _group() -> str:
    controlled = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").exists()
    return (
        ""
        if controlled and os.access("/sys/fs/cgroup/cpu", os.W_OK)
        else "no control group of CPUs (version 1) to write to"
    )


AS_STRANGER: Final = f'exec setpriv --reuid {STRANGER} --regid {STRANGER} --clear-groups "$@"'
NO_TEMPORARY: Final = (
    'for each in /tmp /var/tmp /usr/tmp; do [ ! -d $each ] || mount -t tmpfs -o ro none $each; done; exec "$@"'
)
ONE_AND_A_HALF_CORES: Final = f"""group=/sys/fs/cgroup/cpu/{GROUP}-$$; mkdir $group
echo 100000 > $group/cpu.cfs_period_us; echo 150000 > $group/cpu.cfs_quota_us
sh -c 'echo $$ > '$group'/tasks; exec "$@"' sh "$@"; code=$?; rmdir $group; exit $code"""
CONTAINER: Final = 'exec unshare --pid --fork --mount-proc "$@"'
PLAIN: Final = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

RENAMED: Final = {"image.png": f"{ODD}.png", "images.npz": f"{ODD}.npz"}

WRITERS: Final = ("export", "build", "calibrate", "evaluate", "tune", "attention", "verify", "report", "start")

PLACES: Final[Mapping[str, Place]] = {
    "full disk": Place(again=True, prepare=full_disk, mend=_room),
    "full cache": Place(works=True, prepare=full_cache),
    "full temporary folder": Place(prepare=full_temporary, variables={"TMPDIR": "temporary"}),
    "full stdout": Place(script='exec "$@" > /dev/full'),
    "read-only file system": Place(again=True, prepare=read_only, mend=unmount),
    "read-only bundle": Place(again=True, prepare=read_only_bundle, mend=unmount),
    "no temporary folder": Place(
        prepare=read_only, mend=unmount, script=f"unshare --mount sh -c '{NO_TEMPORARY}' sh \"$@\""
    ),
    "another's folder": Place(prepare=closed_folder, script=AS_STRANGER, needs=_root),
    "no home": Place(
        works=True,
        prepare=owned_by_stranger,
        script=AS_STRANGER,
        variables={"HOME": None, "XDG_CACHE_HOME": None},
        needs=_root,
    ),
    "home that is a file": Place(works=True, variables={"HOME": "tiny.toml", "XDG_CACHE_HOME": None}),
    "vanishing folder": Place(meanwhile=vanish),
    "clock set back": Place(
        works=True,
        prepare=clock,
        meanwhile=set_back,
        variables={
            "LD_PRELOAD": _library(),
            "FAKETIME_TIMESTAMP_FILE": "clock",
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
        needs=_faketime,
    ),
    "ASCII": Place(works=True, variables={**PLAIN, "PYTHONIOENCODING": "ascii"}),
    "Latin-1": Place(works=True, variables={"PYTHONIOENCODING": "latin-1"}),
    "bundle's name is not UTF-8": Place(renamed={"bundle": ODD}),
    "names that are not UTF-8": Place(works=True, renamed=RENAMED),
    "names that are not UTF-8, ASCII": Place(works=True, renamed=RENAMED, variables=PLAIN),
    "closed streams": Place(works=True, script='exec "$@" <&- >&- 2>&-'),
    "folder that is gone": Place(script='mkdir gone; cd gone; rmdir ../gone; exec "$@"'),
    "CPU quota": Place(works=True, script=ONE_AND_A_HALF_CORES, needs=_group),
    "several at once": Place(again=True, verbs=WRITERS, crowd=(2, 8)),
    "several verbs at once": Place(again=True, verbs=WRITERS, crowd=(2, 8), mixed=True),
    "two containers on a volume": Place(
        again=True, verbs=WRITERS, crowd=(2, 4), script='exec unshare --pid --fork --mount-proc "$@"'
    ),
}
