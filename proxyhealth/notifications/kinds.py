"""The kinds of sections in a message, the worst first, with their words and colours."""

import enum
from typing import Any, NamedTuple

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy, ngettext_lazy

from proxyhealth.notifications.messages import Change


class Kind(enum.StrEnum):
    """The kind of a section in a message, the worst first."""

    UNREACHABLE = "unreachable"
    UNHEALTHY = "unhealthy"
    STILL_UNREACHABLE = "still unreachable"
    STILL_UNHEALTHY = "still unhealthy"
    FLAPPING = "flapping"
    OTHER = "other"
    UNREGISTERED = "unregistered"
    REMOVED = "removed"
    OK = "ok"

    @classmethod
    def of(cls, change: Change) -> "Kind":
        """Return the kind of ``change``. A status that only a newer version knows is ``OTHER``."""
        if change.flaps:
            return cls.FLAPPING
        name = f"still {change.after}" if change.number else change.after
        return cls(name) if name in _NAMES else cls.OTHER

    @property
    def place(self) -> int:
        """The place in a message: 0 is the worst."""
        return _PLACES[self]

    @property
    def word(self) -> str:
        return str(_LOOKS[self].word)

    @property
    def colour(self) -> str:
        """The colour of the line beside a headline, as on the health page."""
        return _LOOKS[self].colours[0]

    @property
    def ground(self) -> str:
        """The colour behind white text."""
        return _LOOKS[self].colours[1]

    def headline(self, count: int, who: str, where: str) -> str:
        """Return a sentence about one proxy, or about ``count`` proxies."""
        # A translation that depends on a number is chosen by "%".
        headline: Any = _LOOKS[self].headline
        return str(headline % {"count": count, "who": who, "where": where})


_NAMES = {kind.value for kind in Kind} - {Kind.FLAPPING.value, Kind.OTHER.value}
_PLACES = {kind: place for place, kind in enumerate(Kind)}


class _Look(NamedTuple):
    word: str | Promise
    colours: tuple[str, str]
    headline: Promise


_RED, _ORANGE, _GREEN = ("#cf2f2f", "#a01c1c"), ("#c06c08", "#8a4b00"), ("#1d8a45", "#12622f")
_GREY, _VIOLET = ("#7a818a", "#50555c"), ("#8a63c2", "#5b3c88")

_LOOKS = {
    Kind.UNREACHABLE: _Look(
        gettext_lazy("unreachable"),
        _RED,
        ngettext_lazy("%(who)s is unreachable.", "%(who)s became unreachable%(where)s.", "count"),
    ),
    Kind.UNHEALTHY: _Look(
        gettext_lazy("unhealthy"),
        _ORANGE,
        ngettext_lazy("%(who)s is unhealthy.", "%(who)s became unhealthy%(where)s.", "count"),
    ),
    Kind.STILL_UNREACHABLE: _Look(
        gettext_lazy("still unreachable"),
        _RED,
        ngettext_lazy("%(who)s is still unreachable.", "%(who)s are still unreachable%(where)s.", "count"),
    ),
    Kind.STILL_UNHEALTHY: _Look(
        gettext_lazy("still unhealthy"),
        _ORANGE,
        ngettext_lazy("%(who)s is still unhealthy.", "%(who)s are still unhealthy%(where)s.", "count"),
    ),
    Kind.FLAPPING: _Look(
        gettext_lazy("flapping"),
        _VIOLET,
        ngettext_lazy("%(who)s is flapping.", "%(who)s are flapping%(where)s.", "count"),
    ),
    Kind.OTHER: _Look(
        gettext_lazy("changed"),
        _VIOLET,
        ngettext_lazy("%(who)s has changed its status.", "%(who)s have changed status%(where)s.", "count"),
    ),
    Kind.UNREGISTERED: _Look(
        gettext_lazy("unregistered"),
        _GREY,
        ngettext_lazy("%(who)s is unregistered.", "%(who)s became unregistered%(where)s.", "count"),
    ),
    Kind.REMOVED: _Look(
        gettext_lazy("deleted"),
        _GREY,
        ngettext_lazy("%(who)s was deleted.", "%(who)s were deleted%(where)s.", "count"),
    ),
    Kind.OK: _Look(
        gettext_lazy("ok"),
        _GREEN,
        ngettext_lazy("%(who)s is ok.", "%(who)s are ok%(where)s.", "count"),
    ),
}
