"""The proxies in the Content Security Policy of the host project's own pages."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Mapping
from uuid import UUID

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.deprecation import MiddlewareMixin

from proxyhealth import health
from proxyhealth.snapshot import ProxyStatus

logger = logging.getLogger(__name__)

HEADERS = ("Content-Security-Policy", "Content-Security-Policy-Report-Only")

# Bytes of sources above which the header of a response may be too large for a server on its way.
LARGE = 4_096

# The host-part and the port-part of CSP's grammar, without its wildcards.
_HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*\.?(:[0-9]{1,5})?", re.IGNORECASE | re.ASCII)


def _directive(name: str) -> re.Pattern[str]:
    """Finds the first directive of this name behind a semicolon, and its sources as group 1."""
    white = r" \t\n\f\r"
    return re.compile(rf";[{white}]*{name}(?![^{white};])([^;]*)", re.IGNORECASE | re.ASCII)


_CONNECT_SRC = _directive("connect-src")
_DEFAULT_SRC = _directive("default-src")


class ProxyHostsMiddleware(MiddlewareMixin):
    """Adds the registered proxies, healthy or not, to ``connect-src`` of the policies of a response.

    So the host's pages may fetch from them and open web sockets to them. A response without a policy gets
    none, and a policy that does not restrict connections stays as it is. It has to stand in ``MIDDLEWARE``
    before what sets the header.
    """

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        for name in HEADERS:
            if header := response.headers.get(name):
                sources = _sources.joined()
                if sources and (changed := with_sources(header, sources)) != header:
                    response.headers[name] = changed
        return response


def with_sources(header: str, sources: str) -> str:
    """``header``, of one or more policies, with ``sources`` among those that each may connect to."""
    return ",".join(_amended(policy, sources) for policy in header.split(","))


def _amended(policy: str, sources: str) -> str:
    text = f";{policy}"  # so that every directive stands behind a semicolon
    if found := _CONNECT_SRC.search(text):
        start, end = found.span(1)
        return f"{text[1:start]}{_without_none(found[1])} {sources}{text[end:]}"
    if found := _DEFAULT_SRC.search(text):
        # It is what counts for connections now, and will not any more beside a connect-src.
        end = found.end()
        return f"{text[1:end]}; connect-src{_without_none(found[1])} {sources}{text[end:]}"
    return policy


def _without_none(sources: str) -> str:
    return "" if sources.strip().lower() == "'none'" else sources


class _Sources:
    """The source expressions of all proxies, made once for the statuses of a snapshot."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: tuple[Mapping[UUID, ProxyStatus] | None, str] = (None, "")

    def joined(self) -> str:
        statuses = health.health_status()
        known, joined = self._made
        return joined if known is statuses else self._join(statuses)

    def _join(self, statuses: Mapping[UUID, ProxyStatus]) -> str:
        with self._lock:
            known, before = self._made
            if known is statuses:
                return before
            joined = " ".join(sources_of(statuses.values()))
            if len(joined) > LARGE and joined != before:
                logger.warning(
                    "the %s proxies take %s bytes of the Content-Security-Policy: see that every server "
                    "on the way to the browser lets it through (nginx: proxy_buffer_size)",
                    f"{len(statuses):,}",
                    f"{len(joined):,}",
                )
            self._made = (statuses, joined)
            return joined


_sources = _Sources()


def sources_of(statuses: Iterable[ProxyStatus]) -> list[str]:
    """The source expressions of the proxies that have a host, and one that CSP can express; each once."""
    found: dict[str, None] = {}
    for status in statuses:
        # It comes from the cache, and ends up in a header that guards pages.
        host = status.proxy_host
        if not isinstance(host, str) or not _HOST.fullmatch(host):
            continue
        plain = str(status.proxy.url)[:7].lower() == "http://"
        for scheme in ("https", "wss", "http", "ws") if plain else ("https", "wss"):
            found[f"{scheme}://{host}"] = None
    return list(found)
