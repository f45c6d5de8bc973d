"""The images below a folder, and the classes that the folders right below it are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from skdeploy.core.errors import UsageError
from skdeploy.core.listing import some
from skdeploy.images.decoding import SUFFIXES, printable

# Images that training loaders do not take either, or take on some machines only: said, not read.
OTHER_IMAGES: Final = (
    ".gif", ".jfif", ".jpe", ".jp2", ".avif", ".heic", ".heif", ".jxl", ".svg", ".dng", ".cr2", ".nef", ".arw", ".exr",
)  # fmt: skip
SPLITS: Final = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "eval", "evaluation"})
KINDS: Final = "give a folder of images that you may read, an .npz or .npy file, or a .txt or .csv list of images"
MEND: Final = "repair it or remove it; skdeploy does not leave out images silently"

Identity = tuple[int, int]  # device and inode: the same folder by whatever link


@dataclass(frozen=True)
class ImageFolder:
    """The image files below a folder, sorted by path.

    ``classes``: the names of all folders right below it in sorted order, those without images too, as torchvision's ImageFolder
    counts them; ``labels`` is each file's place among them. Both are empty if the folders are not classes, and then
    ``unlabelled`` says why. ``left_out`` says which images are not among the files.
    """

    files: tuple[Path, ...]
    classes: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    unlabelled: str = ""
    left_out: str = ""


def read_folder(source: Path, suffixes: tuple[str, ...] = SUFFIXES) -> ImageFolder:
    """Find the images, or other files of these ``suffixes``, below a folder at any depth, following links as torchvision and
    timm do.

    Each image belongs to the folder right below ``source`` that it lies in. A real folder is read once for each of them, so a
    link back up ends the search there. Hidden files and folders are passed over. Raises UsageError: a folder that cannot be
    listed, a link that leads nowhere.
    """
    top: list[Path] = []
    others: list[Path] = []
    below: dict[str, list[Path]] = {}
    root, known = _identity(source), (*suffixes, *(OTHER_IMAGES if suffixes is SUFFIXES else ()))
    for entry in _entries(source):
        path = source / entry.name
        if not _is_folder(entry, path, known):
            if _is_known(entry, known):
                (top if path.suffix.lower() in suffixes else others).append(path)
        elif (identity := _identity(path)) != root:
            files = list(_files(path, {root, identity}, known))
            below[entry.name] = [file for file in files if file.suffix.lower() in suffixes]
            others += (file for file in files if file.suffix.lower() not in suffixes)
    every = tuple(sorted((*top, *(file for found in below.values() for file in found))))
    unlabelled = _why_not_classes(source, top, below)
    classes = () if unlabelled else tuple(sorted(below))
    number = {name: index for index, name in enumerate(classes)}
    labels = tuple(number[file.parts[len(source.parts)]] for file in every) if classes else ()
    return ImageFolder(every, classes, labels, unlabelled, _left_out(source, others))


def _why_not_classes(source: Path, top: list[Path], below: dict[str, list[Path]]) -> str:
    """Why the folders right below are not classes, or nothing if they are."""
    holding = sorted(name for name, files in below.items() if files)
    if not holding:
        return "its files are not in class folders"
    if top:
        names = some([printable(file.name) for file in sorted(top)], 3)
        return f"{names} lies beside the class folders and so has no class: move it away"
    if len(holding) == 1:
        inside = source / holding[0]
        return f"all its files are in one folder: if {printable(str(inside))} holds the class folders, give that"
    if all(name.casefold() in SPLITS for name in holding):
        return f"its folders are parts of a data set, not classes: {', '.join(holding)}; give one of them"
    return ""


def _files(folder: Path, seen: set[Identity], known: tuple[str, ...]) -> Iterator[Path]:
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        for entry in _entries(here):
            path = here / entry.name
            if not _is_folder(entry, path, known):
                if _is_known(entry, known):
                    yield path
            elif (found := _identity(path)) not in seen:
                seen.add(found)
                waiting.append(path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder without the copies that tools leave behind: macOS's ._ files, .ipynb_checkpoints."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UsageError(f"cannot list the images in {folder}: {error.strerror}", advice=KINDS) from error


def _is_folder(entry: os.DirEntry[str], path: Path, known: tuple[str, ...]) -> bool:
    """Whether an entry is a folder, or a link to one. Raises UsageError for a link to nothing that may stand for images."""
    try:
        if entry.is_dir():
            return True
        if not entry.is_symlink() or path.exists():
            return False
        reason = "its target does not exist"
    except OSError as error:
        reason = error.strerror or str(error)
    if path.suffix and path.suffix.lower() not in known:
        return False
    raise UsageError(f"cannot follow the link {path}: {reason}", advice=MEND)


def _is_known(entry: os.DirEntry[str], known: tuple[str, ...]) -> bool:
    return Path(entry.name).suffix.lower() in known and entry.is_file()


def _identity(folder: Path) -> Identity:
    try:
        found = folder.stat()
    except OSError as error:
        raise UsageError(f"cannot read the folder {folder}: {error.strerror}", advice=MEND) from error
    return (found.st_dev, found.st_ino)


def _left_out(source: Path, others: list[Path]) -> str:
    if not others:
        return ""
    kinds = Counter(file.suffix.lower() for file in others)
    counted = ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds.items()))
    first = printable(str(min(others).relative_to(source)))
    return f"left out of {printable(source.name)}: {counted} (first: {first}); only {', '.join(SUFFIXES)} are read"
