"""The course of the last probe in words: its requests, and the phases of each."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import NamedTuple

from django.utils.functional import Promise
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from proxyhealth import trace
from proxyhealth.display import quantity
from proxyhealth.overview.pictures import bar
from proxyhealth.trace import ProbeTrace, RequestTrace

_PHASES: Mapping[str, str | Promise] = {
    trace.LOOK_UP: _("Look up the name"),
    trace.CONNECT: _("Connect"),
    trace.TLS: _("TLS handshake"),
    trace.FIRST_BYTE: _("Wait for the first byte"),
    trace.HEADERS: _("Read the headers"),
    trace.BODY: _("Read the body"),
}


class PhaseOfRequest(NamedTuple):
    """A phase, in words. ``failed`` is True for the one in which the probe ended."""

    name: str
    address: str
    duration: SafeString
    bar: SafeString
    failed: bool


class RequestOfProbe(NamedTuple):
    """A request of a probe, in words."""

    url: str
    sent: str
    status_code: int
    tls_version: str
    tls_expires_at: datetime | None
    phases: list[PhaseOfRequest]


def requests_of(course: ProbeTrace) -> list[RequestOfProbe]:
    """Return the requests of a probe, in order. The bars of all phases have one scale."""
    begin, found = 0.0, []
    for request in course.requests:
        is_last = request is course.requests[-1]
        phases = list(_phases(request, begin, course.seconds, bool(course.error) and is_last))
        found.append(
            RequestOfProbe(
                request.url,
                request.sent,
                request.status_code,
                request.tls_version,
                request.tls_expires_at,
                phases,
            )
        )
        begin += request.seconds
    return found


def _phases(request: RequestTrace, begin: float, total: float, failed: bool) -> Iterator[PhaseOfRequest]:
    for phase in request.phases:
        is_last = phase is request.phases[-1]
        yield PhaseOfRequest(
            str(_PHASES.get(phase.name, phase.name)),
            phase.address,
            quantity(1000 * phase.seconds, "ms", 0 if phase.seconds >= 0.01 else 1),
            bar(begin, phase.seconds, total),
            failed and is_last,
        )
        begin += phase.seconds
