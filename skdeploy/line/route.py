"""An export for a device that is not here: which engine it gets, for which batches, and what to do on the device."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from skdeploy import engines
from skdeploy.core.errors import SkdeployError
from skdeploy.core.packages import folder_of_install, install_command
from skdeploy.core.precision import Precision
from skdeploy.devices import cuda
from skdeploy.line.options import ExportOptions
from skdeploy.planning.devices import Device, device_named

CAMERA: Final = (1, 1, 8)  # batches of a Jetson: a frame at a time, and a few cameras at once


@dataclass(frozen=True)
class Route:
    """The way to a device: ``target`` makes its engine here, or engines.ONNX where only the device can; ``why`` in words."""

    name: str
    device: Device
    target: str
    why: str

    def applied(self, options: ExportOptions) -> ExportOptions:
        """The options of the export with what the device decides, unless the user has said it."""
        target = self.target if options.target == engines.AUTO else options.target
        if target == engines.ONNX:
            return replace(options, target=target)
        ahead = target != engines.AUTO and engines.compiler(target).AHEAD_OF_TIME
        return replace(
            options,
            target=target,
            compute_capabilities=options.compute_capabilities or ((self.device.compute_capability,) if ahead else ()),
            profile=options.profile or (CAMERA if self.device.jetson_image and options.trace.batch is None else None),
        )

    def steps(self, bundle: Path) -> tuple[str, ...]:
        """List the next steps, on the device and with its measurements: at most six lines, the first says where."""
        if self.device.jetson_image:
            return self._steps_in_container(bundle)
        where = shlex.quote(str(bundle))
        made_here = self.target != engines.ONNX
        on_device = (name for name in engines.COMPILERS if not engines.compiler(name).AHEAD_OF_TIME)
        extra = engines.compiler(self.target if self.target in engines.COMPILERS else next(on_device)).EXTRA
        build = () if made_here else (f"skdeploy build {where}",)
        clone = " in a clone of skdeploy," if folder_of_install() else ""
        return (
            f"next, on the {self.device.title},{clone} with {bundle} copied to the same place:",
            install_command(f"gpu,{extra},plans", on_device=True),
            *build,
            f"skdeploy verify {where} --receipt",
            f"skdeploy bench {where} --receipt",
            f"then copy {bundle}/receipts/ back: `skdeploy report` shows here what the device has proven",
        )

    def _steps_in_container(self, bundle: Path) -> tuple[str, ...]:
        mount = shlex.quote(f"{bundle.name}:/bundle:ro")
        run = f'docker run --rm --runtime nvidia $GROUPS_OF_GPU -v engines:/cache -v "$PWD"/{mount} skdeploy'
        groups = " ".join(f"--group-add $(getent group {name} | cut -d: -f3)" for name in ("video", "render"))
        return (
            f"next, on the {self.device.title}, in a clone of skdeploy with {bundle} copied into it (docs/how-to/docker.md):",
            f"docker build --build-arg BASE_IMAGE={self.device.jetson_image} -t skdeploy .",
            f'GROUPS_OF_GPU="{groups}"',
            f"{run} verify --receipt",
            f"{run} bench --batch 1,8 --receipt",
            "docker run --rm -v engines:/cache --entrypoint sh skdeploy -c 'cd /cache && tar -c */*/receipts' > receipts.tar",
        )

    def estimate(self, bundle: Path, precision: Precision) -> str:
        """The planner's estimate for the bundle's graph on the device, or why there is none."""
        from skdeploy.planning.report import plan

        try:
            found = plan(bundle, (self.name,)).devices[0]
        except SkdeployError as error:  # the export is done: a graph that cannot be planned for is no fault of it
            return f"no estimate for the {self.device.title}: {error.message}"
        floor = next((each for each in found.floors if each.precision == precision), None)
        least = f"at least {floor.latency_ms:.2g} ms an image in {precision.words}" if floor is not None else "no floor"
        advice = found.recommendation
        memory = "" if found.fits else "; its memory is too small"
        return f"estimate for the {self.device.title}: {least}{memory}; best by it: {advice.options} ({advice.reason})"


def route_to(given: str) -> Route:
    """The way to a device of the planner's table. Raises UsageError for a name that it does not have."""
    name, device = device_named(given)
    capability = device.compute_capability
    if any(gpu.compute_capability == capability for gpu in cuda.devices()):
        return Route(name, device, engines.AUTO, "its kind of GPU is in this machine")
    if device.jetson_image:
        return Route(name, device, engines.ONNX, "its engine is built there, by its own TensorRT")
    refused = []
    for compiler in engines.COMPILERS:
        facts = engines.compiler(compiler)
        if facts.AHEAD_OF_TIME and capability in facts.SERVES:
            reason, _ = engines.obstacle(compiler)
            if not reason:
                return Route(name, device, compiler, f"{engines.label(compiler)} builds ahead of time for it")
            refused.append(f"; not here: {reason}")
    return Route(name, device, engines.ONNX, f"its engine is built there, by its own TensorRT{''.join(refused)}")
