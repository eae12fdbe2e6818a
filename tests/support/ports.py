"""Ports of a process's own: no other process of tests gets them, nor the kernel for a connection."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import islice

BEGIN, END = 20_000, 32_000
BLOCK = 500  # ports of a process


def _own_block() -> Iterator[int]:
    """The ports of the first block that no other process has: who has bound its first port has it."""
    for first in range(BEGIN, END, BLOCK):
        sock = socket.socket()
        try:
            sock.bind(("127.0.0.1", first))
        except OSError:
            sock.close()
            continue
        sock.detach()  # it stays bound until the process ends
        return iter(range(first + 1, first + BLOCK))
    raise AssertionError("other processes of tests have all ports")


_unused = _own_block()


def free_port(count: int = 1) -> int:
    """The first of ``count`` ports in a row that are free; no other call gets them.

    So a server that is down keeps its port.
    """
    while True:
        ports = list(islice(_unused, count))
        assert len(ports) == count, f"this process has used all of its {BLOCK} ports"
        if all(map(_is_free, ports)):
            return ports[0]


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
