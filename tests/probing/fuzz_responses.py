"""Random HTTP responses for the probe, and a second reading that must agree with its result.

Valid responses, and chains of redirects to them, must be read exactly. Valid responses with random changes,
and responses of random lines, are also read by ``second_reading()``, which follows the grammar of RFC 9112,
and by ``http.client``. The probe and the grammar must agree on whether the response is a report, and on its
errors and warnings. ``http.client``, which Python programs use, must read the same body.
"""

from __future__ import annotations

import gzip
import http.client
import io
import json
import re
import socket
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import strategies as st

from proxyhealth.probing.probe import MAX_REDIRECTS
from proxyhealth.report import HealthReport
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.statuses import Reason, Status
from proxyhealth.validators import MAX_URL_LENGTH
from tests.probing.fuzz import HEADERS, STATUS_LINES, TOKENS, check_status, configured, timed_probe
from tests.support.fuzzing import Edit, edited, edits, findings_of
from tests.support.servers import Server

TOKEN = "!#$%&'*+-.^_`|~0123456789ABCXYZabcxyz"
SMALL_TOKENS = [token for token in (*TOKENS, *HEADERS, *STATUS_LINES) if len(token) < 100]
FRAMING = [
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"0\r\n\r\n", b"\r\n0\r\n\r\n", b"\x0b", b"\x85", b"\t", b";",
    b"chunked",
    b"\r\nContent-Length: 2", b"\r\nTransfer-Encoding: chunked", b"HTTP/1.1 103 Early\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n", b"\r\nLocation: /x",
]  # fmt: skip

# The strategies of valid responses.

values = st.none() | st.lists(
    st.text(max_size=12) | st.sampled_from(["\0", "\u202e", "a\nb", ""]), max_size=3
)
other_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
members = st.tuples(st.sampled_from(["errors", "warnings", "Errors", "WARNINGS"]), values) | st.tuples(
    st.text(max_size=5).filter(lambda key: key.lower() not in ("errors", "warnings")), other_values
)


class Report(NamedTuple):
    """A body, and the report in it."""

    body: bytes
    report: HealthReport


@st.composite
def reports(draw: st.DrawFn) -> Report:
    pairs = draw(st.lists(members, max_size=4))
    ascii_only = draw(st.booleans())
    parts = [":".join(json.dumps(part, ensure_ascii=ascii_only) for part in pair) for pair in pairs]
    space = draw(st.sampled_from(["", " ", "\r\n\t"]))
    text = space + "{" + f",{space}".join(parts) + "}" + space
    texts: dict[str, list[str]] = {"errors": [], "warnings": []}
    for key, value in pairs:
        if key.lower() in texts:
            texts[key.lower()] += value or []
    body = draw(st.sampled_from(["", "\ufeff"])).encode() + text.encode()
    return Report(body, HealthReport.sanitized(texts["errors"], texts["warnings"]))


class Valid(NamedTuple):
    """A valid response with the report, and whether its end is known before the connection ends."""

    data: bytes
    report: HealthReport
    has_end: bool


fields = st.tuples(
    st.text(TOKEN, min_size=1, max_size=8).map(lambda name: f"x-{name}".encode()),
    st.sampled_from([b"", b"a", b"a:b", b"\xff", b"'\"", b"x" * 300, b"200 OK", b"chunked"]),
)
codings = {
    b"identity": lambda body: body,
    b"gzip": lambda body: gzip.compress(body, 1, mtime=0),
    b"X-GZIP": lambda body: gzip.compress(body, 1, mtime=0),
    b"deflate": zlib.compress,
    b"Deflate": lambda body: zlib.compress(body, wbits=-15),
}


def in_chunks(draw: st.DrawFn, body: bytes) -> bytes:
    out = b""
    while body:
        size = draw(st.integers(1, 40)) if len(out) < 300 else len(body)
        chunk, body = body[:size], body[size:]
        digits = draw(st.sampled_from([b"%x", b"%X", b"00%x", b"%x;a=b", b'%x ;x="y"', b"%x\t"])) % len(chunk)
        out += digits + b"\r\n" + chunk + b"\r\n"
    trailers = draw(st.lists(fields, max_size=2))
    return out + b"0\r\n" + b"".join(b"%s: %s\r\n" % field for field in trailers) + b"\r\n"


