"""A list file: one image a line, with or without its label."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Final

import numpy as np

from skdeploy.core.errors import UsageError
from skdeploy.core.files import open_file
from skdeploy.core.listing import some
from skdeploy.images.arrays import Labels, is_class_number

MAX_BYTES: Final = 256 << 20  # two million lines
FORM = (
    "write one image per line, `path` or `path,label`, relative to the list's folder; quote a path that holds a comma"
)


def read_list(source: Path) -> tuple[tuple[Path, ...], Labels | None]:
    """The files of a list in its order, and their labels if every line has one.

    CSV (RFC 4180) in UTF-8, ``path`` or ``path,label``; paths are relative to the list's folder, labels are class numbers from
    0. Blank lines and lines that begin with # are skipped. No image is opened. Raises UsageError naming the lines: a file that
    is not there, a label that is not a number, some lines with and some without labels; or an empty list.
    """
    files: list[Path] = []
    labels: list[int] = []
    unlabelled = 0  # a line without a label
    absent: list[str] = []
    for line, row in _rows(source):
        if len(row) > 2:
            raise UsageError(f"{source}, line {line}: {len(row)} fields, at most 2 expected", advice=FORM)
        file = source.parent / row[0]
        if not _is_there(file):
            absent.append(f"line {line}: {row[0]!r}")
        files.append(file)
        if len(row) == 1:
            unlabelled = unlabelled or line
        else:
            labels.append(_label(source, line, row[1]))
        if labels and unlabelled:
            raise UsageError(
                f"{source}: line {unlabelled} has no label, but others have one", advice="label all images or none"
            )
    if absent:
        raise UsageError(
            f"{source} names {len(absent)} of {len(files)} images that do not exist: {some(absent)}", advice=FORM
        )
    if not files:
        raise UsageError(f"no images in {source}", advice=FORM)
    return tuple(files), np.array(labels, np.int64) if labels else None


def _rows(source: Path) -> list[tuple[int, list[str]]]:
    """(line number, fields) of the lines that say something."""
    try:
        with io.TextIOWrapper(open_file(source, MAX_BYTES), "utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, skipinitialspace=True)
            rows = [(reader.line_num, [field.strip() for field in row]) for row in reader]
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not a list of images: it is not UTF-8 text", advice=FORM) from error
    except (OSError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read the list {source}: {why}", advice=FORM) from error
    return [(line, row) for line, row in rows if row and row != [""] and not row[0].startswith("#")]


def _label(source: Path, line: int, text: str) -> int:
    if not is_class_number(text):
        raise UsageError(f"{source}, line {line}: the label {text!r} is not a whole number from 0", advice=FORM)
    return int(text)


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a folder that may not be entered, a name that is too long: the line is named all the same
        return False
