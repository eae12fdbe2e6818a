"""The course of a probe, which becomes its trace."""

from datetime import datetime
from typing import Any

from proxyhealth.probing.deadline import MARK
from proxyhealth.probing.transport import Connection
from proxyhealth.statuses import Reason, Status
from proxyhealth.texts import clean
from proxyhealth.trace import MAX_TEXT

_MAX_REDIRECT = 300  # characters of its URL, and of its path


class Recorder:
    """The requests of one probe, as far as they went. Their phases are the marks of its deadline."""

    def __init__(self) -> None:
        self._begun: list[tuple[int, str, Connection]] = []  # with the place of the first mark

    def begin(self, target: str, connection: Connection) -> None:
        """Note a request of ``target`` over ``connection``."""
        self._begun.append((len(connection.deadline.marks), target, connection))

    def course(self, checked_at: datetime, status: Status, reason: Reason, error: str) -> dict[str, Any]:
        """Return the course of the probe, which ends now, for :func:`proxyhealth.trace.encode`.

        Every probe does this, so it makes no values. To encode them later, many at once, takes less time.
        """
        requests = []
        if begun := self._begun:
            deadline = begun[0][2].deadline
            deadline.mark("")  # the end of the last phase
            marks = deadline.marks
            for place, target, connection in reversed(begun):
                requests.append(_request(target, connection, marks[place:], is_first=not place))
                del marks[place + MARK :]  # its begin is the end of the request before
            requests.reverse()
        return {
            "checked_at": checked_at,
            "status": status,
            "reason": reason,
            "error": clean(error, MAX_TEXT) if error else "",
            "requests": requests,
        }


def _request(target: str, connection: Connection, marks: list[Any], *, is_first: bool) -> dict[str, Any]:
    sent = connection.sent.decode("ascii")
    if not is_first:
        target = _shown(target)
        if sent:
            method, path, rest = sent.split(" ", 2)
            sent = f"{method} {_shown(path)} {rest}"
    request = {
        "url": target,
        "marks": marks,
        "sent": sent,
        "status_code": connection.response.status if connection.response else 0,
    }
    if tls_version := connection.tls_version:
        certificate = connection.first_to_expire
        request |= {"tls_version": tls_version, "tls_expires_at": certificate and certificate.expires_at}
    return request


def _shown(target: str) -> str:
    """Return the URL or the path of a redirect, cut, and without its query, which may contain a token."""
    path, mark, _ = target.partition("?")
    shown = path if len(path) <= _MAX_REDIRECT else f"{path[:_MAX_REDIRECT]}…"
    return f"{shown}?…" if mark else shown