@st.composite
def valid_responses(draw: st.DrawFn) -> Valid:
    body, report = draw(reports())
    eol = draw(st.sampled_from([b"\r\n", b"\r\n", b"\n"]))
    headers = draw(st.lists(fields, max_size=4))
    headers.append(
        (b"content-type", draw(st.sampled_from([b"application/json", b"text/html", b"", b"\xff;="])))
    )
    if coding := draw(st.none() | st.sampled_from(sorted(codings))):
        body = codings[coding](body)
        headers.append((b"content-encoding", coding))
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.0", b"1.9"]))
    kind = draw(st.sampled_from(["length", "chunked", "close"] if version != b"1.0" else ["length", "close"]))
    if kind == "length":
        headers += [(b"content-length", b"%d" % len(body))] * draw(st.integers(1, 2))
    if kind == "chunked":
        body = in_chunks(draw, body)
        headers.append((b"transfer-encoding", draw(st.sampled_from([b"chunked", b"Chunked"]))))
    lines = [b"HTTP/" + version + draw(st.sampled_from([b" 200 OK", b" 200", b" 200 ", b" 200 \xe9 \t!"]))]
    change_case = draw(st.sampled_from([bytes.title, bytes.lower, bytes.upper]))
    space = draw(st.sampled_from([b" ", b"", b"\t", b"  "]))
    lines += [
        change_case(name) + b":" + space + value + (b"" if name == b"transfer-encoding" else space)
        for name, value in draw(st.permutations(headers))
    ]
    early = draw(st.lists(st.sampled_from([b"100 Continue", b"102", b"103 Early", b"199 x"]), max_size=2))
    informational = b"".join(b"HTTP/1.1 " + line + eol + b"Link: </x>" + eol + eol for line in early)
    data = informational + eol.join([*lines, b"", b""]) + body
    return Valid(
        data + (draw(st.sampled_from([b"", b"HTTP"])) if kind != "close" else b""), report, kind != "close"
    )


GOOD_LOCATIONS = [
    "/x", "x", "?a=b", "//127.0.0.1:{port}/", "http://127.0.0.1:{port}", "HTTP://127.0.0.1:{port}/a%20b?c#d",
    "../..", "/größe", "/" + "x" * 1500, " /x ", "/<script>", "/%00",
]  # fmt: skip
BAD_LOCATIONS = [
    "file:///etc/passwd", "http:/x", "http:x", "///x", "\\x", "/\x01", "http://[::1", "javascript:1",
    "/" + "a" * 2000, "http://a b/", "http://127.0.0.1:0/", "http://user:secret@127.0.0.1:{port}/",
    "http://2130706433:{port}/", "//", "http://", "/\x7f",
]  # fmt: skip
redirects = st.tuples(st.sampled_from([301, 302, 303, 307, 308]), st.sampled_from(GOOD_LOCATIONS))
free_responses = st.builds(
    lambda line, headers, body: b"\r\n".join([line, *headers, b"", body]),
    st.sampled_from(STATUS_LINES),
    st.lists(st.sampled_from([header for header in HEADERS if len(header) < 5_000]), max_size=4),
    st.sampled_from([b"", b"{}", b"2\r\n{}\r\n0\r\n\r\n", b'{"errors": ["a"]}', b"<h1>x</h1>"]),
)

# The second reading.

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_HEAD = re.compile(
    rb"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: [^\0\r\n]*)?(\r?\n)((?:" + _TOKEN + rb":[^\0\r\n]*\3)*)\3"
)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\0\r\n]*)?\r\n")
_TRAILERS = re.compile(rb"(?:" + _TOKEN + rb":[^\0\r\n]*\r\n)*\r\n")
_DECODERS = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}


class Reading(NamedTuple):
    """A response: its status code, or 0 if it is not valid, and its decoded body, or None."""

    code: int
    body: bytes | None = None


