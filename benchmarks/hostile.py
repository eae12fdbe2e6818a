"""Measure what the dearest answers of hostile proxies cost, compared with good ones in the same run.

    python -m benchmarks.hostile [--probes 40] [--repeat 5] [--proxies 1000]

The servers are separate processes. The first table is the CPU of one probe of each answer, against that of a
good one over HTTPS, or over HTTP if no connection of the probe uses TLS. The second is a round in which every
other proxy is hostile, against one of the good ones alone. The exit code is 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import socket
import ssl
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from benchmarks.probe import make_files
from benchmarks.servers import RESPONSE, fleet, response

COST_LIMIT = 10.0  # times the CPU of a good probe
ROUND_LIMIT = 1.5  # times TIMEOUT
LATE_LIMIT = 0.5  # seconds over TIMEOUT, for one probe
LATENCY_LIMIT = 2.0  # times the latency alone
TIMEOUT = 5.0
DELAY = 0.1  # of good proxies in the round
MANY = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.9.{i >> 8}.{i & 255}", 1)) for i in range(4_000)]

Script = Callable[[socket.socket, bytes], None]


def head(*lines: bytes, status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *lines, b"", b""])


def redirect(location: bytes, *lines: bytes) -> bytes:
    return head(b"Location: " + location, b"Content-Length: 0", *lines, status=b"302 Found")


def send(data: bytes) -> Script:
    return lambda sock, path: sock.sendall(data)


def drip(data: bytes) -> Script:
    """Send single bytes."""

    def script(sock: socket.socket, path: bytes) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for index in range(len(data)):
            sock.sendall(data[index : index + 1])
            time.sleep(0.001)

    return script


def hold(sock: socket.socket, path: bytes) -> None:
    while sock.recv(4096):
        pass


def lead_to(last: bytes, hops: int, location: bytes = b"", extra: bytes = b"") -> Script:
    """Redirect ``hops`` times, then send ``last``."""

    def script(sock: socket.socket, path: bytes) -> None:
        hop = int(path[1:2]) if path[1:2].isdigit() else 0
        answer = redirect(b"/%d%s" % (hop + 1, location)) if hop < hops else last
        sock.sendall(extra + answer)

    return script


def body(text: str, *lines: bytes) -> bytes:
    return response(text.encode()).replace(b"\r\n\r\n", b"\r\n".join([b"", *lines, b"", b""]), 1)


def chunks(count: int) -> bytes:
    return head(b"Transfer-Encoding: chunked") + b"1\r\n \r\n" * count + b"2\r\n{}\r\n0\r\n\r\n"


def listed(item: str, count: int, key: str = "a") -> str:
    return f'{{"{key}":[{",".join([item] * count)}]}}'


KEYS = "{" + ",".join(f'"{number:x}":""' for number in range(1_000)) + "}"
CONTROLS = ",".join(['"' + "\x7fx" * 600 + '"'] * 26)
BOTH = f'{{"errors":[{CONTROLS}],"warnings":[{CONTROLS}]}}'
JOINERS = listed('"' + "\u200c\u0434" * 500 + '"', 24, "errors")
PAGE = b"<p>" + b"&#0" * 1_300
BOMB = gzip.compress(b" " * 60_000_000)
HINT = head(status=b"103 Early Hints")

HTTP: dict[str, Script] = {
    "64 KiB of 103, then a redirect to itself": send(HINT * 2_200 + redirect(b"/healthz-report")),
    "140 of 103": send(HINT * 140 + RESPONSE),
    "redirects with 99 headers": send(redirect(b"/healthz-report", *[b"X: y"] * 97)),
    "redirects without end": send(redirect(b"/healthz-report")),
    "4 redirects with 490 characters": lead_to(RESPONSE, 4, b"%41" * 160),
    "a redirect with 2,000 characters": lead_to(RESPONSE, 1, b"%41" * 650),
    "60,000 chunks of one byte": send(chunks(60_000)),
    "280 chunks of one byte": send(chunks(280)),
    "99 trailers": send(
        head(b"Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n" + b"X: y\r\n" * 99 + b"\r\n"
    ),
    "single bytes": drip(RESPONSE.ljust(60_000)),
    "single bytes without end": drip(head() + b" " * 60_000),
    "no answer": hold,
    "32,000 numbers": send(body(listed("0", 32_000))),
    "2,000 numbers": send(body(listed("0", 2_000))),
    "600 objects": send(body(listed('{"":0}', 600))),
    "1,000 keys": send(body(KEYS)),
    "10,000 errors": send(body(listed('""', 10_000, "errors"))),
    "680 lists of errors": send(body("{" + ",".join(['"errors":[""]'] * 680) + "}")),
    "64 KiB of escapes": send(body(listed('"' + r"\nx" * 21_000 + '"', 1, "errors"))),
    "64 KiB of controls, in 8 errors": send(body(listed('"' + "\x7fx" * 3_990 + '"', 8, "errors"))),
    "64 KiB of controls, in 60 errors": send(body(listed('"' + "\x7fx" * 490 + '"', 60, "errors"))),
    "64 KiB of controls, in errors and warnings": send(body(BOTH)),
    "64 KiB of misplaced joiners": send(body(JOINERS)),
    "64 KiB of errors": send(body(listed('"' + "ab" * 490 + '"', 60, "errors"))),
    "a page of references": send(response(PAGE).replace(b"200 OK", b"500 Oops")),
    "a page of invalid bytes": send(
        response(b"<p>" + b"\x81" * 4_000).replace(b"application/json", b"text/html;charset=windows-1252")
    ),
    "a gzip bomb": send(response(BOMB).replace(b"Date:", b"Content-Encoding: gzip\r\nDate:")),
    "4 redirects, then 60 chunks": lead_to(chunks(60), 4),
    "4 redirects, then 64 KiB of controls": lead_to(body(BOTH), 4),
    "4 redirects with long URLs and 103, then 64 KiB of controls": lead_to(
        body(BOTH), 4, b"%41" * 160, HINT * 6
    ),
}
HTTPS: dict[str, Script] = {
    "redirects without end": HTTP["redirects without end"],
    "single bytes": drip(RESPONSE.ljust(60_000)),
    "64 KiB of single bytes at once": lambda sock, path: [sock.send(b" ") for _ in head() * 999] and None,
    "4 redirects, then 64 KiB of controls": HTTP["4 redirects, then 64 KiB of controls"],
}
TICKETS, FFDHE = "2,000 session tickets", "a key exchange with 8,192 bits"
TLS = (TICKETS, FFDHE)


def _context(certificate: str, name: str = "") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if name == TICKETS:
        context.num_tickets = 2_000
    if name == FFDHE:
        context.set_ecdh_curve("ffdhe8192")
    return context


def _answer(peer: socket.socket, script: Script, context: ssl.SSLContext | None) -> None:
    with suppress(OSError), context.wrap_socket(peer, server_side=True) if context else peer as sock:
        sock.settimeout(2 * TIMEOUT)
        request = sock.recv(4096)
        script(sock, request.split(b" ", 2)[1])
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        hold(sock, b"")


def _accept(listener: socket.socket, script: Script, context: ssl.SSLContext | None) -> None:
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=_answer, args=(peer, script, context), daemon=True).start()


@contextmanager
def servers(certificate: str) -> Iterator[dict[tuple[str, str], int]]:
    """Run all servers in one process. Yield their ports by scheme and answer, "" for the good answer."""
    answers: dict[tuple[str, str], Script] = {
        **{("http", name): script for name, script in {"": send(RESPONSE), **HTTP}.items()},
        **{("https", name): script for name, script in {"": send(RESPONSE), **HTTPS}.items()},
        **{("https", name): send(RESPONSE) for name in TLS},
    }
    with ExitStack() as stack:
        listeners = {
            key: stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=1024)) for key in answers
        }

        def serve() -> None:
            for (scheme, name), listener in listeners.items():
                context = _context(certificate, name) if scheme == "https" else None
                script = answers[scheme, name]
                threading.Thread(target=_accept, args=(listener, script, context)).start()

        process = multiprocessing.get_context("fork").Process(target=serve)
        process.start()
        try:
            yield {key: listener.getsockname()[1] for key, listener in listeners.items()}
        finally:
            process.kill()
            process.join()


def _prepare(authority: str) -> None:
    from django.conf import settings

    settings.configure(PROXYHEALTH={"CA_BUNDLE": authority, "TIMEOUT": TIMEOUT, "CONCURRENCY": 512})
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        return list(MANY) if host == "many.example" else resolve(host, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo


def _proxy(index: int, url: str) -> Any:
    from proxyhealth.snapshot import Proxy

    now = datetime.now(UTC)
    return Proxy(UUID(int=index), f"proxy-{index}", "", "", url, "", "", False, now, now)


def _cpu_of_probes(authority: str, url: str, count: int, repeat: int) -> tuple[float, str]:
    """Return the CPU seconds of one probe, and its reason."""
    from proxyhealth.probing.probe import probe

    proxy = _proxy(1, url)
    reason = probe(proxy).reason or "ok"
    blocks = []
    for _ in range(repeat):
        begin = time.process_time()
        for _ in range(count):
            probe(proxy)
        blocks.append((time.process_time() - begin) / count)
    return statistics.median(blocks), reason


class Round(NamedTuple):
    """One round: its seconds, those of each probe, and the latencies of the good proxies."""

    wall: float
    probes: Sequence[float]
    latencies: Sequence[float]


def _run_round(authority: str, urls: Sequence[str], good: frozenset[str]) -> Round:
    from proxyhealth.probing import pool

    seconds: list[float] = []
    probe = pool.probe

    def timed(*args: Any) -> Any:
        begin = time.monotonic()
        try:
            return probe(*args)
        finally:
            seconds.append(time.monotonic() - begin)

    pool.probe = timed
    proxies = [_proxy(index + 1, url) for index, url in enumerate(urls)]
    begin = time.monotonic()
    statuses = pool.probe_all(proxies, datetime.now(UTC))
    wall = time.monotonic() - begin
    pool.probe = probe
    latencies = [status.latency for status in statuses if status.proxy.url in good]
    assert all(latencies), "a good proxy was not ok"
    return Round(wall, seconds, [latency or 0.0 for latency in latencies])


def measure_probes(ports: dict[tuple[str, str], int], run: Any, options: Any) -> list[str]:
    """Print the CPU of each answer. Return the missed targets."""
    urls = {key: f"{key[0]}://127.0.0.1:{port}" for key, port in ports.items()}
    urls["http", "a name with 4,000 addresses"] = "http://many.example"
    good: dict[str, float] = {}
    missed = []
    print("| scheme | answer | reason | CPU ms | good = 1 |")
    print("|---|---|---|---|---|")
    for (scheme, name), url in urls.items():
        slow = "single" in name or name == "no answer"
        count, repeat = (1, 2) if slow else (options.probes, options.repeat)
        cpu, reason = run(_cpu_of_probes, url, count, repeat)
        good.setdefault(scheme, cpu)
        times = cpu / good[scheme]
        print(f"| {scheme} | {name or 'good'} | {reason} | {cpu * 1e3:.3f} | {times:.1f} |", flush=True)
        if times > COST_LIMIT:
            missed.append(f"{scheme}, {name}: {times:.1f} times, target: at most {COST_LIMIT:.0f}")
    return missed


def measure_rounds(ports: dict[tuple[str, str], int], run: Any, count: int) -> list[str]:
    """Print a round of good proxies, and one with as many hostile ones. Return the missed targets."""
    hostile = [(key, port) for key, port in ports.items() if key[1]]
    first = int(IPv4Address("127.5.0.0"))
    missed = []
    with fleet(DELAY) as targets:
        good = [targets.url(index) for index in range(count // 2)]
        bad = [
            f"{key[0]}://{'127.0.0.1' if key[0] == 'https' else IPv4Address(first + index)}:{port}"
            for index in range(count // 2)
            for key, port in [hostile[index % len(hostile)]]
        ]
        mixed = [url for pair in zip(good, bad, strict=True) for url in pair]
        rounds = {
            "good alone": run(_run_round, good, frozenset(good)),
            "half hostile": run(_run_round, mixed, frozenset(good)),
        }
    print("\n| round | wall s | longest probe s | latency s, median | 95 % |\n|---|---|---|---|---|")
    figures = {}
    for name, result in rounds.items():
        median, late = (statistics.quantiles(result.latencies, n=100)[index] for index in (49, 94))
        figures[name] = (median, late)
        print(f"| {name} | {result.wall:.2f} | {max(result.probes):.2f} | {median:.3f} | {late:.3f} |")
    wall, longest = rounds["half hostile"].wall, max(rounds["half hostile"].probes)
    if wall > ROUND_LIMIT * TIMEOUT:
        missed.append(f"a round of {wall:.2f} s, target: at most {ROUND_LIMIT * TIMEOUT:.2f} s")
    if longest > TIMEOUT + LATE_LIMIT:
        missed.append(f"a probe of {longest:.2f} s, target: at most {TIMEOUT + LATE_LIMIT:.2f} s")
    for what, alone, now in zip(("median", "95 %"), *figures.values(), strict=True):
        if now > LATENCY_LIMIT * alone:
            missed.append(f"latency, {what}: {now / alone:.1f} times, target: at most {LATENCY_LIMIT:.0f}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--probes", type=int, default=40, help="probes in a block")
    parser.add_argument("--repeat", type=int, default=5, help="blocks of each answer")
    parser.add_argument("--proxies", type=int, default=1_000, help="proxies of the round; 0: no round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        files = make_files(Path(name))
        spawn = multiprocessing.get_context("spawn")
        with servers(files.server) as ports, spawn.Pool(1, _prepare, (files.authority,)) as prober:

            def run(function: Callable[..., Any], *args: Any) -> Any:
                return prober.apply(function, (files.authority, *args))

            missed = measure_probes(ports, run, options)
            if options.proxies:
                missed += measure_rounds(ports, run, options.proxies)
    for line in missed:
        print(f"target missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
