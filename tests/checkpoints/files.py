"""Files for the tests of reading a checkpoint, and how a refusal must look."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from skdeploy.checkpoints.read import read_checkpoint
from skdeploy.core.errors import WeightsError

State = dict[str, Tensor]
LEGACY = {"_use_new_zipfile_serialization": False}


def small_state() -> State:
    """Tensors as of a network: about 10 kB, a step counter among them."""
    random = torch.Generator().manual_seed(1)
    return {
        "conv.weight": torch.randn(8, 3, 3, 3, generator=random),
        "bn.running_var": torch.rand(8, generator=random),
        "bn.num_batches_tracked": torch.tensor(7),
        "fc.weight": torch.randn(300, 8, generator=random),
    }


def torch_bytes(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def rezipped(archive: bytes, compression: int) -> bytes:
    """The same members, written by another zip program: nothing begins at a multiple of 64."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for number, member in enumerate(old.infolist()):
            name = member.filename.replace("archive/", "archive" + "x" * 9 + "/")
            new.writestr(name, old.read(member))
            new.writestr(name + str(number) + ".odd", b"x" * (2 * number + 1))
    return buffer.getvalue()


def written(folder: Path, content: bytes, name: str = "weights.pth") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refused(path: Path) -> WeightsError:
    with pytest.raises(WeightsError) as error:
        read_checkpoint(path)
    assert error.value.exit_code == 2
    assert str(path) in error.value.message
    assert "weights_only" not in str(error.value)  # torch's own text tells how to load it unsafely
    return error.value


FORMATS: dict[str, Callable[[State], bytes]] = {
    "safetensors": save,
    "zip": torch_bytes,
    "legacy pickle": lambda state: torch_bytes(state, **LEGACY),
    "stored again": lambda state: rezipped(torch_bytes(state), zipfile.ZIP_STORED),
    "compressed": lambda state: rezipped(torch_bytes(state), zipfile.ZIP_DEFLATED),
    "ordered": lambda state: torch_bytes(OrderedDict(state)),
    "parameters": lambda state: torch_bytes(
        {key: torch.nn.Parameter(t) if t.is_floating_point() else t for key, t in state.items()}
    ),
}
