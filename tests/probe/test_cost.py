from __future__ import annotations

import gzip
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from tests import servers
from tests.probe.asking import (
    FLOODS,
    HEAD,
    ask,
)
from tests.servers import (
    Server,
    chunked,
    flood,
    redirect,
    report,
    response,
    send,
)

# What a probe may cost.


@pytest.fixture
def allocated() -> Iterator[Callable[[], int]]:
    tracemalloc.start()

    def peak() -> int:
        """The most bytes there were since the last call, above those that there were then."""
        nonlocal before
        current, peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        most, before = peak - before, current
        return most

    before = 0
    yield peak
    tracemalloc.stop()


COSTLY = {
    **FLOODS,
    "header": flood(b"y" * 65536, start=HEAD + b"X: "),
    "headers": flood(b"X: y\r\n" * 1000, start=HEAD),
    "status line": flood(b"y" * 65536, start=b"HTTP/1.1 200 "),
    "early hints": flood(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),
    "chunk size": flood(b"0" * 65536, start=chunked(end=b"")),
    "not HTTP": flood(b"y" * 65536),
    "fat headers": send(response("{}", *(f"X-{i}: {'y' * 600}" for i in range(90)))),
    "nested": send(response("[" * 65_000)),
    "bomb": send(response(gzip.compress(b" " * 10_000_000), "Content-Encoding: gzip")),
}


@pytest.mark.parametrize("script", COSTLY.values(), ids=COSTLY)
def test_probe__needs_little_memory_whatever_comes(
    script: servers.Script, allocated: Callable[[], int]
) -> None:
    with Server(script) as server:
        ask(server)  # what is built once is not what a probe costs
        allocated()
        ask(server)
        assert allocated() < 1_000_000


@pytest.mark.parametrize("script", [*COSTLY.values(), send(report()), send(b""), send(redirect("/x"))])
def test_probe__leaves_no_socket_and_no_thread_behind(script: servers.Script) -> None:
    with Server(script) as server:
        threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            ask(server)
        deadline = time.monotonic() + 5
        while threading.active_count() > threads or len(os.listdir("/proc/self/fd")) > files:
            assert time.monotonic() < deadline
            time.sleep(0.01)
