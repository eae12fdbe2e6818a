"""Free ports that neither another test process nor an outgoing connection gets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import islice

BEGIN, END = 20_000, 32_000
BLOCK = 500  # ports for one process


def _own_block() -> Iterator[int]:
    """Reserve the first free block by binding its first port, and return the other ports of it."""
    for first in range(BEGIN, END, BLOCK):
        sock = socket.socket()
        try:
            sock.bind(("127.0.0.1", first))
        except OSError:
            sock.close()
            continue
        sock.detach()  # it stays bound until the process ends
        return iter(range(first + 1, first + BLOCK))
    raise AssertionError("other test processes have reserved all ports")


_unused = _own_block()


def free_port(count: int = 1) -> int:
    """Return the first of ``count`` free ports in a row. No other call returns them.

    So a stopped server can start again on its port.
    """
    while True:
        ports = list(islice(_unused, count))
        assert len(ports) == count, f"this process used all of its {BLOCK} ports"
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
