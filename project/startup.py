"""Checks that ``make run`` and ``make prometheus`` make before they start anything."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from project.fleet import HOST

BASE_DIR = Path(__file__).resolve().parent.parent
VAR = BASE_DIR / "var"
DEFAULT_PORT = 8000

# The superuser that `make run` creates in a database of its own. It sets the variable for its processes.
DEMO_USER = "demo"
DEMO_PASSWORD = "demo"  # noqa: S105
DEMO_MODE = "PROXYHEALTH_DEMO"
# Its value if Redis, too, is that of the demo alone. Then the demo begins with a day of made-up history.
WITH_HISTORY = "history"


class CannotStart(Exception):
    """The reason, in one line, why a command cannot start."""


def is_set(variable: str) -> bool:
    """Return True if the environment has a value for a variable, or the path of a file with the value."""
    return bool(os.environ.get(variable) or os.environ.get(f"{variable}_FILE"))


def read_port(variable: str, default: int, highest: int = 65_535) -> int:
    """Return the port in an environment variable. Raise ``CannotStart`` if it is not valid."""
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= highest:
        raise CannotStart(f"{variable} must be a number from 1 to {highest}, not {text!r}")
    return int(text)


def require_free_port(port: int, purpose: str) -> None:
    """Raise ``CannotStart`` if a port cannot be bound."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError as error:
            raise CannotStart(f"port {port} for {purpose} is not available ({error.strerror})") from None
