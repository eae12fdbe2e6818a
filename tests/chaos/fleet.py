"""Proxies that stop, return at the same address or stay silent, and that record their requests."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.ports import free_port
from tests.support.proxies import WorkspaceProxyServer


@dataclass
class Request:
    """A request: when it arrived and was answered (monotonic), and the id of the process that sent it."""

    begin: float
    pid: int | None = None
    end: float | None = None


class _Server(WorkspaceProxyServer):
    proxy: ChaosProxy

    @contextmanager
    def answering(self, client_port: int) -> Iterator[None]:
        with self.proxy.recorded(client_port):
            yield


class ChaosProxy:
    """A proxy with a name and an address of its own. It starts at once."""

    def __init__(
        self,
        name: str,
        delay: float = 0,
        errors: tuple[str, ...] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.requests: list[Request] = []
        self.most_at_once = 0
        self.owner_of: Callable[[int, int], int | None] = lambda client_port, server_port: None
        self._at_once = 0
        self._lock = threading.Lock()
        self._delay = delay
        self._tls = tls
        self._errors = list(errors)
        self._silent = False
        self._server: WorkspaceProxyServer | None = None
        self.start()

    def start(self) -> None:
        if self._server is None:
            server = _Server(delay=self._delay, port=self.port, tls=self._tls)
            server.proxy = self
            self._server = server
            self._apply()
            server.__enter__()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.__exit__(None, None, None)
            self._server = None

    def _apply(self) -> None:
        if self._server is not None:
            self._server.report = {"errors": self._errors, "warnings": []}
            (self._server.gate.clear if self._silent else self._server.gate.set)()

    @property
    def status(self) -> str:
        """Return the status that a round would find now."""
        if self._server is None or self._silent:
            return "unreachable"
        return "unhealthy" if self._errors else "ok"

    def report_errors(self, *errors: str) -> None:
        self._errors = list(errors)
        self._apply()

    def be_silent(self, silent: bool = True) -> None:
        """Accept requests without answering them: a round then lasts as long as the probe's timeout."""
        self._silent = silent
        self._apply()

    @contextmanager
    def recorded(self, client_port: int) -> Iterator[None]:
        request = Request(time.monotonic(), self.owner_of(client_port, self.port))
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.requests.append(request)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1
                request.end = time.monotonic()

    def wait_for_request(self, seconds: float, before: int | None = None) -> Request:
        """Return the next request, or the one after ``before`` others, as soon as it arrives."""
        before = len(self.requests) if before is None else before
        end = time.monotonic() + seconds
        while len(self.requests) == before:
            assert time.monotonic() < end, f"no request to {self.name} within {seconds} s"
            time.sleep(0.005)
        return self.requests[before]
