"""The fields of the JSON, and responses that share its encoded bytes."""

import gzip
import json
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Self
from unicodedata import normalize
from uuid import UUID

from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseNotModified
from django.utils.http import http_date, parse_etags

from proxyhealth.conf import Primary
from proxyhealth.notifications.marks import Acknowledgement, Marks
from proxyhealth.snapshot import NO_LABELS, Proxy, ProxyStatus, Snapshot
from proxyhealth.texts import clean, without_controls
from proxyhealth.utils import rfc3339
from proxyhealth.validators import (
    RESERVED_NAMES,
    parse_proxy_url,
    validate_icon,
    validate_wildcard_hostname,
)

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

# Bytes of a body below which compression gains nothing.
_GZIP_FROM = 200
_GZIP_LEVEL = 5


# Clients show names as text, and put them into paths. More characters than the form permits do no harm.
_UNUSABLE_NAME = re.compile(
    rf"|\.+|openapi\.json|\s*({'|'.join(RESERVED_NAMES)})\s*|.*[/\\].*", re.IGNORECASE
)

# Values as they usually are. Checking these takes a fraction of the time of the validators.
_NAME = rf"(?!(?i:{'|'.join(RESERVED_NAMES)})$)[A-Za-z0-9_-]{{1,64}}"
_HOST = r"[a-z0-9][a-z0-9.-]{0,61}\.[a-z]{2,63}"  # if it has none of ".." ".-" "-."
_PLAIN_NAME = re.compile(_NAME)
_PLAIN_ROW = re.compile(
    rf"{_NAME}\n(?:https?://{_HOST}(?::[1-9][0-9]{{0,3}})?/?)?\n"
    rf"(?:(?:https?://{_HOST})?/[A-Za-z0-9_.-][A-Za-z0-9_./-]*)?\n(?:\*\.{_HOST})?",
    re.MULTILINE,
)


def public_name(name: str, id: UUID) -> str:
    """Return the name of a proxy, or its id if clients must not use the name."""
    if _PLAIN_NAME.fullmatch(name):
        return name
    visible = name.isprintable() and without_controls(name) == name
    usable = visible and len(name) <= 64 and not _UNUSABLE_NAME.fullmatch(normalize("NFKC", name))
    return name if usable else str(id)


def public_values(proxy: Proxy) -> Proxy:
    """Return ``proxy`` with only those values that clients may use in links and pages.

    Rows may have skipped validation, for example in ``bulk_create()``. An invalid value becomes empty, and
    an unusable name the id. The other texts were cleaned when the row was read.
    """
    row = f"{proxy.name}\n{proxy.url}\n{proxy.icon}\n{proxy.wildcard_hostname}"
    if _PLAIN_ROW.fullmatch(row) and not (".." in row or ".-" in row or "-." in row):
        return proxy
    return replace(
        proxy,
        name=public_name(proxy.name, proxy.id),
        url=_valid(proxy.url, parse_proxy_url),
        icon=_valid(proxy.icon, validate_icon),
        wildcard_hostname=_valid(proxy.wildcard_hostname, validate_wildcard_hostname),
    )


def _valid(value: str, validate: Callable[[str], object]) -> str:
    if not value:
        return value
    try:
        validate(value)
    except (ValidationError, ValueError):
        return ""
    return value


def encode(data: Any) -> bytes:
    # One row with a lone surrogate must not make the whole list fail.
    return _encoder.encode(data).encode("utf-8", "replace")


def region_json(proxy: Proxy | Primary, healthy: bool) -> dict[str, Any]:
    """Return the values that every user may read."""
    return {
        "id": str(proxy.id),
        "name": proxy.name,
        "display_name": proxy.display_name or proxy.name,
        "icon_url": proxy.icon,
        "healthy": healthy,
        "path_app_url": proxy.url,
        "wildcard_hostname": proxy.wildcard_hostname,
    }


# All proxies of a round have the same time.
_round_time = lru_cache(maxsize=64)(rfc3339)


def status_json(status: ProxyStatus, marks: Marks | None = None) -> dict[str, Any]:
    """Return the confirmed status, and the last result as ``raw`` while that contradicts it.

    ``marks`` has what people have said about the proxy. Almost all proxies have none.
    """
    fields = _judgement_json(status)
    fields["latency_ms"] = milliseconds(status.latency)
    fields["since"] = status.since and rfc3339(status.since)
    if status.raw:
        fields["raw"] = _judgement_json(status.raw)
    fields["silenced"] = fields["acknowledged"] = None
    if marks:
        silenced = marks.silenced.get(status.proxy.id)
        acknowledgement = marks.acknowledged.get(status.proxy.id)
        fields["silenced"] = silenced and rfc3339(silenced)
        fields["acknowledged"] = acknowledgement and acknowledgement_json(acknowledgement)
    return fields


def _judgement_json(status: ProxyStatus) -> dict[str, Any]:
    return {
        "status": status.status,
        "reason": status.reason,
        "report": {"errors": status.report.errors, "warnings": status.report.warnings},
        "checked_at": status.checked_at and _round_time(status.checked_at),
    }


