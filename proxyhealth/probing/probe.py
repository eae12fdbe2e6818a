"""The probe: it requests the health report of one proxy and turns the result into a status."""

import errno
import http.client
import logging
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from proxyhealth import __version__
from proxyhealth.conf import conf
from proxyhealth.exceptions import AddressBlocked, BadReport, ProbeFailed
from proxyhealth.probing import tls
from proxyhealth.probing.bodies import NO_REPORT, NO_RESPONSE, read_beginning, read_body
from proxyhealth.probing.certificates import Certificate
from proxyhealth.probing.deadline import Deadline
from proxyhealth.probing.excerpts import describe_bad_report, describe_status
from proxyhealth.probing.policy import AddressPolicy
from proxyhealth.probing.recorder import Recorder
from proxyhealth.probing.transport import Connection
from proxyhealth.probing.turns import NoTurn
from proxyhealth.report import HealthReport, clean
from proxyhealth.snapshot import Proxy, ProxyStatus
from proxyhealth.statuses import Reason, Status
from proxyhealth.trace import BODY
from proxyhealth.validators import MAX_URL_LENGTH, ProxyURL, parse_proxy_url, split_url

logger = logging.getLogger(__name__)

REPORT_PATH = "/healthz-report"
MAX_REDIRECTS = 4

_HEADERS: Any = {  # a plain dictionary is faster than that of requests
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": f"proxyhealth/{__version__}",
}

_BAD_URL = "failed to parse proxy url: "
_NOT_ALLOWED = "address not allowed: "

# Errors before the headers of a response are complete. The first match counts.
_REQUEST_ERRORS: tuple[tuple[type[Exception], Status, Reason, str], ...] = (
    (AddressBlocked, Status.UNHEALTHY, Reason.BLOCKED, _NOT_ALLOWED),
    (socket.gaierror, Status.UNREACHABLE, Reason.DNS, NO_RESPONSE),
    (ssl.SSLError, Status.UNREACHABLE, Reason.TLS, NO_RESPONSE),
    (TimeoutError, Status.UNREACHABLE, Reason.TIMEOUT, NO_RESPONSE),
    (OSError, Status.UNREACHABLE, Reason.CONNECT, NO_RESPONSE),
    (http.client.HTTPException, Status.UNREACHABLE, Reason.PROTOCOL, NO_RESPONSE),
)

# Beginnings of responses that are not HTTP/1: a TLS alert, and frames of HTTP/2 (SETTINGS or GOAWAY).
_HINTS = (
    (re.compile("\x15\x03"), "the server speaks TLS, should the URL begin with https://?"),
    (
        re.compile("...[\x04\x07]\0{5}", re.DOTALL),
        "the server speaks only HTTP/2, but the probe needs HTTP/1.1",
    ),
)

_NOT_IN_LOCATIONS = re.compile(r"[\x00-\x1f\x7f\\]")
_HOST_IS_MISSING = re.compile(r"https?:(?!//[^/])|//(?:[/?#]|\Z)", re.IGNORECASE)

# Errors of this machine: a lack of file descriptors, buffers or memory. They say nothing of the proxy.
_LOCAL_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def probe(proxy: Proxy, checked_at: datetime | None = None, turn: NoTurn | None = None) -> ProxyStatus:
    """Request the report of ``proxy`` and return its status, within ``TIMEOUT`` seconds.

    Never raise: an unexpected error gives the reason ``internal``, and its traceback is logged.
    ``checked_at`` is stored in the status; the default is now. The caller holds ``turn``: the probe
    gives it up while it waits for the proxy. The wait to get it back does not count.
    """
    checked_at = checked_at or datetime.now(UTC)
    if not proxy.url:
        return ProxyStatus(proxy, "", Status.UNREGISTERED, checked_at=checked_at)
    begin = time.monotonic()
    turn = turn or NoTurn()
    fetch = _Fetch(turn)
    status, reason, failure = Status.OK, Reason.NONE, ""
    try:
        report = fetch.fetch_report(proxy.url)
        if report.errors:
            status, reason = Status.UNHEALTHY, Reason.REPORT_ERRORS
    except ProbeFailed as error:
        status, reason, failure = error.status, error.reason, str(error)
        if status is Status.UNREACHABLE:
            fetch.responded = False  # for example, the headers were valid, but the body was not
    except Exception:
        logger.exception("probe failed proxy=%s name=%s", proxy.id, clean(proxy.name, 64))
        status, reason = Status.UNHEALTHY, Reason.INTERNAL
        failure = "proxyhealth failed to probe this proxy; the worker's log says why"
    if failure:
        report = HealthReport.sanitized([failure], fetch.warnings)
    return ProxyStatus(
        proxy=proxy,
        proxy_host=fetch.proxy_host,
        status=status,
        reason=reason,
        report=report,
        checked_at=checked_at,
        latency=time.monotonic() - begin - turn.waited if fetch.responded else None,
        tls_expires_at=fetch.tls_expires_at,
        course=fetch.recorder.course(checked_at, status, reason, failure),
    )


