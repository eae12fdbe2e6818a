"""Random input for the report parser, the URL checks, and many whole probes at once."""

from __future__ import annotations

import json
import multiprocessing
import random
import socket
import struct
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.test import override_settings

from proxyhealth.conf import conf
from proxyhealth.exceptions import BadReport
from proxyhealth.probing.probe import probe
from proxyhealth.report import HealthReport, clean
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.statuses import Reason, Status
from proxyhealth.validators import parse_proxy_url
from tests.probing.asking import proxy_at
from tests.support.machine import at_most

TIMEOUT = 0.5
LEEWAY = 0.5
THREADS = 32
MEMORY_A_PROBE = 1024 * 1024
MEASURED = 1_000  # probes whose memory is measured, one by one

TOKENS = [
    b'"errors"', b'"warnings"', b'"Errors"', b"null", b"true", b"[", b"]", b"{", b"}", b":", b",",
    b'"', b"\\", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 2000, b'{"a":' * 500,
    b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\x00",
    b"\x1b[31m", b"\xe2\x80\xae", b"<script>", b'"' + b"x" * 1500 + b'"', b'"",' * 60, b"\r\n",
    b" ",
]  # fmt: skip
REPORTS = [
    b"{}",
    b'{"errors": null, "warnings": null}',
    b'{"errors": [], "warnings": ["old version"]}',
    b'{"errors": ["a", "b"], "warnings": ["c"], "extra": {"deep": [1, 2.5, null]}}',
    '{"errors": ["größer ✕ 🙂"]}'.encode(),
]
URLS = [
    "http://example.com",
    "https://example.com:8443/", "http://[::1]:80", "http://127.0.0.1:65535",
    "https://bücher.example", "http://xn--bcher-kva.example/path",
]  # fmt: skip
URL_TOKENS = [
    "http://", "https://", "ftp:", "//", "/", "\\", "@", "user:secret@", ":", "?", "#", "[", "]",
    "::", "%00", "%25eth0", "\r\n", "\t", " ", "\x00", "0x7f", "0177", ".", "..", "a" * 64, "ß",
    "。", "１", "\ud800", "-", "_", "*", "99999", "-1", "xn--", "xn--a", "‮", "localhost",
]  # fmt: skip
HEADERS = [
    b"Content-Type: application/json", b"Content-Length: 0", b"Content-Length: -1",
    b"Content-Length: 99999999", b"Content-Length: 5", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked", b"Connection: close", b"Content-Encoding: gzip",
    b"Content-Encoding: br", b"Content-Encoding: deflate, gzip", b"Location: /",
    b"Location: http://[::1", b"Location: file:///etc/passwd", b"Location: \xff\xfe",
    b"Location: /" + b"z" * 3000, b"Location: http://e" + b"\xcc\x81" * 900 + b".example",
    b"Set-Cookie: a=b; Path=/", b"X: " + b"y" * 70000, b": empty", b"no colon", b" folded",
    b"Content-Type: text/html; charset=\xff", b"Content-Type: ;;=;charset", b"Trailer: x",
]  # fmt: skip
STATUS_LINES = [
    b"HTTP/1.1 200 OK", b"HTTP/1.0 200", b"HTTP/1.1 500 Oops", b"HTTP/1.1 302 Found",
    b"HTTP/1.1 204 No", b"HTTP/9 200", b"HTTP/1.1 100 Continue", b"HTTP/1.1 103 Early",
    b"HTTP/1.1 99 Low", b"HTTP/1.1 1000 High", b"HTTP/1.1 2x0 OK", b"HTTP/1.1 304 Same",
    b"SSH-2.0-x", b"", b"HTTP/1.1", b"HTTP/1.1 200 \xff\x00",
]  # fmt: skip