def acknowledgement_json(acknowledgement: Acknowledgement) -> dict[str, str]:
    by, at, note = acknowledgement
    return {"by": clean(by, 150), "at": rfc3339(at), "note": note[:2_000]}


def known(value: str, valid: frozenset[str], other: str) -> str:
    """Return ``value``, or ``other`` if only a newer version knows it."""
    return value if value in valid else other


def row_json(proxy: Proxy) -> dict[str, Any]:
    """Return the values of the row that are not in the region."""
    return {
        "created_at": rfc3339(proxy.created_at),
        "updated_at": rfc3339(proxy.updated_at),
        "deleted": proxy.deleted,
        "version": proxy.version,
        "labels": dict(proxy.labels.items()) if proxy.labels is not NO_LABELS else {},
    }


def snapshot_json(snapshot: Snapshot, stale_reason: str) -> dict[str, Any]:
    return {
        "number": snapshot.number,
        "checked_at": snapshot.checked_at and rfc3339(snapshot.checked_at),
        "duration_ms": milliseconds(snapshot.duration),
        "stale_at": snapshot.stale_at and rfc3339(snapshot.stale_at),
        **staleness_json(stale_reason),
    }


def staleness_json(reason: str) -> dict[str, Any]:
    return {"stale": bool(reason), "stale_reason": reason}


def public_stale_reason(snapshot: Snapshot, stale_reason: str, fault: bool) -> str:
    """Return a reason that every user may read: it names no part of the system, no time and no error."""
    if not stale_reason:
        return ""
    if fault:
        return "The regions cannot be updated at the moment."
    return f"The regions have not been checked {'recently' if snapshot.checked_at else 'yet'}."


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


class Representation:
    """JSON as bytes, plain and compressed, with strong validators.

    Equal bytes have the same ETag in every process. ``moments`` are the times of changes; the latest one is
    the Last-Modified.
    """

    def __init__(self, body: bytes, moments: Iterable[datetime | None] = ()) -> None:
        self.body = body
        latest = max((moment for moment in moments if moment), default=None)
        # The clock of another host may be ahead, and Last-Modified must not be in the future.
        self.last_modified = min(latest, datetime.now(UTC)) if latest else None
        self._hash = blake2b(body, digest_size=16).hexdigest()
        self._lock = threading.Lock()
        self._gzipped: bytes | None = None

    @property
    def gzipped(self) -> bytes:
        with self._lock:
            if self._gzipped is None:
                self._gzipped = gzip.compress(self.body, _GZIP_LEVEL, mtime=0)
            return self._gzipped

    def same_as(self, other: Self) -> bool:
        return self._hash == other._hash

    def reuse_or_replace(self, before: Self) -> Self:
        """Return ``before`` if it has the same bytes, else this one.

        If clients requested ``before`` compressed, compress this one now, so that no request waits for it.
        """
        if self.same_as(before):
            return before
        if before._gzipped is not None:
            _ = self.gzipped
        return self

    def response(self, request: HttpRequest) -> HttpResponse:
        """Return 200 with the bytes, or 304 if the client already has them."""
        compressed = len(self.body) >= _GZIP_FROM and accepts_gzip(request.headers.get("Accept-Encoding", ""))
        headers = {
            "ETag": f'"{self._hash}-gzip"' if compressed else f'"{self._hash}"',
            "Cache-Control": "private, no-cache",
            "Vary": "Accept-Encoding, Authorization, Cookie",
        }
        if self.last_modified:
            headers["Last-Modified"] = http_date(self.last_modified.timestamp())
        if self._matches(request.headers.get("If-None-Match", "")):
            return HttpResponseNotModified(headers=headers)
        body = self.gzipped if compressed else self.body
        headers["Content-Length"] = str(len(body))
        if compressed:
            headers["Content-Encoding"] = "gzip"
        content = b"" if request.method == "HEAD" else body
        return HttpResponse(content, content_type="application/json", headers=headers)

    def _matches(self, if_none_match: str) -> bool:
        # Only ETags count: If-Modified-Since would miss the second of two changes within one second.
        if if_none_match.strip() == "*":
            return True
        # The comparison is weak: a server that compresses responses may have made our ETag weak.
        etags = {etag.removeprefix("W/") for etag in parse_etags(if_none_match)}
        return not etags.isdisjoint((f'"{self._hash}"', f'"{self._hash}-gzip"'))


_CODING = re.compile(r"\s*([\w*-]+)\s*(?:;\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*)?", re.ASCII | re.IGNORECASE)


def accepts_gzip(header: str) -> bool:
    """Return True if an Accept-Encoding header allows gzip. Invalid parts of the header do not count."""
    qualities = {}
    for part in header.split(","):
        if match := _CODING.fullmatch(part):
            qualities[match[1].lower()] = float(match[2] or 1)
    return qualities.get("gzip", qualities.get("x-gzip", qualities.get("*", 0.0))) > 0
