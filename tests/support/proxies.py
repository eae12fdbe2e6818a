"""Well-behaved workspace proxies over real HTTP, for tests that need more than a probe."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class WorkspaceProxyServer:
    """A server that answers requests with ``report``, after ``delay`` seconds and once ``gate`` is set."""

    def __init__(
        self,
        report: Any = None,
        delay: float = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.report = {"errors": [], "warnings": []} if report is None else report
        self.delay = delay
        self.requests = 0
        self.gate = threading.Event()
        self.gate.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                with outer.answering(self.client_address[1]):
                    time.sleep(outer.delay)
                    outer.gate.wait(10)
                    body = json.dumps(outer.report).encode()
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Ignore a prober that closed its connection."""

        self._server = Server((host, port), Handler)
        if tls:
            # The thread of the connection does the handshake.
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.port = self._server.server_port
        self.host = f"{host}:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"

    @contextmanager
    def answering(self, client_port: int) -> Iterator[None]:
        """Wrap each answer; a subclass can record it."""
        yield

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def wait_for(condition: Callable[[], Any], seconds: float = 5, what: str = "") -> Any:
    """Poll until ``condition()`` is true, and return its value. Fail after ``seconds``.

    It is called once more after that time, because the first call may have taken all of it.
    """
    end = time.monotonic() + seconds
    while True:
        last = time.monotonic() >= end
        result = condition()
        if result:
            return result
        assert not last, f"not within {seconds} s: {what or condition}"
        time.sleep(0.02)


def queued(redis_client: Any) -> list[dict[str, Any]]:
    """Return the headers of the tasks in the queue."""
    return [json.loads(message)["headers"] for message in redis_client.lrange("celery", 0, -1)]
