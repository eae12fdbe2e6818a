"""``make stop-worker`` and similar commands for the running demo.

``make run`` listens on a Unix socket in var/. Web pages cannot connect to one, and its mode keeps other users
out. It belongs to one directory, so the commands find the demo whatever its port is.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from socket import AF_UNIX, socket
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer

from project.startup import BASE_DIR, CannotStart, is_set, read_port

# Relative, because the path of a socket may have at most 103 characters.
SOCKET = Path("var", "run.sock")
TIMEOUT = 30  # s

NO_DEMO = "no demo runs in this directory. Start it with: make run"


def listen(port: int, execute: Callable[[str, str], str]) -> None:
    """Execute the commands that arrive while this process runs. ``execute`` may raise ``ValueError``."""

    class Handler(StreamRequestHandler):
        timeout = TIMEOUT

        def handle(self) -> None:
            with suppress(OSError):  # the command was interrupted
                request = json.loads(self.rfile.readline())
                try:
                    if request["port"] not in (None, port):
                        raise ValueError(
                            f"the demo in this directory uses port {port}, not {request['port']}. "
                            f"Omit PORT, or run the command in the directory of the other demo"
                        )
                    answer = {"text": execute(request["command"], request["name"])}
                except ValueError as error:
                    answer = {"error": str(error)}
                self.wfile.write(f"{json.dumps(answer)}\n".encode())

    SOCKET.unlink(missing_ok=True)  # of a demo that was killed
    mask = os.umask(0o177)
    try:
        server = ThreadingUnixStreamServer(str(SOCKET), Handler)
    finally:
        os.umask(mask)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()


def send(command: str, name: str = "", port: int | None = None) -> str:
    """Return the answer of the demo that runs in this directory. Raise ``CannotStart`` if none does."""
    request = json.dumps({"command": command, "name": name, "port": port})
    try:
        with socket(AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(str(SOCKET))
            connection.sendall(f"{request}\n".encode())
            with connection.makefile() as file:
                answer = json.loads(file.readline())
    except (FileNotFoundError, ConnectionError, ValueError):
        raise CannotStart(NO_DEMO) from None
    except OSError as error:
        raise CannotStart(f"the demo does not respond: {error.strerror or error}") from error
    if "error" in answer:
        raise CannotStart(answer["error"])
    text: str = answer["text"]
    return text


def is_listening() -> bool:
    with socket(AF_UNIX) as connection:
        return connection.connect_ex(str(SOCKET)) == 0


def main(command: str) -> int:
    os.chdir(BASE_DIR)
    try:
        port = read_port("PORT", 0) if is_set("PORT") else None
        print(send(command, os.environ.get("NAME", ""), port))
    except CannotStart as error:
        print(f"make {command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
