"""The probe: one GET of one proxy's health report, judged into one status."""

from __future__ import annotations

import errno
import http.client
import logging
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from proxyhealth import __version__
from proxyhealth.conf import conf
from proxyhealth.exceptions import AddressBlocked, BadReport, ProbeFailed, TooManyBytes
from proxyhealth.probing.addresses import AddressPolicy
from proxyhealth.probing.deadline import Deadline
from proxyhealth.probing.transport import MAX_HEADER_BYTES, Connection, tls_context
from proxyhealth.report import HealthReport, clean
from proxyhealth.snapshot import Proxy, ProxyStatus
from proxyhealth.statuses import Reason, Status
from proxyhealth.validators import MAX_URL_LENGTH, ProxyURL, parse_proxy_url, split_url

logger = logging.getLogger(__name__)

REPORT_PATH = "/healthz-report"
MAX_REPORT_BYTES = 64 * 1024
MAX_REDIRECTS = 10

_READ_SIZE = 8 * 1024  # a body in tiny chunks is gathered in pieces of this size
_TOO_LARGE = f"more than {MAX_REPORT_BYTES // 1024} KiB"

_HEADERS = CaseInsensitiveDict(
    {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "User-Agent": f"proxyhealth/{__version__}",
    }
)


_BAD_URL = "failed to parse proxy url: "
_NOT_ALLOWED = "address not allowed: "
_NO_RESPONSE = "request to proxy failed: "
_NO_REPORT = "failed to decode health report: "

# What may go wrong before the headers of a response are complete; the first that fits counts.
_REQUEST_ERRORS: tuple[tuple[type[Exception], Status, Reason, str], ...] = (
    (AddressBlocked, Status.UNHEALTHY, Reason.BLOCKED, _NOT_ALLOWED),
    (socket.gaierror, Status.UNREACHABLE, Reason.DNS, _NO_RESPONSE),
    (ssl.SSLError, Status.UNREACHABLE, Reason.TLS, _NO_RESPONSE),
    (TimeoutError, Status.UNREACHABLE, Reason.TIMEOUT, _NO_RESPONSE),
    (OSError, Status.UNREACHABLE, Reason.CONNECT, _NO_RESPONSE),
    (http.client.HTTPException, Status.UNREACHABLE, Reason.PROTOCOL, _NO_RESPONSE),
)

# Errors of connecting that tell of this machine, and nothing of the proxy.
_OUR_OWN_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def probe(proxy: Proxy, checked_at: datetime | None = None) -> ProxyStatus:
    """Ask ``proxy`` for its report and judge the answer, within ``TIMEOUT`` seconds.

    Raises nothing: whatever a proxy does is a status, and so is a bug of ours (``internal``,
    logged with its traceback). ``checked_at`` is taken over into the status; default is now.
    """
    checked_at = checked_at or datetime.now(UTC)
    if not proxy.url:
        return ProxyStatus(proxy, "", Status.UNREGISTERED, checked_at=checked_at)
    begin = time.monotonic()
    visit = _Fetch()
    status, reason = Status.OK, Reason.NONE
    try:
        report = visit.fetch_report(proxy.url)
        if report.errors:
            status, reason = Status.UNHEALTHY, Reason.REPORT_ERRORS
    except ProbeFailed as judged:
        status, reason = judged.status, judged.reason
        report = HealthReport.sanitized([str(judged)], visit.warnings)
    except Exception:
        logger.exception("probe failed proxy=%s name=%s", proxy.id, proxy.name)
        status, reason = Status.UNHEALTHY, Reason.INTERNAL
        message = "proxyhealth failed to probe this proxy; the worker's log says why"
        report = HealthReport.sanitized([message], visit.warnings)
    return ProxyStatus(
        proxy=proxy,
        proxy_host=visit.proxy_host,
        status=status,
        reason=reason,
        report=report,
        checked_at=checked_at,
        latency=time.monotonic() - begin if visit.answered else None,
        tls_expires_at=visit.tls_expires_at,
    )


def is_reachable(url: str) -> bool:
    """Whether a server answers at ``url`` within ``TIMEOUT`` seconds; anything that is HTTP will do.

    The URL is the operator's own, so the address policy does not apply. Raises nothing.
    """
    visit = _Fetch()
    visit.deadline = Deadline(conf.TIMEOUT)
    visit.policy = AddressPolicy()
    try:
        with visit.get(parse_proxy_url(url.partition("?")[0]), requests.utils.requote_uri(url)):
            return True
    except ProbeFailed as judged:
        logger.warning("canary silent url=%s error=%s", url.partition("?")[0], judged)
    except Exception:
        logger.exception("canary failed url=%s", url.partition("?")[0])
    return False


