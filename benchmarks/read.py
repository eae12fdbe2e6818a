"""What reads cost: the JSON view over HTTP, and what a project's own code reads in its process.

    python -m benchmarks.read [--proxies 1000 10000] [--seconds 4] [--quick]

Over HTTP: gunicorn as it is by default, one process of one thread; sessions and rows in SQLite, the snapshot
in a Valkey. Four clients ask as fast as they can, signed in. The view is compared with a bare view that
returns the same bytes behind the same sign-in, and with one that builds its answer from the database and the
cache each time. They take turns, nine times, now forth and now back; throughput is the median of the turns,
a ratio the median of those within a turn, and the 99th percentile that of all requests.

In a process: ``health_status()`` and ``proxy_hosts()``, the first call after each of ten full rounds of new
statuses, and the time of calls between two changes, with the looks into the cache that fall into it. And the
middleware, against doing without.

The exit code is 1 if a target is missed. ``--quick`` is short; its numbers are worth nothing.
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

from benchmarks.processes import add_proxies, deployment, wait_for

CLIENTS = 4
TURNS = 9
VIEW = "/api/v2/workspaceproxies"

AGAINST_BARE = 0.9
AGAINST_BUILT = 15.0
CALL_LIMIT = 5e-6
FIRST_CALL_LIMIT = 0.1
MIDDLEWARE_LIMIT = 10e-6


class Case(NamedTuple):
    name: str
    path: str
    headers: str = ""


# Over HTTP


class Answer(NamedTuple):
    status: int
    etag: str
    size: int


class Client:
    """A connection a request, that costs its client next to nothing."""

    def __init__(self, base: str, request: str) -> None:
        self._address = (urlsplit(base).hostname, urlsplit(base).port)
        self._request = request.encode()
        self._buffer = bytearray(1 << 20)

    def ask(self) -> Answer:
        with socket.create_connection(self._address) as sock:
            sock.sendall(self._request)
            head = b""
            while b"\r\n\r\n" not in head:
                head += self._received(sock, len(self._buffer))
            head, _, body = head.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in lines[1:])
            status = int(lines[0].split()[1])
            size = 0 if status == 304 else int(fields["content-length"])
            left = size - len(body)
            while left > 0:
                left -= len(self._received(sock, left))
        return Answer(status, fields.get("etag", ""), size)

    def _received(self, sock: socket.socket, most: int) -> memoryview:
        count = sock.recv_into(self._buffer, min(most, len(self._buffer)))
        if not count:
            raise ConnectionError("the server has hung up")
        return memoryview(self._buffer)[:count]


def request_of(case: Case, cookie: str) -> str:
    return f"GET {case.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\n{case.headers}\r\n"


def load(base: str, case: Case, cookie: str, seconds: float, expected: Answer) -> list[float]:
    """Seconds of each request of a turn; raises ``AssertionError`` if an answer is another one."""
    times: list[float] = []
    faults: list[Answer] = []
    end = time.monotonic() + seconds

    def run() -> None:
        client = Client(base, request_of(case, cookie))
        while time.monotonic() < end:
            begin = time.perf_counter()
            answer = client.ask()
            times.append(time.perf_counter() - begin)
            if (answer.status, answer.size) != (expected.status, expected.size):
                faults.append(answer)

    threads = [threading.Thread(target=run) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, f"{case.name}: {faults[0]}, not {expected}"
    return times


@contextmanager
def gunicorn(folder: Path) -> Iterator[str]:
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

    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            return False
        return True

    try:
        wait_for(answers)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def sign_in() -> str:
    """The session's cookie of somebody with the one permission that is needed."""
    from django.contrib.auth.models import Permission, User
    from django.test import Client

    user, _ = User.objects.get_or_create(username="reader")
    user.user_permissions.set(Permission.objects.filter(codename="view_workspaceproxy"))
    client = Client()
    client.force_login(user)
    return f"sessionid={client.cookies['sessionid'].value}"


def measure_http(folder: Path, count: int, seconds: float) -> list[str]:
    cookie = sign_in()
    with gunicorn(folder) as base:
        etag = Client(base, request_of(Case("", VIEW), cookie)).ask().etag
        cases = [
            Case("bare view", "/bare"),
            Case("the view", VIEW),
            Case("the view, gzip", VIEW, "Accept-Encoding: gzip\r\n"),
            Case("the view, 304", VIEW, f"If-None-Match: {etag}\r\n"),
            Case("regions", "/api/v2/regions"),
            Case("built each time", "/built"),
        ]
        expected = {case: Client(base, request_of(case, cookie)).ask() for case in cases}
        assert expected[cases[0]].size == expected[cases[1]].size, "they do not return the same"
        assert expected[cases[3]].status == 304, "it is not the one that is known"
        turns: dict[Case, list[list[float]]] = {case: [] for case in cases}
        for turn in range(TURNS):
            for case in cases if turn % 2 else reversed(cases):
                turns[case].append(load(base, case, cookie, seconds, expected[case]))
    rates = {case: [len(turn) / seconds for turn in turns[case]] for case in cases}

    def ratio(case: Case, other: Case) -> float:
        """What else the machine does falls upon both."""
        return statistics.median(a / b for a, b in zip(rates[case], rates[other], strict=True))

    bare, view, *_, built = cases
    for case in cases:
        times = sorted(time for turn in turns[case] for time in turn)
        p99 = times[int(len(times) * 0.99)] * 1e3
        size = expected[case].size / 1e3
        rate = statistics.median(rates[case])
        ratios = f"{ratio(case, bare):.2f} | {ratio(case, built):.1f}"
        print(f"| {count:,} | {case.name} | {size:,.0f} | {rate:,.0f} | {p99:.1f} | {ratios} |", flush=True)
    missed = []
    if (found := ratio(view, bare)) < AGAINST_BARE:
        missed.append(f"{count:,}: the view is {found:.2f} times the bare one, not {AGAINST_BARE}")
    if (found := ratio(view, built)) < AGAINST_BUILT:
        missed.append(f"{count:,}: the view is {found:.1f} times the built one, not {AGAINST_BUILT}")
    return missed


