"""The course of a probe, which becomes its trace."""

from datetime import datetime
from itertools import pairwise

from proxyhealth.probing.deadline import Deadline
from proxyhealth.probing.transport import Connection
from proxyhealth.statuses import Reason, Status
from proxyhealth.trace import Phase, ProbeTrace, RequestTrace

_MAX_LINE = 300  # characters of a URL or of a request line


class Recorder:
    """The requests of one probe, as far as they went. Their phases are the marks of its deadline."""

    def __init__(self) -> None:
        self._begun: list[tuple[int, str, Connection]] = []  # with the place of the first mark

    def begin(self, target: str, connection: Connection) -> None:
        """Note a request of ``target`` over ``connection``."""
        self._begun.append((len(connection.deadline.marks), target, connection))

    def trace(self, checked_at: datetime, status: Status, reason: Reason, error: str) -> ProbeTrace:
        """Return the course of the probe, which ends now."""
        if not self._begun:
            return ProbeTrace(checked_at, status, reason, error)
        deadline = self._begun[0][2].deadline
        phases = _phases(deadline)
        ends = [*(place for place, _, _ in self._begun[1:]), len(phases)]
        requests = tuple(
            _request(target, connection, tuple(phases[begin:end]))
            for (begin, target, connection), end in zip(self._begun, ends, strict=True)
        )
        return ProbeTrace(checked_at, status, reason, error, requests)


def _phases(deadline: Deadline) -> list[Phase]:
    deadline.mark("")  # the end of the last one
    return [
        Phase(name, max(0.0, end - begin), address)
        for (name, begin, address), (_, end, _) in pairwise(deadline.marks)
    ]


def _request(target: str, connection: Connection, phases: tuple[Phase, ...]) -> RequestTrace:
    certificate, response = connection.first_to_expire, connection.response
    return RequestTrace(
        _shown(target),
        phases,
        _lines(connection.sent),
        response.status if response else 0,
        connection.tls_version,
        certificate.expires_at if certificate else None,
    )


def _shown(target: str) -> str:
    """Return a URL or its path without the query, which may contain a token, and cut."""
    shown, mark, _ = target.partition("?")
    shown = f"{shown}?…" if mark else shown
    return shown if len(shown) <= _MAX_LINE else shown[:_MAX_LINE] + "…"


def _lines(sent: bytes) -> str:
    """Return a request as lines of text."""
    if not sent:
        return ""
    method, path, rest = sent.decode("ascii").split(" ", 2)
    return f"{method} {_shown(path)} {rest}".replace("\r\n", "\n").rstrip("\n")
