"""Which part of a list is asked for: the query of a URL, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass

from django.http import QueryDict

from proxyhealth.exceptions import InvalidQuery
from proxyhealth.statuses import Status

MAX_LIMIT = 1_000
MAX_TEXT = 200

# A page begins behind a name, in lower case; or behind the primary region, which comes before all names.
PRIMARY_CURSOR = "0"
_NAME_CURSOR = re.compile(r"1(.{1,200})", re.DOTALL)


@dataclass(frozen=True)
class Selection:
    """What is asked for. The default is everything.

    ``text`` is folded; ``after`` is the name, in lower case, behind which a page begins: None for the first
    page, and empty behind the primary region.
    """

    statuses: frozenset[Status] = frozenset()
    healthy: bool | None = None
    text: str = ""
    limit: int | None = None
    after: str | None = None

    @property
    def paged(self) -> bool:
        return self.limit is not None or self.after is not None

    def admits(self, status: Status | None, healthy: bool, text: str) -> bool:
        """Whether a proxy is among them; ``text`` is all of its text, folded."""
        return (
            (not self.statuses or status in self.statuses)
            and self.healthy in (None, healthy)
            and self.text in text
        )


EVERYTHING = Selection()


def cursor_after(name: str) -> str:
    """The cursor of the page behind a name, in lower case."""
    return f"1{name}"


def parse_selection(query: QueryDict, filter: str) -> Selection:
    """The selection of ``query``, in which ``filter`` is the one of ``status`` and ``healthy`` that there is.

    Raises :class:`InvalidQuery`, for what there is not, too: a slip of the pen must not bring everything.
    """
    if not query:
        return EVERYTHING
    known = (filter, "q", "limit", "cursor")
    for name in query:
        if name not in known:
            raise InvalidQuery(f"There is no {short(name)}; there are {', '.join(known)}.")
    return Selection(
        statuses=frozenset(map(_status, query.getlist("status"))),
        healthy=_healthy(query),
        text=_text(query),
        limit=_limit(query),
        after=_after(query),
    )


def _status(value: str) -> Status:
    try:
        return Status(value)
    except ValueError:
        raise InvalidQuery(f"'status' must be one of {', '.join(Status)}, not {short(value)}.") from None


def _one(query: QueryDict, name: str) -> str | None:
    values = query.getlist(name)
    if len(values) > 1:
        raise InvalidQuery(f"{name!r} is given {len(values)} times.")
    return values[0] if values else None


def _healthy(query: QueryDict) -> bool | None:
    value = _one(query, "healthy")
    if value not in (None, "true", "false"):
        raise InvalidQuery(f"'healthy' must be true or false, not {short(value)}.")
    return None if value is None else value == "true"


def _text(query: QueryDict) -> str:
    value = _one(query, "q") or ""
    if len(value) > MAX_TEXT:
        raise InvalidQuery(f"'q' must have {MAX_TEXT} characters at most, not {len(value):,}.")
    return value.casefold()


def _limit(query: QueryDict) -> int | None:
    value = _one(query, "limit")
    if value is None:
        return None
    if not re.fullmatch("[0-9]{1,4}", value) or not 1 <= int(value) <= MAX_LIMIT:
        raise InvalidQuery(f"'limit' must be a number from 1 to {MAX_LIMIT:,}, not {short(value)}.")
    return int(value)


def _after(query: QueryDict) -> str | None:
    value = _one(query, "cursor")
    if value is None:
        return None
    if value == PRIMARY_CURSOR:
        return ""
    if match := _NAME_CURSOR.fullmatch(value):
        return match[1]
    raise InvalidQuery(f"'cursor' must be the next_cursor of another page, not {short(value)}.")


def short(value: str) -> str:
    """``value`` as it is repeated to who sent it: quoted, and not without end."""
    return repr(value if len(value) <= 64 else value[:63] + "…")
