"""Bundles whose manifest says something else than their export wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def edited(bundle: Path) -> Iterator[Any]:
    """The manifest as JSON, written back at the end."""
    path = bundle / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    yield content
    path.write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def edited_row(bundle: Path, artifact: str) -> Iterator[Any]:
    """What the manifest says of an artifact."""
    with edited(bundle) as content:
        (row,) = (row for row in content["artifacts"] if row["path"] == artifact)
        yield row


def forged(bundle: Path, artifact: str) -> None:
    """Gives the manifest the digest of what is in the file now."""
    content = (bundle / artifact).read_bytes()
    with edited_row(bundle, artifact) as row:
        row |= {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