def is_reachable(url: str) -> bool:
    """Return True if ``url`` returns any HTTP response within ``TIMEOUT`` seconds. Never raise.

    The operator chose the URL, so the address policy does not apply.
    """
    fetch = _Fetch(NoTurn())
    fetch.deadline = Deadline(conf.TIMEOUT)
    fetch.policy = AddressPolicy()
    shown = url.partition("?")[0]  # a query may contain a token
    try:
        with fetch.get(parse_proxy_url(shown), _quoted(url)):
            return True
    except ProbeFailed as error:
        logger.warning("canary silent url=%s error=%s", shown, error)
    except Exception:
        logger.exception("canary failed url=%s", shown)
    return False


class _Fetch:
    """The requests of one probe: the first one and those that follow redirects."""

    def __init__(self, turn: NoTurn) -> None:
        self._turn = turn
        self.recorder = Recorder()
        self.proxy_host = ""
        self.responded = False
        self.tls_expires_at: datetime | None = None  # of the certificate that expires first
        self._location_left = MAX_URL_LENGTH  # characters of all redirects
        self._redirect = ""
        self._expiry = ""

    @property
    def warnings(self) -> list[str]:
        """Our own warnings, in addition to those of the proxy."""
        return [text for text in (self._redirect, self._expiry) if text]

    def fetch_report(self, proxy_url: str) -> HealthReport:
        self.deadline = Deadline(conf.TIMEOUT, self._turn)
        self.policy = AddressPolicy(conf.ADDRESS_DENY, conf.ADDRESS_ALLOW)
        try:
            url, target = _report_of(proxy_url)
        except ValueError as error:
            raise ProbeFailed(Status.UNHEALTHY, Reason.INVALID_URL, f"{_BAD_URL}{error}") from None
        self.proxy_host = url.netloc
        for _ in range(MAX_REDIRECTS + 1):
            with self.get(url, target) as response:
                self.responded = True
                location = response.headers["location"] if response.is_redirect else ""
                if not location:
                    self.deadline.mark(BODY)
                    return _read_report(response, self.deadline, self.warnings)
                self.responded = False  # a redirect does not count
                self.deadline.count_redirect()
                self.policy = self.policy.after(self._peer)
                url, target = self._follow(target, location)
        raise ProbeFailed(
            Status.UNREACHABLE, Reason.PROTOCOL, f"{NO_RESPONSE}more than {MAX_REDIRECTS} redirects"
        )

    def _follow(self, target: str, location: str) -> tuple[ProxyURL, str]:
        try:
            self._location_left -= len(location)
            if self._location_left < 0:
                raise ValueError(f"it is longer than {MAX_URL_LENGTH:,} characters, with those before it")
            location = _decode_location(location)
            parts = split_url(location, base=target)
            url = parse_proxy_url(f"{parts.scheme}://{parts.netloc}")
        except ValueError as error:
            raise ProbeFailed(
                Status.UNREACHABLE,
                Reason.PROTOCOL,
                f"{NO_RESPONSE}redirected to a URL that cannot be used: {error}",
            ) from None
        # The warning omits the query, which may contain a token.
        shown = clean(f"{url.base}{parts.path}", 200)
        self._redirect = f"redirected to {shown}; change the proxy's URL, its users may not be redirected"
        query = f"?{parts.query}" if parts.query else ""
        return url, _quoted(f"{url.base}{parts.path}{query}")

    @contextmanager
    def get(self, url: ProxyURL, target: str) -> Iterator[requests.Response]:
        context = None
        if url.scheme == "https":
            with self.deadline.pause():  # a file system may hang
                context = tls.tls_context(conf.CA_BUNDLE)
        connection = Connection(
            url.host, url.port, deadline=self.deadline, policy=self.policy, context=context
        )
        self.recorder.begin(target, connection)
        with closing(connection):
            try:
                response = _FreshConnectionAdapter(connection).send(_request(target))
            except Exception as error:
                raise self._classify(error) from error
            finally:
                if connection.first_to_expire:
                    self._note_expiry(connection.first_to_expire)
            self._peer = connection.peer
            with closing(response):
                yield response

    def _note_expiry(self, certificate: Certificate) -> None:
        moment = certificate.expires_at
        if moment and (self.tls_expires_at is None or moment < self.tls_expires_at):
            self.tls_expires_at = moment
            left = moment - datetime.now(UTC)
            if left < timedelta(days=conf.TLS_EXPIRY_WARNING):
                when = f"{moment:%Y-%m-%d %H:%M} UTC, in {left.days} {'day' if left.days == 1 else 'days'}"
                owner = f" of {certificate.owner}" if certificate.is_authority else ""
                self._expiry = f"the TLS certificate{owner} expires on {when}; renew it"

    def _classify(self, error: Exception) -> Exception:
        """Return ``error`` as ``ProbeFailed``, or unchanged if the proxy did not cause it."""
        if isinstance(error, OSError) and error.errno in _LOCAL_ERRNOS:
            return error
        for kind, status, reason, prefix in _REQUEST_ERRORS:
            if isinstance(error, kind):
                return ProbeFailed(status, reason, prefix + clean(describe(error, self.deadline), 500))
        return error


