"""Measure the cost of reads: the JSON view over HTTP, and calls within a process.

    python -m benchmarks.read [--proxies 1000 10000] [--seconds 4] [--quick]

Over HTTP: the server is gunicorn with default settings, one process with one thread. Sessions and rows
are in SQLite, the snapshot is in Valkey. Four authenticated clients send requests without a pause. The
view is compared with a bare view that returns the same bytes with the same authentication, and with a
view that builds its response from the database and the cache for each request. The views take nine turns,
in alternating order. The throughput is the median of the turns, a ratio is the median of the ratios
within the turns, and the 99th percentile is that of all requests.

In a process: ``health_status()`` and ``proxy_hosts()``. The program measures the first call after each of
ten full rounds that change every status, and the calls between two changes, including the polls of the
cache. The cost of the middleware is the difference to a request without it.

The exit code is 1 if a target is missed. ``--quick`` only shows that the program works; its numbers mean
nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from benchmarks.processes import add_proxies, deployment, is_listening, wait_for

CLIENTS = 4
TURNS = 9
VIEW = "/api/v2/workspaceproxies"

MIN_RATIO_TO_BARE = 0.9
MIN_RATIO_TO_BUILT = 15.0
CALL_LIMIT = 5e-6
FIRST_CALL_LIMIT = 0.1
MIDDLEWARE_LIMIT = 10e-6


class Case(NamedTuple):
    name: str
    path: str
    headers: str = ""


# Over HTTP


class Response(NamedTuple):
    status: int
    etag: str
    size: int


class Client:
    """A minimal HTTP client that uses little CPU. It opens a new connection for each request."""

    def __init__(self, base: str, request: str) -> None:
        self._address = (urlsplit(base).hostname, urlsplit(base).port)
        self._request = request.encode()
        self._buffer = bytearray(1 << 20)

    def send_request(self) -> Response:
        with socket.create_connection(self._address) as sock:
            sock.sendall(self._request)
            head = b""
            while b"\r\n\r\n" not in head:
                head += self._receive(sock, len(self._buffer))
            head, _, body = head.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in lines[1:])
            status = int(lines[0].split()[1])
            size = 0 if status == 304 else int(fields["content-length"])
            left = size - len(body)
            while left > 0:
                left -= len(self._receive(sock, left))
        return Response(status, fields.get("etag", ""), size)

    def _receive(self, sock: socket.socket, limit: int) -> memoryview:
        count = sock.recv_into(self._buffer, min(limit, len(self._buffer)))
        if not count:
            raise ConnectionError("the server has closed the connection")
        return memoryview(self._buffer)[:count]


def format_request(case: Case, cookie: str) -> str:
    return f"GET {case.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\n{case.headers}\r\n"


def run_turn(base: str, case: Case, cookie: str, seconds: float, expected: Response) -> list[float]:
    """Return the seconds of each request. Raise ``AssertionError`` if a response is not the expected one."""
    times: list[float] = []
    unexpected: list[Response] = []
    end = time.monotonic() + seconds

    def run() -> None:
        client = Client(base, format_request(case, cookie))
        while time.monotonic() < end:
            begin = time.perf_counter()
            response = client.send_request()
            times.append(time.perf_counter() - begin)
            if (response.status, response.size) != (expected.status, expected.size):
                unexpected.append(response)

    threads = [threading.Thread(target=run) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not unexpected, f"{case.name}: {unexpected[0]}, not {expected}"
    return times


@contextmanager
def gunicorn(folder: Path) -> Iterator[str]:
    """Run the project under gunicorn. Yield its base URL."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with (folder / "gunicorn.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "project.wsgi"],
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "benchmarks.read_settings"},
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: is_listening(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def sign_in() -> str:
    """Return the session cookie of a user with the permission to view proxies."""
    from django.contrib.auth.models import Permission, User
    from django.test import Client

    user, _ = User.objects.get_or_create(username="reader")
    user.user_permissions.set(Permission.objects.filter(codename="view_workspaceproxy"))
    client = Client()
    client.force_login(user)
    return f"sessionid={client.cookies['sessionid'].value}"


def measure_http(folder: Path, count: int, seconds: float) -> list[str]:
    """Print the rows for ``count`` proxies. Return the missed targets."""
    cookie = sign_in()
    with gunicorn(folder) as base:
        etag = Client(base, format_request(Case("", VIEW), cookie)).send_request().etag
        cases = [
            Case("bare view", "/bare"),
            Case("the view", VIEW),
            Case("the view, gzip", VIEW, "Accept-Encoding: gzip\r\n"),
            Case("the view, 304", VIEW, f"If-None-Match: {etag}\r\n"),
            Case("regions", "/api/v2/regions"),
            Case("built each time", "/built"),
        ]
        expected = {case: Client(base, format_request(case, cookie)).send_request() for case in cases}
        assert expected[cases[0]].size == expected[cases[1]].size, "the bare view and the view differ"
        assert expected[cases[3]].status == 304, "the ETag does not match"
        turns: dict[Case, list[list[float]]] = {case: [] for case in cases}
        for turn in range(TURNS):
            for case in cases if turn % 2 else reversed(cases):
                turns[case].append(run_turn(base, case, cookie, seconds, expected[case]))
    return report_http(count, seconds, expected, turns)


def report_http(
    count: int, seconds: float, responses: dict[Case, Response], turns: dict[Case, list[list[float]]]
) -> list[str]:
    """Print a row for each case. Return the missed targets. ``turns`` has the seconds of all requests."""
    rates = {case: [len(turn) / seconds for turn in turns[case]] for case in turns}

    def ratio(case: Case, other: Case) -> float:
        """Return the median ratio within the turns: other load on the machine affects both sides."""
        return statistics.median(a / b for a, b in zip(rates[case], rates[other], strict=True))

    bare, view, *_, built = turns
    for case in turns:
        times = sorted(time for turn in turns[case] for time in turn)
        p99 = times[int(len(times) * 0.99)] * 1e3
        size = responses[case].size / 1e3
        rate = statistics.median(rates[case])
        ratios = f"{ratio(case, bare):.2f} | {ratio(case, built):.1f}"
        print(f"| {count:,} | {case.name} | {size:,.0f} | {rate:,.0f} | {p99:.1f} | {ratios} |", flush=True)
    missed = []
    if (to_bare := ratio(view, bare)) < MIN_RATIO_TO_BARE:
        missed.append(f"{count:,}: {to_bare:.2f} times the bare view, target: {MIN_RATIO_TO_BARE}")
    if (to_built := ratio(view, built)) < MIN_RATIO_TO_BUILT:
        missed.append(
            f"{count:,}: {to_built:.1f} times the one built each time, target: {MIN_RATIO_TO_BUILT}"
        )
    return missed


# Within a process


def commit_round(number: int, tls_expires_at: datetime | None = None) -> None:
    """Commit a full round, as a worker does. The number selects the statuses: 5 % are unreachable.

    With ``tls_expires_at``, the healthy proxies have certificates.
    """
    from proxyhealth.models import WorkspaceProxy
    from proxyhealth.report import HealthReport
    from proxyhealth.snapshot import ProxyStatus
    from proxyhealth.statuses import Reason, Status
    from proxyhealth.storage.commit import commit
    from proxyhealth.storage.lease import take_token
    from proxyhealth.storage.merge import Round

    now = datetime.now(UTC)
    statuses = []
    for index, proxy in enumerate(WorkspaceProxy.objects.active().as_proxies()):
        host = urlsplit(proxy.url).netloc
        if (index + number) % 20:
            warnings = ("The certificate expires in 9 days.",) if index % 3 == 0 else ()
            report = HealthReport(warnings=warnings)
            latency = 0.05 + (index * 7 + number) % 1000 / 1e4
            status = ProxyStatus(proxy, host, Status.OK, Reason.NONE, report, now, latency, tls_expires_at)
            statuses.append(status)
        else:
            report = HealthReport(errors=("request to proxy failed: no answer within 5 s",))
            statuses.append(ProxyStatus(proxy, host, Status.UNREACHABLE, Reason.TIMEOUT, report, now))
    commit(statuses, take_token(), full_round=Round(now, 1.0))


def commit_in_child(number: int, tls_expires_at: datetime | None = None) -> None:
    """Call ``commit_round()`` in a child process, so that this process does not collect its garbage."""
    from django.db import connections

    connections.close_all()
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=commit_round, args=(number, tls_expires_at))
    worker.start()
    worker.join()
    assert worker.exitcode == 0, "the round was not committed"