class _Fetch:
    """One probe under way, over all its redirects."""

    def __init__(self) -> None:
        self.proxy_host = ""
        self.answered = False  # by the one that was asked last
        self.tls_expires_at: datetime | None = None  # the end of the certificate that ends first
        self._redirect = ""
        self._expiry = ""

    @property
    def warnings(self) -> list[str]:
        """What we have to say, besides what the proxy says."""
        return [text for text in (self._redirect, self._expiry) if text]

    def fetch_report(self, proxy_url: str) -> HealthReport:
        self.deadline = Deadline(conf.TIMEOUT)
        self.policy = AddressPolicy(conf.ADDRESS_DENY, conf.ADDRESS_ALLOW)
        try:
            url, target = _report_of(proxy_url)
        except ValueError as error:
            raise ProbeFailed(Status.UNHEALTHY, Reason.INVALID_URL, f"{_BAD_URL}{error}") from None
        self.proxy_host = url.netloc
        for _ in range(MAX_REDIRECTS + 1):
            with self.get(url, target) as response:
                self.answered = True
                location = response.headers["location"].strip() if response.is_redirect else ""
                if not location:
                    return _read_report(response, self.deadline, self.warnings)
                self.answered = False  # a redirect is no answer yet
                url, target = self._follow(target, location)
        raise ProbeFailed(
            Status.UNREACHABLE, Reason.PROTOCOL, f"{_NO_RESPONSE}more than {MAX_REDIRECTS} redirects"
        )

    def _follow(self, target: str, location: str) -> tuple[ProxyURL, str]:
        try:
            if len(location) > MAX_URL_LENGTH:
                raise ValueError(f"it is longer than {MAX_URL_LENGTH:,} characters")
            # Headers come as Latin-1; what servers send in them is UTF-8.
            location = location.encode("latin-1", "replace").decode("utf-8", "replace")
            parts = split_url(location, base=target)
            url = parse_proxy_url(f"{parts.scheme}://{parts.netloc}")
        except ValueError as error:
            raise ProbeFailed(
                Status.UNREACHABLE,
                Reason.PROTOCOL,
                f"{_NO_RESPONSE}redirected to a URL that cannot be used: {error}",
            ) from None
        # Shown without its query, which may hold a token.
        led_to = clean(f"{url.base}{parts.path}", 200)
        self._redirect = f"redirected to {led_to}; set the proxy's URL to where its users are to go"
        query = f"?{parts.query}" if parts.query else ""
        return url, requests.utils.requote_uri(f"{url.base}{parts.path}{query}")

    @contextmanager
    def get(self, url: ProxyURL, target: str) -> Iterator[requests.Response]:
        context = tls_context(conf.CA_BUNDLE) if url.scheme == "https" else None
        connection = Connection(
            url.host, url.port, deadline=self.deadline, policy=self.policy, context=context
        )
        with connection:
            try:
                response = _FreshConnectionAdapter(connection).send(_request(target))
            except Exception as error:
                raise self._judge(error) from error
            finally:
                if connection.tls_expires_at:
                    self._note_expiry(connection.tls_expires_at)
            with closing(response):
                yield response

    def _note_expiry(self, moment: datetime) -> None:
        if self.tls_expires_at is None or moment < self.tls_expires_at:
            self.tls_expires_at = moment
            left = moment - datetime.now(UTC)
            if left < timedelta(days=conf.TLS_EXPIRY_WARNING):
                when = f"{moment:%Y-%m-%d %H:%M} UTC, in {left.days} {'day' if left.days == 1 else 'days'}"
                self._expiry = f"the TLS certificate ends on {when}; renew it"

    def _judge(self, error: Exception) -> Exception:
        if isinstance(error, OSError) and error.errno in _OUR_OWN_ERRNOS:
            return error
        for kind, status, reason, prefix in _REQUEST_ERRORS:
            if isinstance(error, kind):
                return ProbeFailed(status, reason, prefix + clean(_describe(error, self.deadline), 500))
        return error


@lru_cache(maxsize=16_384)  # the same URLs, round after round; never one that a peer has chosen
def _report_of(proxy_url: str) -> tuple[ProxyURL, str]:
    url = parse_proxy_url(proxy_url)
    return url, requests.utils.requote_uri(url.base + REPORT_PATH)


def _request(target: str) -> requests.PreparedRequest:
    # As Request.prepare() makes it, less another look at a URL that was looked at.
    request = requests.PreparedRequest()
    request.method = "GET"
    request.url = target
    request.headers = _HEADERS
    request.hooks = {}
    return request


