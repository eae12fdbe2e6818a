"""The demo fleet: small HTTP servers that simulate healthy and failing proxies.

``python -m project.fleet serve 8000`` starts all of them, on the ports after the web server's port 8000.
``python -m project.fleet stop paris`` stops one while the fleet runs; ``start paris`` starts it again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Member:
    """A demo proxy.

    ``port`` is an offset from the web server's port; 0 means no URL. ``latency`` is the delay of
    ``/latency-check`` in ms: it simulates distance, because the whole fleet runs on one machine. ``flag`` is
    the name of an icon in static/project/flags.
    """

    name: str
    display_name: str
    port: int
    behaviour: str
    status: str
    reason: str = ""
    flag: str = field(kw_only=True)
    latency: int = field(kw_only=True)

    def url(self, base_port: int) -> str:
        return f"http://{HOST}:{base_port + self.port}" if self.port else ""


FLEET = (
    Member("paris", "Paris", 1, "healthy", "ok", flag="fr", latency=9),
    Member("sao-paulo", "São Paulo", 2, "warnings", "ok", flag="br", latency=48),
    Member("sydney", "Sydney", 3, "errors", "unhealthy", "report_errors", flag="au", latency=79),
    Member("tokyo", "Tokyo", 4, "error_500", "unhealthy", "status_code", flag="jp", latency=66),
    Member("mumbai", "Mumbai", 5, "web_page", "unhealthy", "not_json", flag="in", latency=37),
    Member("cape-town", "Cape Town", 6, "slow", "unreachable", "timeout", flag="za", latency=54),
    Member("dublin", "Dublin", 7, "refusing", "unreachable", "connect", flag="ie", latency=5),
    Member("oslo", "Oslo", 0, "unregistered", "unregistered", flag="no", latency=14),
)

# Offsets from the web server's port, like those of the members.
CONTROL_PORT = 8
REDIS_PORT = 9

# The purpose of each port. A refusing proxy has a port, too, although nothing listens on it.
PORT_PURPOSES = {
    **{member.port: member.name for member in FLEET if member.port},
    CONTROL_PORT: "the control of the demo fleet",
}

# A page of another site can send it to the control server only after a preflight request, which fails.
CONTROL_HEADER = "Proxyhealth-Demo"

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
        self._server: ThreadingHTTPServer | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    @property
    def running(self) -> bool:
        return self._server is not None

    def start(self) -> None:
        with self._lock:
            if self._server is None and self.member.behaviour != "refusing":
                self._stopping.clear()
                self._server = ThreadingHTTPServer(self.address, self._handler())
                self._server.daemon_threads = True
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


def serve(base_port: int) -> None:
    """Serve the fleet and its control server until SIGTERM."""
    proxies = {member.name: DemoProxy(member, base_port) for member in FLEET if member.port}

    class Control(_Handler):
        """The control server. GET / lists the proxies; POST /<name>/stop and /<name>/start change one."""

        def parse_request(self) -> bool:
            # Called before each method. A foreign Host is the name of a site that DNS rebinding led here.
            if not super().parse_request():
                return False
            own = {f"{host}:{base_port + CONTROL_PORT}" for host in (HOST, "localhost")}
            if self.headers.get_all("Host") in [[host] for host in own] and CONTROL_HEADER in self.headers:
                return True
            self.close_connection = True
            self.respond(403, "text/plain", "Use `make stop-proxy NAME=paris` or `make start-proxy`.\n")
            return False

        def do_GET(self) -> None:
            states = {name: proxy.running for name, proxy in proxies.items()}
            self.respond(200, "application/json", json.dumps(states))

        def do_POST(self) -> None:
            name, _, verb = self.path.strip("/").partition("/")
            if name not in proxies or verb not in ("start", "stop"):
                names = ", ".join(proxies)
                self.respond(404, "text/plain", f"Unknown proxy or command. Valid proxies: {names}\n")
                return
            getattr(proxies[name], verb)()
            state = "running" if proxies[name].running else "stopped"
            print(f"{name} is {state}", flush=True)
            self.respond(200, "text/plain", f"{name} is {state}\n")

    for proxy in proxies.values():
        proxy.start()
        member = proxy.member
        print(f"{member.url(base_port)}  {member.name}: {member.behaviour}", flush=True)
    control = ThreadingHTTPServer((HOST, base_port + CONTROL_PORT), Control)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=control.shutdown).start())
    control.serve_forever(0.05)
    for proxy in proxies.values():
        proxy.stop()


def send_command(base_port: int, verb: str, name: str) -> int:
    """Stop or start one proxy of the running fleet. Return an exit code."""
    url = f"http://{HOST}:{base_port + CONTROL_PORT}/{name}/{verb}"
    request = urllib.request.Request(url, method="POST", headers={CONTROL_HEADER: "1"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            print(response.read().decode().strip())
    except urllib.error.HTTPError as error:
        print(error.read().decode().strip(), file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"The demo fleet does not respond at {url}: {error}. Start `make run`, or set the same PORT.",
            file=sys.stderr,
        )
        return 1
    return 0


def main(arguments: list[str]) -> int:
    match arguments:
        case ["serve", port] if port.isdecimal():
            serve(int(port))
            return 0
        case ["start" | "stop" as verb, name] if (port := os.environ.get("PORT") or "8000").isdecimal():
            return send_command(int(port), verb, name)
    print("usage: [PORT=8000] python -m project.fleet serve PORT | start NAME | stop NAME", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
