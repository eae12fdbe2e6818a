"""The filters and pages of a list, and the pages of a history, parsed from the query of a URL."""

import base64
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from django.http import QueryDict

from proxyhealth.exceptions import InvalidQuery
from proxyhealth.statuses import Status
from proxyhealth.texts import is_label
from proxyhealth.validators import short

MAX_LIMIT = 1_000
MAX_TEXT = 200
_REPEATABLE = ("status", "label")
DEFAULT_TRANSITIONS = 100
DEFAULT_OUTAGES = 100

# A cursor names the last entry of a page: a proxy, or the primary region, which precedes all proxies. It has
# only characters that a URL may contain as they are, because URL parsers drop tabs without a word.
PRIMARY_CURSOR = "0"
_KEY_CURSOR = re.compile("2([A-Za-z0-9_-]{1,500})")
# A cursor of the outages is the token and the key of the last one of a page. Several may have one token.
_OUTAGE_CURSOR = re.compile("([0-9]{1,18})-([0-9]{1,18})")
# A cursor of a history is the token of the last transition of a page. All of these are 64-bit integers.
_TOKEN_CURSOR = re.compile("[0-9]{1,18}")


@dataclass(frozen=True)
class Selection:
    """The requested part of a list; by default, all of it.

    ``labels`` are in lower case; a proxy needs all of them. ``text`` is case-folded. ``after`` is the key of
    the proxy that precedes the page: None for the first page, empty after the primary region. A page after
    another one always has a ``limit``.
    """

    statuses: frozenset[Status] = frozenset()
    labels: frozenset[tuple[str, str]] = frozenset()
    healthy: bool | None = None
    text: str = ""
    limit: int | None = None
    after: str | None = None


EVERYTHING = Selection()


def cursor_after(key: str) -> str:
    """Return the cursor of the page after the proxy with this key."""
    return "2" + base64.urlsafe_b64encode(key.encode()).rstrip(b"=").decode()


def parse_selection(query: QueryDict, *filters: str) -> Selection:
    """Return the selection of ``query``. ``filters`` are the list's own parameters.

    Raise :class:`InvalidQuery` for invalid values and for unknown parameters, which may be typing errors.
    """
    if not query:
        return EVERYTHING
    _check_names(query, (*filters, "q", "limit", "cursor"))
    after = _after(query.get("cursor"))
    limit = _limit(query.get("limit"))
    return Selection(
        statuses=frozenset(map(_status, query.getlist("status"))),
        labels=frozenset(map(_label, query.getlist("label"))),
        healthy=_flag("healthy", query.get("healthy")),
        text=_text(query.get("q", "")),
        limit=MAX_LIMIT if limit is None and after is not None else limit,
        after=after,
    )


class HistoryPage(NamedTuple):
    """The requested page of a history: at most ``limit`` transitions, with tokens below ``before``."""

    limit: int = DEFAULT_TRANSITIONS
    before: int | None = None


def parse_history_page(query: QueryDict) -> HistoryPage:
    """Return the page of ``query``. Raise :class:`InvalidQuery` as :func:`parse_selection` does."""
    _check_names(query, ("before", "limit"))
    before = query.get("before")
    if before is not None and not _TOKEN_CURSOR.fullmatch(before):
        raise InvalidQuery(f"'before' must be the next_cursor of a page, not {short(before)}.")
    limit = _limit(query.get("limit"))
    return HistoryPage(
        limit=DEFAULT_TRANSITIONS if limit is None else limit,
        before=None if before is None else int(before),
    )


class OutagePage(NamedTuple):
    """The requested page of the outages: at most ``limit``, after the one with the token and key ``before``.

    ``open`` is True for those that have not ended, and False for the others.
    """

    limit: int = DEFAULT_OUTAGES
    before: tuple[int, int] | None = None
    open: bool | None = None


def parse_outage_page(query: QueryDict) -> OutagePage:
    """Return the page of ``query``. Raise :class:`InvalidQuery` as :func:`parse_selection` does."""
    _check_names(query, ("open", "before", "limit"))
    before = query.get("before")
    match = None if before is None else _OUTAGE_CURSOR.fullmatch(before)
    if before is not None and match is None:
        raise InvalidQuery(f"'before' must be the next_cursor of a page, not {short(before)}.")
    limit = _limit(query.get("limit"))
    return OutagePage(
        limit=DEFAULT_OUTAGES if limit is None else limit,
        before=None if match is None else (int(match[1]), int(match[2])),
        open=_flag("open", query.get("open")),
    )


def _check_names(query: QueryDict, valid_names: tuple[str, ...]) -> None:
    for name, values in query.lists():
        if name not in valid_names:
            raise InvalidQuery(
                f"Unknown parameter {short(name)}. Valid parameters: {', '.join(valid_names)}."
            )
        if len(values) > 1 and name not in _REPEATABLE:
            raise InvalidQuery(f"{name!r} must be given once, not {len(values)} times.")


def _status(value: str) -> Status:
    try:
        return Status(value)
    except ValueError:
        raise InvalidQuery(f"'status' must be one of {', '.join(Status)}, not {short(value)}.") from None


def _label(value: str) -> tuple[str, str]:
    key, _, text = value.partition(":")
    if not (is_label(key) and is_label(text)):
        raise InvalidQuery(f"'label' must be a key and a value, such as region:eu, not {short(value)}.")
    return key.lower(), text.lower()


def _flag(name: str, value: str | None) -> bool | None:
    if value not in (None, "true", "false"):
        raise InvalidQuery(f"{name!r} must be true or false, not {short(value)}.")
    return None if value is None else value == "true"


def _text(value: str) -> str:
    if len(value) > MAX_TEXT:
        raise InvalidQuery(f"'q' must have at most {MAX_TEXT} characters, not {len(value):,}.")
    return value.casefold()


def _limit(value: str | None) -> int | None:
    if value is None:
        return None
    if not re.fullmatch("[0-9]{1,4}", value) or not 1 <= int(value) <= MAX_LIMIT:
        raise InvalidQuery(f"'limit' must be a number from 1 to {MAX_LIMIT:,}, not {short(value)}.")
    return int(value)


def _after(value: str | None) -> str | None:
    if value is None:
        return None
    if value == PRIMARY_CURSOR:
        return ""
    if match := _KEY_CURSOR.fullmatch(value):
        with suppress(ValueError):
            return base64.urlsafe_b64decode(match[1] + "==").decode()
    raise InvalidQuery(f"'cursor' must be the next_cursor of a page, not {short(value)}.")