class _FreshConnectionAdapter(BaseAdapter):
    """Sends a request over the one connection it is given; nothing is pooled or retried.

    Used without a ``requests.Session``, so there are no cookies, no environment proxies, no netrc
    and nothing that one proxy's answer could leave behind for another's.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        super().__init__()

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        self._connection.request("GET", request.path_url, headers=request.headers)
        answer = self._connection.getresponse()
        response = requests.Response()
        response.status_code = answer.status
        response.reason = answer.reason
        response.headers = CaseInsensitiveDict(answer.headers.items())
        response.raw = answer
        response.request = request
        return response


def _describe(error: Exception, deadline: Deadline) -> str:
    """What an operator needs to know of an error before the response: what, and during what."""
    match error:
        case AddressBlocked():
            return str(error)
        case TimeoutError(errno=None):
            return f"no answer within {deadline.seconds:g} s; the time ran out while {deadline.phase}"
        case ssl.SSLCertVerificationError():
            return f"certificate not accepted while {deadline.phase}: {error.verify_message}"
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER" | "HTTP_REQUEST"):
            return f"no TLS is spoken there (while {deadline.phase}); is the URL to begin with http://?"
        case ssl.SSLError():
            return f"TLS failed while {deadline.phase}: {error.reason or error}"
        case TooManyBytes():
            return f"more than {MAX_HEADER_BYTES // 1024} KiB of headers while {deadline.phase}"
        case http.client.UnknownProtocol(args=(version,)):
            return f"the answer is not HTTP/1.1: it begins with {str(version)[:64]!r}"
        case http.client.BadStatusLine(args=(line,)) if not isinstance(error, ConnectionError):
            what = f"the answer is not HTTP: it begins with {str(line)[:64]!r}"
            if str(line).startswith("\x15\x03"):  # an alert
                what += "; TLS is spoken there, is the URL to begin with https://?"
            return what
        case OSError() if error.strerror:
            return f"{error.strerror} while {deadline.phase}"
        case _:
            return f"{error} while {deadline.phase}"


def _read_report(response: requests.Response, deadline: Deadline, warnings: list[str]) -> HealthReport:
    if response.status_code != 200:
        reason = f": {response.reason}" if response.reason else ""
        raise ProbeFailed(
            Status.UNHEALTHY,
            Reason.STATUS_CODE,
            clean(f"unexpected status code {response.status_code}{reason}", 200),
        )
    try:
        return HealthReport.parse(_read_body(response, deadline), warnings)
    except BadReport as bad:
        message = str(bad)
        if bad.reason is Reason.NOT_JSON:
            content_type = clean(response.headers.get("content-type", "none"), 100)
            message += f", it begins with {bad.beginning!r}" if bad.beginning else ""
            message += (
                f"; its content type is {content_type}. A page that is not JSON usually means "
                "that the URL is not that of a workspace proxy"
            )
        raise _no_report(bad.reason, message) from None


def _read_body(response: requests.Response, deadline: Deadline) -> bytes:
    """The body, decoded; raises ``ProbeFailed`` if it is late, cut off, or over 64 KiB, or ``BadReport``."""
    body = bytearray()
    try:
        while len(body) <= MAX_REPORT_BYTES and (chunk := response.raw.read(_READ_SIZE)):
            body += chunk
    except TimeoutError:
        raise _no_report(Reason.TIMEOUT, f"not complete within {deadline.seconds:g} s") from None
    except TooManyBytes:
        raise _no_report(Reason.TOO_LARGE, _TOO_LARGE) from None
    except (http.client.HTTPException, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise _no_report(Reason.TRUNCATED, f"cut off after {len(body):,} bytes: {why}") from None
    if len(body) <= MAX_REPORT_BYTES:
        body = _decompress(body, response.headers.get("content-encoding", ""))
    if len(body) > MAX_REPORT_BYTES:
        raise _no_report(Reason.TOO_LARGE, _TOO_LARGE)
    return bytes(body)


def _decompress(body: bytearray, encoding: str) -> bytearray:
    """``body`` out of its content encoding, and no more of it than shows that it is too large."""
    match encoding.strip().lower():
        case "" | "identity":
            return body
        case _ if not body:
            return body
        case "gzip" | "x-gzip":
            formats = [zlib.MAX_WBITS | 16]
        case "deflate":
            formats = [zlib.MAX_WBITS, -zlib.MAX_WBITS]  # with and, as some send it, without a header
        case _:
            why = f"the body comes in an encoding that was not asked for, {clean(encoding, 50)}"
            raise BadReport(Reason.NOT_JSON, why)
    for format in formats:
        inflater = zlib.decompressobj(format)
        try:
            content = inflater.decompress(body, MAX_REPORT_BYTES + 1)
        except zlib.error:
            continue
        if not inflater.eof and len(content) <= MAX_REPORT_BYTES:
            raise _no_report(Reason.TRUNCATED, f"cut off after {len(body):,} bytes of {encoding}")
        return bytearray(content)
    raise BadReport(Reason.NOT_JSON, f"the body is not in the encoding that it names, {encoding}")


def _no_report(reason: Reason, why: str) -> ProbeFailed:
    return ProbeFailed(Status.UNHEALTHY, reason, clean(f"{_NO_REPORT}{why}", 500))
