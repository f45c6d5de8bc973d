"""Ports of this machine's loopback that nothing listens on."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress
from typing import Final

BELOW_EPHEMERAL: Final = range(20_000, 32_000)  # no system hands these to an outgoing connection by itself


def free_ports(number: int) -> list[int]:
    """``number`` ports, each another one: all are held until the last is known, since a freed one may be given again."""
    ports: list[int] = []
    with ExitStack() as held:
        for port in random.SystemRandom().sample(BELOW_EPHEMERAL, 100 * number):
            with suppress(OSError):  # somebody listens there
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == number:
                return ports
    raise OSError(f"no {number} ports of {BELOW_EPHEMERAL} are free")


def free_port() -> int:
    (port,) = free_ports(1)
    return port
