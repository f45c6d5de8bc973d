"""Files that say they are arrays: each is read, or refused in a sentence, before any large memory is taken."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skdeploy.core.errors import UsageError
from skdeploy.images.dataset import open_dataset
from skdeploy.images.numpy_file import read_npz_or_npy
from tests.tiny import noise


def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    """An .npy with this header, and 16 bytes of data."""
    padded = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(padded)) + padded + bytes(16)


def shaped(shape: str, descr: str = "'|u1'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


BAD = {
    "5 GB": header(shaped("(5000000, 32, 32, 1)")),
    "100 TB": header(shaped("(100000000000, 32, 32, 1)")),
    "beyond int64": header(shaped("(99999999999999999999, 1, 1, 1)")),
    "negative": header(shaped("(-4, 2, 2, 1)")),
    "an open bracket": header(shaped("(1, 2")),
    "no dict": header("[1, 2]"),
    "a strange type": header(shaped("(1, 2, 2, 1)", "'|q9'")),
    "objects": header(shaped("(1,)", "'|O'")),
    "a later version": header(shaped("(1, 2, 2, 1)"), (9, 9)),
    "no magic": b"x",
    "nothing": b"",
}


def zipped(path: Path, kind: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_bad_array_is_refused_without_memory(name: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"x{suffix}"
    file.write_bytes(BAD[name]) if suffix == ".npy" else zipped(file, images=BAD[name])
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=f"cannot read {file}: "):
            open_dataset(file)
        assert tracemalloc.get_traced_memory()[1] < 50e6  # modules that are imported on the way, and no 5 GB
    finally:
        tracemalloc.stop()


def array_bytes(array: Any) -> bytes:
    written = io.BytesIO()
    np.save(written, array)
    return written.getvalue()


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_archive_of_any_compression_is_read_whole(kind: int, order: Any, tmp_path: Path) -> None:
    images = noise(3, 9, 7, 3)
    arrays = {"images": array_bytes(np.asarray(images, order=order)), "labels": array_bytes(np.arange(3))}
    found = open_dataset(zipped(tmp_path / "x.npz", kind, **arrays, more=b"not an array, and not looked at"))
    assert np.array_equal(found.pixels, images)
    assert found.pixels.flags.writeable
    assert found.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("at", [60, 200, 400])
def test_damage_inside_an_archive_is_told(kind: int, at: int, tmp_path: Path) -> None:
    file = zipped(tmp_path / "x.npz", kind, images=array_bytes(noise(3, 9, 7, 3)))
    content = bytearray(file.read_bytes())
    content[at : at + 8] = bytes(byte ^ 0xFF for byte in content[at : at + 8])
    file.write_bytes(content)
    with pytest.raises(UsageError, match="cannot read"):
        open_dataset(file)


def test_an_encrypted_archive_is_told(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, images=np.zeros((1, 4, 4, 1), np.uint8))
    content = bytearray(file.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # PKWARE's APPNOTE 4.4.4: bit 0 is encryption
        content[content.index(signature) + flags] |= 1
    file.write_bytes(content)
    with pytest.raises(UsageError, match="encrypted"):
        open_dataset(file)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_is_in_memory_once_while_it_is_read(suffix: str, tmp_path: Path) -> None:
    """Each of many workers reads the file."""
    images = np.zeros((64, 256, 256, 3), np.uint8)
    file = tmp_path / f"x{suffix}"
    np.save(file, images) if suffix == ".npy" else np.savez(file, images=images)
    tracemalloc.start()
    try:
        found = read_npz_or_npy(file, ["images"])
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(found["images"] if isinstance(found, dict) else found, images)
    assert most < 1.2 * images.nbytes  # a file's buffers and zipfile's beside it


def test_labels_that_are_no_array_are_told(tmp_path: Path) -> None:
    file = zipped(tmp_path / "x.npz", images=array_bytes(np.zeros((1, 4, 4, 1), np.uint8)), labels=b"7")
    with pytest.raises(UsageError, match="cannot read"):
        open_dataset(file)
