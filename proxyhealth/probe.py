"""The probe: one GET of one proxy's health report, judged into one status."""

from __future__ import annotations

import errno
import http.client
import logging
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from proxyhealth import __version__
from proxyhealth.conf import conf
from proxyhealth.report import BadReport, HealthReport, Proxy, ProxyStatus, Reason, Status, clean
from proxyhealth.transport import (
    AddressBlocked,
    AddressPolicy,
    Connection,
    Deadline,
    TooManyBytes,
    tls_context,
)
from proxyhealth.validators import ProxyURL, parse_proxy_url

logger = logging.getLogger(__name__)

REPORT_PATH = "/healthz-report"
MAX_REPORT_BYTES = 64 * 1024
MAX_REDIRECTS = 10

_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": f"proxyhealth/{__version__}",
}

_BAD_URL = "failed to parse proxy url: "
_NOT_ALLOWED = "address not allowed: "
_NO_RESPONSE = "request to proxy failed: "
_NO_REPORT = "failed to decode health report: "

# What may go wrong before the headers of a response are complete; the first that fits counts.
_REQUEST_ERRORS: tuple[tuple[type[Exception], Status, Reason, str], ...] = (
    (AddressBlocked, Status.UNHEALTHY, Reason.BLOCKED, _NOT_ALLOWED),
    (requests.RequestException, Status.UNHEALTHY, Reason.INVALID_URL, _BAD_URL),
    (socket.gaierror, Status.UNREACHABLE, Reason.DNS, _NO_RESPONSE),
    (ssl.SSLError, Status.UNREACHABLE, Reason.TLS, _NO_RESPONSE),
    (TimeoutError, Status.UNREACHABLE, Reason.TIMEOUT, _NO_RESPONSE),
    (OSError, Status.UNREACHABLE, Reason.CONNECT, _NO_RESPONSE),
    (http.client.HTTPException, Status.UNREACHABLE, Reason.PROTOCOL, _NO_RESPONSE),
    (urllib3.exceptions.HTTPError, Status.UNREACHABLE, Reason.PROTOCOL, _NO_RESPONSE),
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
    visit = _Visit()
    try:
        report = visit.fetch_report(proxy.url)
        status, reason = Status.OK, Reason.NONE
        if report.errors:
            status, reason = Status.UNHEALTHY, Reason.REPORT_ERRORS
    except _Judged as judged:
        status, reason = judged.status, judged.reason
        report = HealthReport.of([str(judged)])
    except Exception:
        logger.exception("probe failed proxy=%s name=%s", proxy.id, proxy.name)
        status, reason = Status.UNHEALTHY, Reason.INTERNAL
        report = HealthReport.of(["proxyhealth failed to probe this proxy; the worker's log says why"])
    if visit.redirected_to:
        warning = f"redirected to {visit.redirected_to}; set the proxy's URL to where its users are to go"
        report = HealthReport.of(report.errors, [warning, *report.warnings])
    return ProxyStatus(
        proxy=proxy,
        proxy_host=visit.proxy_host,
        status=status,
        reason=reason,
        report=report,
        checked_at=checked_at,
        latency=time.monotonic() - begin if visit.answered else None,
    )


class _Judged(Exception):
    """Ends a probe that got no report; the message is for the operator."""

    def __init__(self, status: Status, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class _Visit:
    """One probe under way, over all its redirects."""

    def __init__(self) -> None:
        self.deadline = Deadline(conf.TIMEOUT)
        self.policy = AddressPolicy(conf.ADDRESS_DENY, conf.ADDRESS_ALLOW)
        self.proxy_host = ""
        self.answered = False
        self.redirected_to = ""

    def fetch_report(self, proxy_url: str) -> HealthReport:
        try:
            url = parse_proxy_url(proxy_url)
        except ValueError as error:
            raise _Judged(Status.UNHEALTHY, Reason.INVALID_URL, f"{_BAD_URL}{error}") from None
        self.proxy_host = url.netloc
        target = url.base + REPORT_PATH
        for _ in range(MAX_REDIRECTS + 1):
            with self._get(url, target) as response:
                self.answered = True
                if not response.is_redirect:
                    return _read_report(response, self.deadline)
                url, target = self._follow(target, response.headers["location"])
        raise _Judged(
            Status.UNREACHABLE, Reason.PROTOCOL, f"{_NO_RESPONSE}more than {MAX_REDIRECTS} redirects"
        )

    def _follow(self, target: str, location: str) -> tuple[ProxyURL, str]:
        # Headers come as Latin-1; what servers send in them is UTF-8.
        location = location.encode("latin-1", "replace").decode("utf-8", "replace").strip()
        try:
            parts = urlsplit(urljoin(target, location))
            url = parse_proxy_url(f"{parts.scheme}://{parts.netloc}")
        except ValueError as error:
            raise _Judged(
                Status.UNREACHABLE,
                Reason.PROTOCOL,
                f"{_NO_RESPONSE}redirected to a URL that cannot be used: {error}",
            ) from None
        # Shown without its query, which may hold a token.
        self.redirected_to = clean(f"{url.base}{parts.path}", 200)
        return url, f"{url.base}{parts.path}" + (f"?{parts.query}" if parts.query else "")

    @contextmanager
    def _get(self, url: ProxyURL, target: str) -> Iterator[requests.Response]:
        context = tls_context(conf.CA_BUNDLE) if url.scheme == "https" else None
        connection = Connection(
            url.host, url.port, deadline=self.deadline, policy=self.policy, context=context
        )
        with closing(connection):
            try:
                request = requests.Request("GET", target, headers=_HEADERS).prepare()
                response = _FreshConnectionAdapter(connection).send(request)
            except Exception as error:
                raise self._judge(error) from error
            with closing(response):
                yield response

    def _judge(self, error: Exception) -> Exception:
        if isinstance(error, OSError) and error.errno in _OUR_OWN_ERRNOS:
            return error
        for kind, status, reason, prefix in _REQUEST_ERRORS:
            if isinstance(error, kind):
                return _Judged(status, reason, prefix + clean(_describe(error, self.deadline), 500))
        return error


class _FreshConnectionAdapter(HTTPAdapter):
    """Sends a request over the one connection it is given; nothing is pooled or retried.

    Used without a ``requests.Session``, so there are no cookies, no environment proxies, no netrc
    and nothing that one proxy's answer could leave behind for another's.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """No pool."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        self._connection.request("GET", request.path_url, headers=request.headers)
        answer = self._connection.getresponse()
        raw = urllib3.HTTPResponse(
            body=answer,
            headers=urllib3.HTTPHeaderDict(answer.headers.items()),
            status=answer.status,
            reason=answer.reason,
            preload_content=False,
            decode_content=True,
            original_response=answer,
            request_method="GET",
        )
        return self.build_response(request, raw)


def _describe(error: Exception, deadline: Deadline) -> str:
    """What an operator needs to know of an error before the response: what, and during what."""
    match error:
        case AddressBlocked():
            return str(error)
        case TimeoutError():
            return f"no answer within {deadline.seconds:g} s; the time ran out while {deadline.phase}"
        case ssl.SSLCertVerificationError():
            return f"certificate not accepted while {deadline.phase}: {error.verify_message}"
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER" | "HTTP_REQUEST"):
            return f"no TLS is spoken there (while {deadline.phase}); is the URL to begin with http://?"
        case ssl.SSLError():
            return f"TLS failed while {deadline.phase}: {error.reason or error}"
        case http.client.BadStatusLine(args=(line,)) if not isinstance(error, ConnectionError):
            return f"the answer is not HTTP: it begins with {str(line)[:64]!r}"
        case OSError() if error.strerror:
            return f"{error.strerror} while {deadline.phase}"
        case _:
            return f"{error} while {deadline.phase}"


def _read_report(response: requests.Response, deadline: Deadline) -> HealthReport:
    if response.status_code != 200:
        reason = f": {response.reason}" if response.reason else ""
        raise _Judged(
            Status.UNHEALTHY,
            Reason.STATUS_CODE,
            clean(f"unexpected status code {response.status_code}{reason}", 200),
        )
    try:
        return HealthReport.parse(_read_body(response, deadline))
    except BadReport as bad:
        message = f"{_NO_REPORT}{bad}"
        if bad.reason is Reason.NOT_JSON:
            content_type = response.headers.get("content-type", "none")
            message += (
                f"; its content type is {content_type}. A page that is not JSON usually means "
                "that the URL is not that of a workspace proxy"
            )
        raise _Judged(Status.UNHEALTHY, bad.reason, clean(message, 500)) from None


def _read_body(response: requests.Response, deadline: Deadline) -> bytes:
    """The body, decoded; raises ``_Judged`` if it is late, cut off, or over 64 KiB."""
    reason, why = Reason.NONE, ""
    body = b""
    try:
        while chunk := response.raw.read(MAX_REPORT_BYTES + 1 - len(body)):
            body += chunk
            if len(body) > MAX_REPORT_BYTES:
                reason, why = Reason.TOO_LARGE, f"more than {MAX_REPORT_BYTES // 1024} KiB"
                break
    except (urllib3.exceptions.ReadTimeoutError, TimeoutError):
        reason, why = Reason.TIMEOUT, f"not complete within {deadline.seconds:g} s"
    except urllib3.exceptions.DecodeError as error:
        reason, why = Reason.NOT_JSON, f"{error.args[0]}"
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
        if isinstance(error.__cause__, TooManyBytes):
            reason, why = Reason.TOO_LARGE, str(error.__cause__)
        else:
            reason, why = Reason.TRUNCATED, f"cut off after {len(body):,} bytes ({error})"
    if reason:
        raise _Judged(Status.UNHEALTHY, reason, clean(f"{_NO_REPORT}{why}", 500))
    return body
