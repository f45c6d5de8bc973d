"""Options that choose what runs a bundle, the same in all verbs that run one."""

from __future__ import annotations

from typing import Annotated

import typer

Backend = Annotated[
    str | None,
    typer.Option(
        metavar="ID",
        help="What runs the bundle: torch, onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt, tensorrt, tensorrt_rtx.  "
        "[default: onnxruntime]",
    ),
]
BackendOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Of onnxruntime-cuda: device, memory-mib, convolution-search, tf32; of onnxruntime-tensorrt: device, "
        "batch=1/8/32, sizes, opt-level, workspace-mib, cache=FOLDER or off; may be given again.",
    ),
]
