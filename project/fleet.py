"""The demo fleet: small HTTP servers that simulate healthy and failing proxies."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Member:
    """A demo proxy.

    ``port`` is an offset from the web server's port; 0 means no URL. ``latency`` is the delay of
    ``/latency-check`` in ms: it simulates distance, because the whole fleet runs on one machine. ``flag`` is
    the name of an icon in static/project/flags. ``region`` is a label.
    """

    name: str
    display_name: str
    port: int
    behaviour: str
    status: str
    reason: str = ""
    flag: str = field(kw_only=True)
    region: str = field(kw_only=True)
    latency: int = field(kw_only=True)

    def url(self, base_port: int) -> str:
        return f"http://{HOST}:{base_port + self.port}" if self.port else ""


FLEET = (
    Member("paris", "Paris", 1, "healthy", "ok", flag="fr", region="eu", latency=9),
    Member("sao-paulo", "São Paulo", 2, "warnings", "ok", flag="br", region="sa", latency=48),
    Member("sydney", "Sydney", 3, "errors", "unhealthy", "report_errors", flag="au", region="au", latency=79),
    Member("tokyo", "Tokyo", 4, "error_500", "unhealthy", "status_code", flag="jp", region="as", latency=66),
    Member("mumbai", "Mumbai", 5, "web_page", "unhealthy", "not_json", flag="in", region="as", latency=37),
    Member("cape-town", "Cape Town", 6, "slow", "unreachable", "timeout", flag="za", region="af", latency=54),
    Member("dublin", "Dublin", 7, "refusing", "unreachable", "connect", flag="ie", region="eu", latency=5),
    Member("oslo", "Oslo", 0, "unregistered", "unregistered", flag="no", region="eu", latency=14),
)

# Offsets from the web server's port, like those of the members.
REDIS_PORT = 8
MAIL_PORT = 9

# The purpose of each port. A refusing proxy has a port, too, although nothing listens on it.
PORT_PURPOSES = {member.port: member.name for member in FLEET if member.port}

# Pages of other sites may read the response and its timing.
LATENCY_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Timing-Allow-Origin": "*",
    "Cache-Control": "no-store",
}


def _report(errors: list[str] | None = None, warnings: list[str] | None = None) -> tuple[int, str, str]:
    return 200, "application/json", json.dumps({"errors": errors, "warnings": warnings})


RESPONSES: dict[str, Callable[[], tuple[int, str, str]]] = {
    "healthy": _report,
    "warnings": lambda: _report(warnings=["The version of this proxy is older than the control plane's."]),
    "errors": lambda: _report(
        errors=["The control plane cannot be reached from here: connection timed out."],
        warnings=["The certificate of the wildcard host name expires in 9 days."],
    ),
    "error_500": lambda: (500, "text/plain", "internal server error\n"),
    "web_page": lambda: (200, "text/html; charset=utf-8", "<!doctype html><h1>Welcome to nginx!</h1>"),
}


class DemoProxy:
    """The server of one proxy. It can be stopped and started again on the same port."""

    def __init__(self, member: Member, base_port: int) -> None:
        self.member = member
        self.address = (HOST, base_port + member.port)
        self._server: _Server | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    @property
    def running(self) -> bool:
        return self._server is not None

    def start(self) -> None:
        with self._lock:
            if self._server is None:
                self._stopping.clear()
                self._server = _Server(self.address, self._handler())
                threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        with self._lock:
            if self._server is not None:
                self._stopping.set()
                self._server.shutdown()
                self._server.server_close()
                self._server = None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        behaviour, latency, stopping = self.member.behaviour, self.member.latency / 1000, self._stopping

        class Handler(_Handler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/latency-check":
                    if stopping.wait(latency):
                        self.close_connection = True
                    else:
                        self.respond(200, "text/plain", "ok\n", LATENCY_HEADERS)
                elif path != "/healthz-report":
                    self.respond(404, "text/plain", "Valid paths: /healthz-report and /latency-check\n")
                elif behaviour == "slow":
                    stopping.wait(60)  # longer than the timeout of a probe
                    self.close_connection = True
                else:
                    self.respond(*RESPONSES[behaviour]())

        return Handler


# Not http.server's: that one looks up the name of its host, which can take seconds.
class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Print nothing: a client has closed its connection."""


class _Handler(BaseHTTPRequestHandler):
    def respond(
        self, status: int, content_type: str, text: str, headers: Mapping[str, str] | None = None
    ) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the probes of every round would hide the other lines."""


class Fleet:
    """The servers of the demo proxies, on the ports after ``base_port``."""

    def __init__(self, base_port: int) -> None:
        self._proxies = {
            member.name: DemoProxy(member, base_port)
            for member in FLEET
            if member.port and member.behaviour != "refusing"
        }

    def start(self) -> None:
        """Start all servers, or none if a port is not available."""
        try:
            for proxy in self._proxies.values():
                proxy.start()
        except OSError:
            self.stop()
            raise

    def stop(self) -> None:
        for proxy in self._proxies.values():
            proxy.stop()

    def change(self, verb: str, name: str) -> str:
        """Start or stop the proxy with this name. Return its new state, or raise ``ValueError``."""
        proxy = self._proxies.get(name.lower())
        if proxy is None:
            problem = f"NAME={name} is not a proxy with a server" if name else "NAME is missing"
            raise ValueError(f"{problem}. Valid names: {', '.join(self._proxies)}")
        if verb == "start":
            proxy.start()
        else:
            proxy.stop()
        return f"{proxy.member.name} is {'running' if proxy.running else 'stopped'}"