def time_per_call(call: Callable[[], object], seconds: float) -> float:
    """Return the mean seconds of a call. The calls last long enough to include polls of the cache."""
    count = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for _ in range(1_000):
            call()
        count += 1_000
    return (time.perf_counter() - begin) / count


def first_call(call: Callable[[], object], number: int) -> float:
    """Return the seconds of the first call after a new round."""
    from proxyhealth.conf import conf
    from proxyhealth.storage import reader

    call()
    before = reader.read().number
    commit_in_child(number)
    time.sleep(conf.READ_INTERVAL)
    begin = time.perf_counter()
    call()
    seconds = time.perf_counter() - begin
    assert reader.read().number > before, "the call did not return the new round"
    return seconds


def measure_process(count: int, seconds: float) -> list[str]:
    """Print the rows for ``count`` proxies. Return the missed targets."""
    from proxyhealth.health import health_status, proxy_hosts

    missed = []
    calls: list[Callable[[], object]] = [health_status, proxy_hosts]
    for call in calls:
        name = f"{call.__name__}()"
        firsts = [first_call(call, number) for number in range(10)]
        between = time_per_call(call, seconds)
        print(
            f"| {count:,} | {name} | {between * 1e6:.2f} | {statistics.median(firsts) * 1e3:.0f} "
            f"| {max(firsts) * 1e3:.0f} |",
            flush=True,
        )
        if between >= CALL_LIMIT:
            missed.append(f"{count:,}: {name} takes {between * 1e6:.2f} µs, target: below 5 µs")
        if statistics.median(firsts) >= FIRST_CALL_LIMIT:
            first = statistics.median(firsts) * 1e3
            missed.append(f"{count:,}: the first {name} takes {first:.0f} ms, target: below 100 ms")
    return missed


