"""The proxies that a page or a command shows: filters, order, and page, as parameters of an address."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Self

from django.http import QueryDict
from django.utils.http import urlencode
from django.utils.translation import gettext as _

from proxyhealth.exceptions import InvalidQuery
from proxyhealth.notifications.marks import NO_MARKS, Marks
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.statuses import Status
from proxyhealth.texts import clean
from proxyhealth.validators import short

BY_URGENCY = (Status.UNREACHABLE, Status.UNHEALTHY, Status.UNKNOWN, Status.UNREGISTERED, Status.OK)
"""The statuses, the worst first."""

SORTS = ("urgency", "since", "name", "latency", "certificate", "checked")
"""The orders. Each but ``urgency`` and ``name`` begins with what needs attention; ``-`` reverses it."""

WINDOWS = ("24h", "90d")

MAX_TEXT = 200
_MAX_LABEL = 130
_MAX_PAGE = 1_000_000
_FLAGS = {"yes": True, "no": False}
_PLACES = {status: place for place, status in enumerate(BY_URGENCY)}

# The value to sort by, for which a proxy may have none, and True if the largest comes first.
_VALUES: Mapping[str, tuple[Callable[[ProxyStatus], Any], bool]] = {
    "since": (attrgetter("since"), False),
    "latency": (attrgetter("latency"), True),
    "certificate": (attrgetter("tls_expires_at"), False),
    "checked": (attrgetter("last.checked_at"), False),
}


@dataclass(frozen=True)
class Selection:
    """The requested proxies; by default all, the worst first.

    A proxy needs all ``labels``, each as ``key:value``, and all words of ``text``. ``silenced`` and
    ``acknowledged`` are None for any. ``window`` is the time of the strips.
    """

    statuses: tuple[Status, ...] = ()
    labels: tuple[str, ...] = ()
    text: str = ""
    silenced: bool | None = None
    acknowledged: bool | None = None
    sort: str = "urgency"
    window: str = "24h"
    page: int = 1

    @classmethod
    def parse(cls, query: QueryDict) -> Self:
        """Return the selection of an address. Ignore parameters of others, and empty ones.

        Raise ``InvalidQuery`` for values that choose nothing, rather than show something else.
        """
        page = query.get("page", "")
        return cls(
            statuses=tuple(_one_of("status", text, Status) for text in _texts(query, "status")),
            labels=tuple(clean(text, _MAX_LABEL) for text in _texts(query, "label")),
            text=clean(query.get("q", "").strip(), MAX_TEXT),
            silenced=_flag(query, "silenced"),
            acknowledged=_flag(query, "acknowledged"),
            sort=_sort(query.get("sort") or "urgency"),
            window=_one_of("window", query.get("window") or "24h", WINDOWS),
            page=max(1, min(int(page), _MAX_PAGE)) if page.isascii() and page.isdigit() else 1,
        )

    def query(self, **changes: Any) -> str:
        """Return this selection with ``changes`` as an address, from ``?`` on, of the first page."""
        chosen = replace(self, **{"page": 1, **changes})
        flags = {True: "yes", False: "no", None: ""}
        pairs = [
            *(("status", status.value) for status in chosen.statuses),
            *(("label", label) for label in chosen.labels),
            ("q", chosen.text),
            ("silenced", flags[chosen.silenced]),
            ("acknowledged", flags[chosen.acknowledged]),
            ("sort", "" if chosen.sort == "urgency" else chosen.sort),
            ("window", "" if chosen.window == "24h" else chosen.window),
            ("page", "" if chosen.page == 1 else str(chosen.page)),
        ]
        return "?" + urlencode([(name, value) for name, value in pairs if value])

    @property
    def is_filtered(self) -> bool:
        return replace(self, sort="urgency", window="24h", page=1) != Selection()

    def filter(self, statuses: Iterable[ProxyStatus], marks: Marks = NO_MARKS) -> list[ProxyStatus]:
        """Return the selected ones of these statuses, in their order."""
        tests = self._tests(marks)
        if not tests:
            return list(statuses)
        return [status for status in statuses if all(test(status) for test in tests)]

    def _tests(self, marks: Marks) -> list[Callable[[ProxyStatus], bool]]:
        tests: list[Callable[[ProxyStatus], bool]] = []
        if self.statuses:
            tests.append(lambda status: status.status in self.statuses)
        for label in self.labels:
            tests.append(_has_label(label.lower()))
        if words := self.text.casefold().split():
            tests.append(lambda status: _contains(status, words))
        if self.silenced is not None:
            tests.append(lambda status: (status.proxy.id in marks.silenced) is self.silenced)
        if self.acknowledged is not None:
            tests.append(lambda status: (status.proxy.id in marks.acknowledged) is self.acknowledged)
        return tests

    def sorted(self, statuses: Iterable[ProxyStatus], marks: Marks = NO_MARKS) -> list[ProxyStatus]:
        """Return these statuses in the selected order. Those without a value to sort by come last."""
        name, is_reversed = self.sort.removeprefix("-"), self.sort.startswith("-")
        by_name = sorted(statuses, key=_name)
        if name == "name":
            return by_name[::-1] if is_reversed else by_name
        if name == "urgency":
            marked = marks.ids
            by_name.sort(key=lambda status: _urgency(status, marked), reverse=is_reversed)
            return by_name
        value_of, largest_first = _VALUES[name]
        present = [status for status in by_name if value_of(status) is not None]
        missing = [status for status in by_name if value_of(status) is None]
        present.sort(key=value_of, reverse=largest_first is not is_reversed)
        return present + missing


def _urgency(status: ProxyStatus, marked: Any) -> tuple[int, bool, bool]:
    """Return the place of a status: of the same kind, those that nobody takes care of come first."""
    return _PLACES[status.status], status.proxy.id in marked, status.raw is None


def _name(status: ProxyStatus) -> str:
    return status.proxy.name.lower()


def _has_label(label: str) -> Callable[[ProxyStatus], bool]:
    def test(status: ProxyStatus) -> bool:
        return any(f"{key}:{value}".lower() == label for key, value in status.proxy.labels.items())

    return test


def _contains(status: ProxyStatus, words: Sequence[str]) -> bool:
    """Return True if what people see of a proxy in a list contains all words."""
    proxy = status.proxy
    labels = (f"{key}:{value}" for key, value in proxy.labels.items())
    text = "\n".join((proxy.name, proxy.display_name, proxy.url, status.reason, *labels)).casefold()
    return all(word in text for word in words)


def _texts(query: QueryDict, name: str) -> list[str]:
    return list(dict.fromkeys(filter(None, query.getlist(name))))


def _one_of(name: str, value: str, valid: Any) -> Any:
    """Return the member of ``valid`` that ``value`` names. Raise ``InvalidQuery`` if there is none."""
    for member in valid:
        if member == value:
            return member
    values = {"name": name, "value": short(value), "valid": ", ".join(valid)}
    raise InvalidQuery(_("%(name)s cannot be %(value)s. Valid: %(valid)s.") % values)


def _flag(query: QueryDict, name: str) -> bool | None:
    value = query.get(name)
    return _FLAGS[_one_of(name, value, _FLAGS)] if value else None


def _sort(value: str) -> str:
    _one_of("sort", value.removeprefix("-"), SORTS)
    return value