def second_reading(data: bytes) -> Reading:
    """Read a whole response, after which the connection ends, by the grammar of RFC 9112."""
    at = 0
    while head := _HEAD.match(data, at):
        at, code = head.end(), int(head[2])
        fields: dict[str, list[str]] = {}
        for line in head[4].decode("latin-1").replace("\r\n", "\n").split("\n")[:-1]:
            name, _, value = line.partition(":")
            fields.setdefault(name.lower(), []).append(value.strip(" \t"))
        lengths, transfers = set(fields.get("content-length", ())), fields.get("transfer-encoding")
        if len(set(fields.get("location", ()))) > 1:
            return Reading(0)
        if (
            len(lengths) > 1
            or (lengths and transfers)
            or (100 <= code < 200 and code != 101 and (lengths or transfers))
        ):
            return Reading(0)
        if transfers and (head[1] == b"0" or [transfer.lower() for transfer in transfers] != ["chunked"]):
            return Reading(0)
        if 100 <= code < 200 and code != 101:
            continue
        if lengths and not re.fullmatch(r"[0-9]{1,18}", length := lengths.pop(), re.ASCII):
            return Reading(0)
        body: bytes | None = data[at:]
        if transfers:
            body = _joined(data, at)
        elif "content-length" in fields:
            body = data[at : at + int(length)] if len(data) - at >= int(length) else None
        return Reading(code, body and _decoded(body, ", ".join(fields.get("content-encoding", [""]))))
    return Reading(0)


def _joined(data: bytes, at: int) -> bytes | None:
    body = b""
    while chunk := _CHUNK.match(data, at):
        size = int(chunk[1], 16)
        begin, at = chunk.end(), chunk.end() + size
        if size == 0:
            return body if _TRAILERS.match(data, begin) else None
        if data[at : at + 2] != b"\r\n":
            return None
        body += data[begin:at]
        at += 2
    return None


def _decoded(body: bytes, coding: str) -> bytes | None:
    if not body or coding.lower() in ("", "identity"):
        return body
    for window_bits in _DECODERS.get(coding.lower(), ()):
        decoder = zlib.decompressobj(window_bits)
        try:
            content = decoder.decompress(body)
        except zlib.error:
            continue
        is_whole = decoder.eof and not decoder.unused_data.startswith(b"\x1f\x8b")
        return content if is_whole else None
    return None


def read_report(body: bytes | None) -> HealthReport | None:
    """Return the report in a body, or None if it is none."""
    texts: dict[str, list[str]] = {"errors": [], "warnings": []}
    try:
        pairs = json.loads(
            (body or b"").decode("utf-8-sig"), object_pairs_hook=Pairs, parse_int=len, parse_constant=int
        )
        if not isinstance(pairs, Pairs):
            return None
        for key, value in pairs.items:
            if key.lower() in texts and value is not None:
                if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
                    return None
                texts[key.lower()] += value
    except (ValueError, RecursionError):
        return None
    return HealthReport.sanitized(texts["errors"], texts["warnings"])


class Pairs(NamedTuple):
    """A JSON object with all its members, also repeated ones."""

    items: Any


class _Sock:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def read_by_http_client(data: bytes) -> bytes:
    """Return the body of the response with the code 200 that Python's own client reads."""
    response: Any = None
    while response is None or 100 <= response.status < 200:
        if response is not None:
            data = response.fp.read()  # http.client skips only responses 100
        response = http.client.HTTPResponse(_Sock(data), method="GET")  # type: ignore[arg-type]
        response.begin()
    assert response.status == 200
    return bytes(response.read())


# The checks.