def mutate(random: random.Random, data: bytes, tokens: list[bytes]) -> bytes:
    """Return ``data`` with a few random changes."""
    out = bytearray(data)
    for _ in range(random.randint(0, 6)):
        at = random.randint(0, len(out))
        match random.randrange(6):
            case 0:
                out[at:at] = random.choice(tokens)
            case 1:
                del out[at : at + random.randint(1, 8)]
            case 2:
                out[at : at + 1] = bytes([random.randrange(256)])
            case 3:
                out[at:at] = out[at : at + random.randint(1, 40)] * random.randint(1, 3)
            case 4:
                del out[at:]
            case 5:
                out[at : at + 1] = bytes([out[at] ^ (1 << random.randrange(8))]) if at < len(out) else b""
    return bytes(out)


def check_report(report: HealthReport) -> None:
    """Assert the promises of every report, for any response."""
    for items in (report.errors, report.warnings):
        assert len(items) <= 50
        for item in items:
            assert len(item) <= 1000
            item.encode()
            assert clean(item) == item
    assert HealthReport.sanitized(report.errors, report.warnings) == report


def fuzz_parser(seed: int, count: int) -> Iterator[str]:
    rng = random.Random(seed)
    readable = 0
    for index in range(count):
        body = mutate(rng, rng.choice(REPORTS), TOKENS)
        try:
            report = HealthReport.parse(body)
            check_report(report)
            readable += 1
            document = json.loads(body.decode("utf-8-sig"), parse_int=float)
            document = {key.lower(): value for key, value in document.items()}
            if document.get("errors"):
                assert report.errors, "errors were lost"
        except BadReport:
            pass
        except Exception as error:
            yield f"parser input {index}: {error!r:.200} of {body!r:.500}"
    print(f"parser: {count:,} inputs, {readable:,} of them readable")


def fuzz_urls(seed: int, count: int) -> Iterator[str]:
    rng = random.Random(seed)
    usable = 0
    for index in range(count):
        text = rng.choice(URLS)
        for _ in range(rng.randint(0, 4)):
            at = rng.randint(0, len(text))
            text = text[:at] + rng.choice(URL_TOKENS) + text[at + rng.choice([0, 0, 1, 3]) :]
        try:
            url = parse_proxy_url(text)
            assert url.scheme in ("http", "https")
            assert url.host.isascii()
            assert 1 <= url.port <= 65535
            assert not set(url.netloc) & set("@/?#\\ \r\n\t\0")
            assert parse_proxy_url(url.base).netloc == url.netloc
            usable += 1
        except ValueError as error:
            if not str(error) or ("secret@" in text and "secret" in str(error)):
                yield f"url {index}: a bad message {error!r} for {text!r}"
        except Exception as error:
            yield f"url {index}: {error!r} of {text!r}"
    print(f"urls: {count:,} inputs, {usable:,} of them usable")


