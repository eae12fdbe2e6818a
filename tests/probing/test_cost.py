from __future__ import annotations

import gzip
import json
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

import proxyhealth.probing.probe as probe_module
from tests.probing.asking import (
    FLOODS,
    HEAD,
    OK,
    PROTOCOL,
    ask,
    verdict,
)
from tests.support import servers
from tests.support.machine import at_most
from tests.support.servers import (
    Server,
    chunked,
    flood,
    redirect,
    report,
    response,
    send,
)

# Memory, sockets, threads and time of a probe.


@pytest.fixture
def allocated() -> Iterator[Callable[[], int]]:
    tracemalloc.start()

    def peak() -> int:
        """Return the peak of allocated bytes since the last call, above the amount at that call."""
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
    "lists": send(response('{"a":[' + "[]," * 21_000 + "0]}")),
    "objects": send(response('{"a":[' + "{}," * 21_000 + "0]}")),
    "keys": send(response("[" + '{"":0},' * 9_000 + "0]")),
    "short errors": send(response('{"errors":[' + '"😀",' * 9_000 + '"x"]}')),
    "10,000 errors": send(response(json.dumps({"errors": ["x"] * 10_000}))),
    "long error": send(response(json.dumps({"errors": ["x" * 60_000]}))),
    "page": send(response("<h1>" + "😀" * 16_000)),
    "long redirects": send(redirect("/" + "é" * 30_000)),
    "redirects": send(redirect("/" + "x" * 1_900)),
    "bomb": send(response(gzip.compress(b" " * 10_000_000), "Content-Encoding: gzip")),
}


@pytest.mark.parametrize("script", COSTLY.values(), ids=COSTLY)
def test_probe__memory_is_limited_for_any_response(
    script: servers.Script, allocated: Callable[[], int]
) -> None:
    with Server(script) as server:
        ask(server)  # fills caches
        allocated()
        ask(server)
        assert allocated() < 1_000_000


@pytest.mark.parametrize("script", [*COSTLY.values(), send(report()), send(b""), send(redirect("/x"))])
def test_probe__leaves_no_socket_and_no_thread(script: servers.Script) -> None:
    with Server(script) as server:
        threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            ask(server)
        deadline = time.monotonic() + 5
        while threading.active_count() > threads or len(os.listdir("/proc/self/fd")) > files:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_probe__long_redirect_is_fast() -> None:
    """Parsing a host name of this kind takes quadratic time."""
    location = "http://e" + "\u0301\u0327" * 15_000 + ".example/"
    head = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n".encode()
    with Server(send(head)) as server, at_most(1):
        result = ask(server)
    assert verdict(result) == PROTOCOL
    (error,) = result.report.errors
    assert error.endswith("cannot be used: it is longer than 2,000 characters, with those before it")


def test_probe__urls_of_redirects_are_not_cached() -> None:
    probe_module._report_of.cache_clear()  # an earlier server may have had the same port
    script = servers.sequence(*(send(redirect(f"/{number}")) for number in range(4)), send(report()))
    with Server(script) as server:
        assert verdict(ask(server)) == OK
    assert probe_module._report_of.cache_info().currsize == 1