class Fuzzer:
    """A server that sends the next of some responses for each connection, and the probes of it."""

    def __init__(self) -> None:
        self._responses: list[list[bytes]] = []
        self._hold = False

    @contextmanager
    def serving(self) -> Iterator[None]:
        with configured(TIMEOUT=2), Server(self._send) as self._server:
            yield

    def _send(self, sock: socket.socket) -> None:
        pieces = self._responses.pop(0) if self._responses else []
        hold = self._hold
        for piece in pieces:
            sock.sendall(piece)
        if hold:
            sock.settimeout(5)
            sock.recv(1)  # until the probe closes the connection

    def probe(self, *responses: bytes, cuts: Sequence[int] = (), hold: bool = False) -> ProxyStatus:
        port = str(self._server.port).encode()
        places = [0, *sorted(cuts), None]
        self._responses = [
            [data.replace(b"{port}", port)[begin:end] for begin, end in pairwise(places)]
            for data in responses
        ]
        self._hold = hold
        before = self._server.connections
        status = timed_probe(self._server.url)
        assert self._server.connections - before <= MAX_REDIRECTS + 1
        check_status(status)
        return status

    def check_valid(self, response: Valid, cuts: list[int], hold: bool) -> None:
        """A valid response is read exactly, in any pieces, without waiting for the end of the connection."""
        status = self.probe(response.data, cuts=cuts, hold=hold and response.has_end)
        expected = (
            (Status.UNHEALTHY, Reason.REPORT_ERRORS) if response.report.errors else (Status.OK, Reason.NONE)
        )
        assert (status.status, status.reason) == expected, status
        assert status.report == response.report

    def check_redirects(self, hops: list[tuple[int, str]], last: str, response: Valid) -> None:
        """Short redirects are followed. A target that clients would read differently is not."""
        heads = [
            b"HTTP/1.1 %d Moved\r\nContent-Length: 0\r\nLocation: %s\r\n\r\n" % (code, location.encode())
            for code, location in [*hops, *([(302, last)] if last else [])]
        ]
        status = self.probe(*heads, response.data)
        port = str(self._server.port)
        length = sum(len(location.replace("{port}", port).encode()) for _, location in hops)
        if last or len(hops) > MAX_REDIRECTS or length > MAX_URL_LENGTH:
            assert (status.status, status.reason) == (Status.UNREACHABLE, Reason.PROTOCOL), status
            assert "secret" not in str(status)
            return
        own = 1 if hops else 0
        assert status.report.errors == response.report.errors
        assert status.report.warnings[own:] == response.report.warnings
        assert all(
            warning.startswith("redirected to http://127.0.0.1") for warning in status.report.warnings[:own]
        )

    def check_changed(self, response: Valid, changes: list[Edit]) -> None:
        self.check_any(edited(response.data, changes))

    def check_any(self, data: bytes) -> None:
        """The probe and the second reading agree on any response."""
        status = self.probe(data)
        reading = second_reading(data)
        report = read_report(reading.body) if reading.code == 200 else None
        if report is None:
            assert status.reason not in (Reason.NONE, Reason.REPORT_ERRORS), (status, reading)
        else:
            assert status.report == report, (status, reading)
            raw = read_by_http_client(data)
            assert reading.body in (raw, _decoded(raw, "gzip"), _decoded(raw, "deflate")), (
                status,
                reading,
                raw,
            )
        if status.reason is Reason.STATUS_CODE:
            assert status.report.errors[0].startswith(f"unexpected status code {reading.code}"), (
                status,
                reading,
            )


def fuzz_responses(seed: int, count: int) -> Iterator[str]:
    """Yield the findings of ``count`` responses in all."""
    fuzzer = Fuzzer()
    cuts = st.lists(st.integers(0, 600), max_size=3)
    last = st.sampled_from(["", "", *BAD_LOCATIONS])
    hops = st.lists(redirects, max_size=MAX_REDIRECTS + 1)
    any_data = free_responses | st.binary(max_size=60)
    kinds: list[tuple[Any, tuple[Any, ...], float]] = [
        (fuzzer.check_valid, (valid_responses(), cuts, st.booleans()), 0.2),
        (fuzzer.check_redirects, (hops, last, valid_responses()), 0.1),
        (fuzzer.check_changed, (valid_responses(), edits(*SMALL_TOKENS, *FRAMING)), 0.6),
        (fuzzer.check_any, (any_data,), 0.1),
    ]
    with fuzzer.serving():
        for check, inputs, share in kinds:
            yield from findings_of(check, *inputs, seed=seed, count=max(1, int(count * share)))
