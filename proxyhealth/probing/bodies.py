"""The body of a response, with limits on its size and on the time to read it."""

import http.client
import zlib
from contextlib import suppress
from typing import Any

import requests

from proxyhealth.exceptions import BadReport, ProbeFailed, TooManyBytes
from proxyhealth.probing.deadline import Deadline
from proxyhealth.report import MAX_BEGINNING_BYTES, clean
from proxyhealth.statuses import Reason, Status

NO_RESPONSE = "request to proxy failed: "
NO_REPORT = "failed to decode health report: "

MAX_REPORT_BYTES = 64 * 1024
_BEGINNING_TIMEOUT = 0.5  # seconds; most bodies of errors arrive with the headers

_READ_SIZE = 8 * 1024
_TOO_LARGE = f"more than {MAX_REPORT_BYTES // 1024} KiB"
_WINDOW_BITS = {
    "gzip": (zlib.MAX_WBITS | 16,),
    "x-gzip": (zlib.MAX_WBITS | 16,),
    "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS),  # some servers omit the zlib header
}
_GZIP_MAGIC = b"\x1f\x8b"


def read_body(response: requests.Response, deadline: Deadline) -> bytes:
    """Return the decoded body. Raise ``ProbeFailed``, or ``BadReport`` if it cannot be decoded."""
    body = bytearray()
    try:
        while len(body) <= MAX_REPORT_BYTES and (piece := response.raw.read(_READ_SIZE)):
            body += piece
    except TimeoutError:
        raise _no_report(Reason.TIMEOUT, f"not complete within {deadline.seconds:g} s") from None
    except TooManyBytes as error:
        raise _no_report(Reason.TOO_LARGE, str(error)) from None
    except http.client.HTTPException as error:
        raise _not_http(f"{error} while {deadline.phase}") from None
    except OSError as error:
        why = error.strerror or error
        raise _no_report(Reason.TRUNCATED, f"cut off after {len(body):,} bytes: {why}") from None
    if len(body) <= MAX_REPORT_BYTES:
        body = _decompress(body, response.headers.get("content-encoding", ""))
    if len(body) > MAX_REPORT_BYTES:
        raise _no_report(Reason.TOO_LARGE, _TOO_LARGE)
    return bytes(body)


def read_beginning(response: requests.Response) -> bytes:
    """Return the decoded beginning of the body that arrives within half a second. Never raise."""
    body = bytearray()
    with suppress(http.client.HTTPException, OSError):
        raw: Any = response.raw  # a probing.response.Response
        raw.deadline.shorten(_BEGINNING_TIMEOUT)
        while len(body) < MAX_BEGINNING_BYTES:
            if not (piece := raw.read(MAX_BEGINNING_BYTES - len(body))):
                break
            body += piece
    encoding = _encoding(response.headers.get("content-encoding", ""))
    if not encoding:
        return bytes(body)
    for window_bits in _WINDOW_BITS.get(encoding, ()):
        with suppress(zlib.error):
            return zlib.decompressobj(window_bits).decompress(body, MAX_BEGINNING_BYTES)
    return b""


def _encoding(value: str) -> str:
    """Return the name of a compression, or an empty string for none."""
    name = value.lower()
    return "" if name == "identity" else name


def _decompress(body: bytearray, encoding: str) -> bytearray:
    """Return ``body`` decompressed, cut one byte after ``MAX_REPORT_BYTES``. Raise as :func:`read_body`."""
    name = _encoding(encoding)
    if not body or not name:
        return body
    if name not in _WINDOW_BITS:
        raise BadReport(Reason.NOT_JSON, f"the Content-Encoding {clean(encoding, 50)} is not supported")
    for window_bits in _WINDOW_BITS[name]:
        inflater = zlib.decompressobj(window_bits)
        try:
            content = inflater.decompress(body, MAX_REPORT_BYTES + 1)
        except zlib.error:
            continue
        if not inflater.eof and len(content) <= MAX_REPORT_BYTES:
            raise _no_report(Reason.TRUNCATED, f"cut off after {len(body):,} bytes of {encoding}")
        if inflater.unused_data.startswith(_GZIP_MAGIC):
            # Some clients read only the first part, others all of them.
            raise _not_http("the body has more than one part of gzip")
        return bytearray(content)
    raise BadReport(Reason.NOT_JSON, f"the body is not valid {encoding}")


def _not_http(why: str) -> ProbeFailed:
    return ProbeFailed(Status.UNREACHABLE, Reason.PROTOCOL, clean(f"{NO_RESPONSE}{why}", 500))


def _no_report(reason: Reason, why: str) -> ProbeFailed:
    return ProbeFailed(Status.UNHEALTHY, reason, clean(f"{NO_REPORT}{why}", 500))