def response(rng: random.Random) -> bytes:
    """Return a response, often with random changes."""
    body = mutate(rng, rng.choice(REPORTS), TOKENS) if rng.random() < 0.7 else rng.choice(REPORTS)
    headers = [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    if rng.random() < 0.3:
        size = rng.randint(1, 20)
        chunks = [body[i : i + size] for i in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        headers = [b"Transfer-Encoding: chunked"]
    if rng.random() < 0.5:
        headers += rng.choices(HEADERS, k=rng.randint(1, 4))
        rng.shuffle(headers)
    status = STATUS_LINES[0] if rng.random() < 0.7 else rng.choice(STATUS_LINES)
    whole = b"\r\n".join([status, *headers, b"", body])
    return mutate(rng, whole, [*HEADERS, b"\r\n\r\n", b"\r", b"\n", *TOKENS]) if rng.random() < 0.5 else whole


def misbehave(connection: socket.socket, seed: int) -> None:
    """Send the response that belongs to the address of this connection."""
    address = connection.getsockname()[0]
    rng = random.Random(f"{seed} {address}")
    data = response(rng)
    manner = rng.random()
    with connection:
        connection.settimeout(2 * TIMEOUT)
        connection.recv(4096)
        if manner < 0.02:
            time.sleep(2 * TIMEOUT)
        elif manner < 0.06:
            for byte in data[: rng.randint(1, 30)]:
                connection.sendall(bytes([byte]))
                time.sleep(0.03)
        elif manner < 0.10:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(data[: rng.randint(0, len(data))])
        elif manner < 0.12:
            for _ in range(200):
                connection.sendall(data * 50)
        else:
            connection.sendall(data)


def serve(listener: socket.socket, seed: int) -> None:
    def work() -> None:
        while True:
            connection, _ = listener.accept()
            try:
                misbehave(connection, seed)
            except OSError:
                continue

    for _ in range(2 * THREADS):
        threading.Thread(target=work).start()


def address_of(index: int) -> str:
    """Return the address of a probe: each has its own, so that the server recognizes it in any order."""
    return f"127.{1 + index // 65025}.{1 + index // 255 % 255}.{1 + index % 254}"


@contextmanager
def hostile_server(seed: int) -> Iterator[int]:
    with socket.create_server(("0.0.0.0", 0), backlog=1024) as listener:
        process = multiprocessing.get_context("fork").Process(target=serve, args=(listener, seed))
        process.start()
        try:
            yield listener.getsockname()[1]
        finally:
            process.kill()
            process.join()


PREFIXES = ("request to proxy failed: ", "failed to decode health report: ", "unexpected status code ")


def probe_and_check(index: int, port: int) -> str:
    """Probe the server once and return the reason of the status. Raise if the status breaks a promise."""
    status = timed_probe(f"http://{address_of(index)}:{port}")
    check_status(status)
    return status.reason or "ok"


def timed_probe(url: str) -> ProxyStatus:
    """Probe ``url``. Assert that it takes hardly longer than ``TIMEOUT``."""
    with at_most(conf.TIMEOUT + LEEWAY):
        return probe(proxy_at(url))


def configured(**options: Any) -> override_settings:
    """Return a context manager that changes PROXYHEALTH."""
    return override_settings(PROXYHEALTH={**settings.PROXYHEALTH, **options})


def check_status(status: ProxyStatus) -> None:
    """Assert the promises of every result of a probe with a valid URL."""
    assert status.reason is not Reason.INTERNAL, status
    assert status.status not in (Status.UNKNOWN, Status.UNREGISTERED)
    assert (status.latency is None) == (status.status is Status.UNREACHABLE), status
    check_report(status.report)
    judgement = json.loads(json.dumps(status.judgement()))
    assert next(ProxyStatus.from_judgements([status.proxy], status.checked_at, [judgement])) == status
    if status.status is Status.OK:
        assert status.reason is Reason.NONE
    elif status.reason is not Reason.REPORT_ERRORS:
        assert status.report.errors[0].startswith(PREFIXES), status.report.errors


def fuzz_probes(seed: int, count: int) -> Iterator[str]:
    """Yield the probes that raise, take too long, or use too much memory, and inconsistent statuses."""
    reasons: Counter[str] = Counter()

    def one(index: int) -> str:
        try:
            reasons[probe_and_check(index, port)] += 1
        except Exception as error:
            return f"probe {index} of {address_of(index)}: {error!r}"
        return ""

    most = 0
    with configured(TIMEOUT=TIMEOUT), hostile_server(seed) as port, ThreadPoolExecutor(THREADS) as threads:
        tracemalloc.start()
        for index in range(min(MEASURED, count)):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            if finding := one(index):
                yield finding
            memory = tracemalloc.get_traced_memory()[1] - before
            most = max(most, memory)
            if memory > MEMORY_A_PROBE:
                yield f"probe {index} held {memory / MEMORY_A_PROBE:.1f} MiB"
        tracemalloc.stop()
        yield from filter(None, threads.map(one, range(min(MEASURED, count), count)))
    print(f"probes: {', '.join(f'{name} {n:,}' for name, n in reasons.most_common())}")
    print(f"probes: at most {most / 1024:.0f} KiB of memory, of the first {MEASURED:,}")