# In a process


def commit_round(number: int, tls_expires_at: datetime | None = None) -> None:
    """A full round, as a worker commits it: every status is another one than before.

    With ``tls_expires_at``, those that answer have certificates.
    """
    from proxyhealth.report import HealthReport
    from proxyhealth.rounds.steps import read_proxies
    from proxyhealth.snapshot import ProxyStatus
    from proxyhealth.statuses import Reason, Status
    from proxyhealth.storage.commit import commit
    from proxyhealth.storage.document import Round
    from proxyhealth.storage.lease import take_token

    now = datetime.now(UTC)
    statuses = []
    for index, proxy in enumerate(read_proxies()):
        host = urlsplit(proxy.url).netloc
        if (index + number) % 20:
            warnings = ("The certificate ends in 9 days.",) if index % 3 == 0 else ()
            report = HealthReport(warnings=warnings)
            latency = 0.05 + (index * 7 + number) % 1000 / 1e4
            found = ProxyStatus(proxy, host, Status.OK, Reason.NONE, report, now, latency, tls_expires_at)
            statuses.append(found)
        else:
            report = HealthReport(errors=("request to proxy failed: no answer within 5 s",))
            statuses.append(ProxyStatus(proxy, host, Status.UNREACHABLE, Reason.TIMEOUT, report, now))
    commit(statuses, take_token(), full_round=Round(now, 1.0))


def commit_elsewhere(number: int, tls_expires_at: datetime | None = None) -> None:
    """:func:`commit_round` in another process, as it is: a worker's garbage is not collected by who reads."""
    from django.db import connections

    connections.close_all()
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=commit_round, args=(number, tls_expires_at))
    worker.start()
    worker.join()
    assert worker.exitcode == 0, "the round was not committed"


def between_changes(call: Callable[[], object], seconds: float) -> float:
    """Seconds of a call, over enough of them for some looks into the cache."""
    count = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for _ in range(1_000):
            call()
        count += 1_000
    return (time.perf_counter() - begin) / count


def first_call(call: Callable[[], object], number: int) -> float:
    """Seconds of the first call that sees a new round."""
    from proxyhealth.conf import conf
    from proxyhealth.storage import reader

    call()
    before = reader.read().number
    commit_elsewhere(number)
    time.sleep(conf.READ_INTERVAL)
    begin = time.perf_counter()
    call()
    seconds = time.perf_counter() - begin
    assert reader.read().number > before, "it did not see the change"
    return seconds


def measure_process(count: int, seconds: float) -> list[str]:
    from proxyhealth.health import health_status, proxy_hosts

    missed = []
    calls: list[Callable[[], object]] = [health_status, proxy_hosts]
    for call in calls:
        name = f"{call.__name__}()"
        firsts = [first_call(call, number) for number in range(10)]
        between = between_changes(call, seconds)
        print(
            f"| {count:,} | {name} | {between * 1e6:.2f} | {statistics.median(firsts) * 1e3:.0f} "
            f"| {max(firsts) * 1e3:.0f} |",
            flush=True,
        )
        if between >= CALL_LIMIT:
            missed.append(f"{count:,}: {name} takes {between * 1e6:.2f} µs between changes")
        if statistics.median(firsts) >= FIRST_CALL_LIMIT:
            missed.append(f"{count:,}: the first {name} takes {statistics.median(firsts) * 1e3:.0f} ms")
    return missed


def measure_middleware(counts: list[int], seconds: float) -> list[str]:
    from django.http import HttpRequest, HttpResponse

    from proxyhealth.middleware import ProxyHostsMiddleware

    policy = "default-src 'self'; script-src 'self' 'nonce-{}'; connect-src 'self'; img-src *"

    def respond(request: HttpRequest) -> HttpResponse:
        response = HttpResponse()
        # Another policy each time, as with a nonce.
        response["Content-Security-Policy"] = policy.format(time.perf_counter_ns())
        return response

    request = HttpRequest()
    middleware = ProxyHostsMiddleware(respond)
    missed = []
    for count in counts:
        add_proxies(f"https://proxy-{index}.example.com" for index in range(count))
        commit_round(0)
        assert ("//proxy-0." in middleware(request)["Content-Security-Policy"]) == (count > 0)
        cost = between_changes(partial(middleware, request), seconds)
        cost -= between_changes(partial(respond, request), seconds)
        print(f"| {count:,} | {cost * 1e6:.2f} |", flush=True)
        if cost >= MIDDLEWARE_LIMIT:
            missed.append(f"{count:,}: the middleware takes {cost * 1e6:.2f} µs a request")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--proxies", type=int, nargs="+", default=[1_000, 10_000], help="numbers of proxies")
    parser.add_argument("--seconds", type=float, default=4, help="of each turn")
    parser.add_argument("--quick", action="store_true", help="few proxies and short turns")
    options = parser.parse_args()
    if options.quick:
        options.proxies, options.seconds = [100], 0.5
    missed = []
    with deployment() as folder:
        print("| proxies | what | KB | requests/s | 99 % ms | bare = 1 | built each time = 1 |")
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