def measure_middleware(counts: list[int], seconds: float) -> list[str]:
    """Print a row for each number of proxies. Return the missed targets."""
    from django.http import HttpRequest, HttpResponse

    from proxyhealth.middleware import ProxyHostsMiddleware

    policy = "default-src 'self'; script-src 'self' 'nonce-{}'; connect-src 'self'; img-src *"

    def respond(request: HttpRequest) -> HttpResponse:
        response = HttpResponse()
        # A different policy for each request, as with a nonce.
        response["Content-Security-Policy"] = policy.format(time.perf_counter_ns())
        return response

    request = HttpRequest()
    middleware = ProxyHostsMiddleware(respond)
    missed = []
    for count in counts:
        add_proxies(f"https://proxy-{index}.example.com" for index in range(count))
        commit_round(0)
        assert ("//proxy-0." in middleware(request)["Content-Security-Policy"]) == (count > 0)
        cost = time_per_call(partial(middleware, request), seconds)
        cost -= time_per_call(partial(respond, request), seconds)
        print(f"| {count:,} | {cost * 1e6:.2f} |", flush=True)
        if cost >= MIDDLEWARE_LIMIT:
            missed.append(f"{count:,}: the middleware takes {cost * 1e6:.2f} µs, target: below 10 µs")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--proxies", type=int, nargs="+", default=[1_000, 10_000], help="numbers of proxies")
    parser.add_argument("--seconds", type=float, default=4, help="seconds of each turn")
    parser.add_argument("--quick", action="store_true", help="few proxies and short turns")
    options = parser.parse_args()
    if options.quick:
        options.proxies, options.seconds = [100], 0.5
    missed = []
    with deployment() as folder:
        print("| proxies | view | KB | requests/s | 99 % ms | bare = 1 | built each time = 1 |")
        print("|---|---|---|---|---|---|---|")
        for count in options.proxies:
            add_proxies(f"https://proxy-{index}.example.com" for index in range(count))
            commit_round(0)
            missed += measure_http(folder, count, options.seconds)
        print("\n| proxies | call | µs between changes | first after a change, ms, median | max |")
        print("|---|---|---|---|---|")
        for count in options.proxies:
            add_proxies(f"https://proxy-{index}.example.com" for index in range(count))
            missed += measure_process(count, options.seconds)
        print("\n| proxies | middleware, µs a request |")
        print("|---|---|")
        missed += measure_middleware([0, 10, 100], options.seconds)
    for line in missed:
        print(f"target missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
