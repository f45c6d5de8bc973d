"""A timing cache of another device, or one that was cut, never reaches TensorRT."""

from __future__ import annotations

from pathlib import Path

import pytest

from skdeploy.core.errors import EngineError, IntegrityError, UsageError
from skdeploy.engines.timing_cache import TimingDevice, read_timing_cache, write_timing_cache
from tests.disk_limit import file_size_limit

ORIN = TimingDevice(gpu="Orin", compute_capability="8.7", tensorrt="10.3.0", cuda="12.6")
CONTENT = bytes(range(256)) * 40  # with line ends in it


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    path = tmp_path / "cache.bin"
    write_timing_cache(path, ORIN, CONTENT)
    return path


def test_what_was_written_is_read_on_the_same_device(cache: Path) -> None:
    assert read_timing_cache(cache, ORIN) == CONTENT
    write_timing_cache(cache, ORIN, b"")
    assert read_timing_cache(cache, ORIN) == b""
    assert read_timing_cache(cache.with_name("new.bin"), ORIN) == b""  # not there yet


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"gpu": "NVIDIA L4"}, "GPU Orin, not NVIDIA L4"),
        ({"compute_capability": "8.9"}, "compute capability 8.7, not 8.9"),
        ({"tensorrt": "11.4.1"}, "TensorRT 10.3.0, not 11.4.1"),
        ({"cuda": "13.0"}, "CUDA 12.6, not 13.0"),
    ],
)
def test_a_cache_of_another_device_is_refused_with_what_differs(cache: Path, other: dict[str, str], words: str) -> None:
    with pytest.raises(EngineError, match=f"cache.bin belongs to another device: {words}") as refusal:
        read_timing_cache(cache, ORIN.model_copy(update=other))
    assert "give --timing-cache another file" in refusal.value.advice
    assert read_timing_cache(cache, ORIN) == CONTENT  # and is left as it is


@pytest.mark.parametrize("end", [-1, -2000])
def test_a_cache_that_was_cut_is_refused(cache: Path, end: int) -> None:
    cache.write_bytes(cache.read_bytes()[:end])
    with pytest.raises(IntegrityError, match="cut off or changed"):
        read_timing_cache(cache, ORIN)


@pytest.mark.parametrize("content", [b"", b"\x00" * 5000, b"{}\n", b'{"kind":"x"}\nrest', CONTENT], ids=range(5))
def test_a_file_that_is_no_cache_of_ours_is_refused(cache: Path, content: bytes) -> None:
    cache.write_bytes(content)
    with pytest.raises(IntegrityError, match="did not write the timing cache"):
        read_timing_cache(cache, ORIN)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("absent/cache.bin", "does not exist"),
        (".", "is a folder"),
        ("loop", "cannot read the timing cache .*loop: Too many levels"),
    ],
)
def test_a_place_that_gives_or_takes_no_file_is_told_before_the_build(tmp_path: Path, place: str, words: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match=words) as refusal:
        read_timing_cache(tmp_path / place, ORIN)
    assert refusal.value.advice


def test_a_full_disk_leaves_the_old_cache(tmp_path: Path) -> None:
    path = tmp_path / "cache.bin"
    write_timing_cache(path, ORIN, b"old")
    with file_size_limit(4096), pytest.raises(IntegrityError, match="no space left to write"):
        write_timing_cache(path, ORIN, CONTENT)
    assert read_timing_cache(path, ORIN) == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache.bin"]
