"""A middleware that allows the proxies in the Content Security Policy (CSP) of the project's pages."""

import logging
import re
import threading
from collections.abc import Iterable, Mapping
from uuid import UUID

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.cache import patch_cache_control, patch_vary_headers
from django.utils.deprecation import MiddlewareMixin

from proxyhealth import health
from proxyhealth.access import amay_see_regions, may_see_regions
from proxyhealth.conf import conf
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.utils import PerProcess

logger = logging.getLogger(__name__)

HEADERS = ("Content-Security-Policy", "Content-Security-Policy-Report-Only")

# Bytes of sources above which servers in front may refuse the header: nginx accepts 4 or 8 KB by default.
LARGE = 4_096

# host-part and port-part of the CSP grammar, without wildcards.
_HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*\.?(:[0-9]{1,5})?", re.IGNORECASE | re.ASCII)


def _directive(name: str) -> re.Pattern[str]:
    """Return a pattern for the first directive of this name after a semicolon; group 1 is its sources."""
    white = r" \t\n\f\r"
    return re.compile(rf";[{white}]*{name}(?![^{white};])([^;]*)", re.IGNORECASE | re.ASCII)


_CONNECT_SRC = _directive("connect-src")
_DEFAULT_SRC = _directive("default-src")


class ProxyHostsMiddleware(MiddlewareMixin):
    """A middleware that adds the probed proxies, healthy or not, to ``connect-src`` of each policy.

    The project's pages can then fetch from the proxies and open web sockets to them. Responses without a
    policy, and policies that do not restrict connections, stay as they are. So do the responses to requests
    that may not read the regions, unless ``PUBLIC_CSP`` is set. In ``MIDDLEWARE``, this class must precede
    the middleware that sets the header.
    """

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if (policies := _policies(response)) and (changed := _changed(policies, health.health_status())):
            public = _is_public(response)
            if public or may_see_regions(request):
                _replace(response, changed, private=not public)
        return response

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        # The base class would call process_response() in a thread, for each response.
        response: HttpResponseBase = await self.get_response(request)  # type: ignore[misc]
        if (policies := _policies(response)) and (
            changed := _changed(policies, await health.ahealth_status())
        ):
            public = _is_public(response)
            if public or await amay_see_regions(request):
                _replace(response, changed, private=not public)
        return response


def _policies(response: HttpResponseBase) -> dict[str, str]:
    return {name: header for name in HEADERS if (header := response.headers.get(name))}


def _changed(policies: Mapping[str, str], statuses: Mapping[UUID, ProxyStatus]) -> dict[str, str]:
    """Return those headers that the proxies change, with their new values."""
    if not (sources := _sources.value.joined(statuses)):
        return {}
    changed = {name: with_sources(header, sources) for name, header in policies.items()}
    return {name: header for name, header in changed.items() if header != policies[name]}


def _is_public(response: HttpResponseBase) -> bool:
    """Return True if the header does not depend on the user. Otherwise, say so to caches."""
    if conf.PUBLIC_CSP or conf.PUBLIC_REGIONS:
        return True
    patch_vary_headers(response, ("Authorization", "Cookie"))
    return False


def _replace(response: HttpResponseBase, changed: Mapping[str, str], *, private: bool) -> None:
    if private:
        patch_cache_control(response, private=True)
    for name, header in changed.items():
        response.headers[name] = header


def with_sources(header: str, sources: str) -> str:
    """Return ``header`` with ``sources`` added to ``connect-src`` of each of its policies."""
    return ",".join(_extended(policy, sources) for policy in header.split(","))


def _extended(policy: str, sources: str) -> str:
    text = f";{policy}"  # a semicolon before each directive, as the patterns need it
    if match := _CONNECT_SRC.search(text):
        start, end = match.span(1)
        return f"{text[1:start]}{_without_none(match[1])} {sources}{text[end:]}"
    if match := _DEFAULT_SRC.search(text):
        # A new connect-src replaces default-src for connections, so it needs the sources of default-src.
        end = match.end()
        return f"{text[1:end]}; connect-src{_without_none(match[1])} {sources}{text[end:]}"
    return policy


def _without_none(sources: str) -> str:
    return "" if sources.strip().lower() == "'none'" else sources


class _Sources:
    """The source expressions of all proxies, rebuilt only when the statuses change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._built: tuple[Mapping[UUID, ProxyStatus] | None, str] = (None, "")

    def joined(self, statuses: Mapping[UUID, ProxyStatus]) -> str:
        built_from, joined = self._built
        return joined if built_from is statuses else self._build(statuses)

    def _build(self, statuses: Mapping[UUID, ProxyStatus]) -> str:
        with self._lock:
            built_from, before = self._built
            if built_from is statuses:
                return before
            joined = " ".join(sources_of(statuses.values()))
            if len(joined) > LARGE and joined != before:
                logger.warning(
                    "Content-Security-Policy is large bytes=%s proxies=%s: check that every server in front "
                    "accepts a header of this size (nginx: proxy_buffer_size and proxy_buffers)",
                    len(joined),
                    len(statuses),
                )
            self._built = (statuses, joined)
            return joined


_sources = PerProcess(_Sources)


def sources_of(statuses: Iterable[ProxyStatus]) -> list[str]:
    """Return the distinct source expressions of the proxies. Omit hosts that CSP cannot express."""
    sources: dict[str, None] = {}
    for status in statuses:
        host = status.proxy_host
        # The host comes from the cache, and must not inject anything into a security header.
        if not isinstance(host, str) or not _HOST.fullmatch(host):
            continue
        plain = str(status.proxy.url)[:7].lower() == "http://"
        for scheme in ("https", "wss", "http", "ws") if plain else ("https", "wss"):
            sources[f"{scheme}://{host}"] = None
    return list(sources)
