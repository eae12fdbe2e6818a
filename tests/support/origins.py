"""Two origins for tests in a browser: Django in a thread of the test, and a host of static pages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.servers.basehttp import ThreadedWSGIServer
from django.db import connections
from django.test.testcases import LiveServerThread

# As strict as a page with a script can be.
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src http:; connect-src http:"


class _Server(ThreadedWSGIServer):
    daemon_threads = False  # their connection must stay shared until the last of them has ended

    def serve_forever(self, poll_interval: float = 0.02) -> None:
        super().serve_forever(poll_interval)  # Django's server takes half a second to end


class _Thread(LiveServerThread):
    server_class = _Server


@contextmanager
def serve_django() -> Iterator[str]:
    """Serve the project with the settings of this moment and the connection of the test. Yield the origin."""
    connection = connections["default"]
    connection.inc_thread_sharing()
    thread = _Thread("127.0.0.1", StaticFilesHandler, connections_override={"default": connection})
    thread.daemon = True
    thread.start()
    thread.is_ready.wait()
    try:
        if thread.error:
            raise thread.error
        yield f"http://127.0.0.1:{thread.port}"
    finally:
        thread.terminate()
        connection.dec_thread_sharing()


class _Handler(SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve_pages(folder: Path) -> Iterator[str]:
    """Serve the files of ``folder`` with a strict policy. Yield the origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
