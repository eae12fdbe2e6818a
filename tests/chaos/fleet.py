"""Proxies that die, come back at the same address, say nothing, and keep a record of who asked."""

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
class Asked:
    """One request: when it came and when it was answered (monotonic), and the process that sent it."""

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
    """A proxy with a name and an address of its own; up from the start."""

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
        self.asked: list[Asked] = []
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
        """From now on connections are refused."""
        if self._server is not None:
            self._server.__exit__(None, None, None)
            self._server = None

    def _apply(self) -> None:
        if self._server is not None:
            self._server.report = {"errors": self._errors, "warnings": []}
            (self._server.gate.clear if self._silent else self._server.gate.set)()

    @property
    def status(self) -> str:
        """What a round finds now."""
        if self._server is None or self._silent:
            return "unreachable"
        return "unhealthy" if self._errors else "ok"

    def report_errors(self, *errors: str) -> None:
        self._errors = list(errors)
        self._apply()

    def be_silent(self, silent: bool = True) -> None:
        """Take requests and hold them: a round takes as long as the probe's timeout."""
        self._silent = silent
        self._apply()

    @contextmanager
    def recorded(self, client_port: int) -> Iterator[None]:
        asked = Asked(time.monotonic(), self.owner_of(client_port, self.port))
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.asked.append(asked)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1
                asked.end = time.monotonic()

    def wait_for_request(self, seconds: float, before: int | None = None) -> Asked:
        """The next request, or the one after ``before`` others, while it is being answered."""
        before = len(self.asked) if before is None else before
        end = time.monotonic() + seconds
        while len(self.asked) == before:
            assert time.monotonic() < end, f"nobody asked {self.name} within {seconds} s"
            time.sleep(0.005)
        return self.asked[before]