def _quoted(url: str) -> str:
    """Return ``url`` with escapes for all characters that a request must not have, as browsers do."""
    return quote(url, safe="!#$%&'()*+,/:;=?@[]~")


def _decode_location(header: str) -> str:
    """Return the header ``Location`` as text. Raise ``ValueError`` if clients would follow it differently."""
    try:
        location = header.encode("latin-1").decode()  # headers are read as Latin-1, but servers send UTF-8
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if _NOT_IN_LOCATIONS.search(location):
        raise ValueError("it contains a control character or a backslash")
    if _HOST_IS_MISSING.match(location):
        raise ValueError("it has no host")
    return location


@lru_cache(maxsize=16_384)  # each round uses the same URLs; targets of redirects are not cached
def _report_of(proxy_url: str) -> tuple[ProxyURL, str]:
    url = parse_proxy_url(proxy_url)
    return url, _quoted(url.base + REPORT_PATH)


def first_request(proxy_url: str) -> tuple[str, Mapping[str, str]]:
    """Return the URL and the headers of the first request to a proxy. Raise ``ValueError`` for a bad URL."""
    return _report_of(proxy_url)[1], _HEADERS


def _request(target: str) -> requests.PreparedRequest:
    # The result of Request.prepare(), which would parse the URL again.
    request = requests.PreparedRequest()
    request.method = "GET"
    request.url = target
    request.headers = _HEADERS
    request.hooks = {}
    return request


class _FreshConnectionAdapter(BaseAdapter):
    """An adapter for one request over one connection, without a pool or retries.

    A ``requests.Session`` would add cookies, proxies from the environment and ``.netrc``, and the response of
    one proxy could affect the request to another.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        super().__init__()

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        raw = self._connection.get(request.path_url, request.headers)
        response = requests.Response()
        response.status_code = raw.status
        response.reason = raw.reason
        response.headers = CaseInsensitiveDict(raw.headers)
        response.raw = raw
        response.request = request
        return response


def describe(error: Exception, deadline: Deadline) -> str:
    """Describe an error before the response for operators: the fault, and the step of the request."""
    match error:
        case AddressBlocked():
            return str(error)
        case TimeoutError(errno=None):
            return f"no answer within {deadline.seconds:g} s; the time ran out while {deadline.phase}"
        case ssl.SSLError():
            return tls.describe(error, deadline.phase)
        case http.client.UnknownProtocol(args=(version,)):
            return f"the response is not HTTP/1.1: it begins with {str(version)[:64]!r}"
        case http.client.BadStatusLine(args=(line,)) if not isinstance(error, ConnectionError):
            hint = next((f"; {hint}" for start, hint in _HINTS if start.match(str(line))), "")
            return f"the response is not HTTP: it begins with {str(line)[:64]!r}{hint}"
    hint = "; does it expect https:// or HTTP/2?" if isinstance(error, http.client.RemoteDisconnected) else ""
    return f"{getattr(error, 'strerror', None) or error} while {deadline.phase}{hint}"


def _read_report(response: requests.Response, deadline: Deadline, warnings: list[str]) -> HealthReport:
    if response.status_code != 200:
        raise ProbeFailed(
            Status.UNHEALTHY, Reason.STATUS_CODE, describe_status(response, read_beginning(response))
        )
    try:
        return HealthReport.parse(read_body(response, deadline), warnings)
    except BadReport as bad:
        message = describe_bad_report(bad, response)
        raise ProbeFailed(Status.UNHEALTHY, bad.reason, NO_REPORT + message) from None
