"""The filters, the orders and the pages of the health page, each as an address that keeps the others."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from proxyhealth.overview.selection import SORTS, Selection
from proxyhealth.snapshot import Proxy

# Labels in the list of a large fleet, the most frequent ones. The search finds the others.
_MAX_LABELS = 50

_SORT_NAMES: Mapping[str, str | Promise] = {
    "urgency": gettext_lazy("Worst first"),
    "since": gettext_lazy("Longest in its status first"),
    "name": gettext_lazy("Name"),
    "latency": gettext_lazy("Slowest first"),
    "certificate": gettext_lazy("Certificate that expires first"),
    "checked": gettext_lazy("Oldest check first"),
}
_DESCENDING = ("urgency", "latency")
_WINDOW_NAMES: Mapping[str, str | Promise] = {"24h": gettext_lazy("24 hours"), "90d": gettext_lazy("90 days")}


class Choice(NamedTuple):
    """An option of a list, or a link."""

    value: str
    text: str
    is_chosen: bool = False


class Header(NamedTuple):
    """The link of a column that sorts by it: again in the other direction. ``aria`` is its direction now."""

    url: str
    aria: str


class Controls:
    """The controls of a selection, as the template needs them."""

    def __init__(self, selection: Selection, labels: Counter[str]) -> None:
        self._selection = selection
        self._labels = labels

    def sorts(self) -> list[Choice]:
        chosen = self._selection.sort
        choices = [Choice(name, str(_SORT_NAMES[name]), name == chosen) for name in SORTS]
        if chosen.startswith("-"):
            text = _("%(order)s, reversed") % {"order": _SORT_NAMES[chosen[1:]]}
            choices.append(Choice(chosen, text, True))
        return choices

    def headers(self) -> dict[str, Header]:
        """Return the links of the columns by the order that they choose."""
        return {name: self._header(name) for name in SORTS}

    def _header(self, name: str) -> Header:
        sort = self._selection.sort
        if sort.removeprefix("-") != name:
            return Header(self._selection.query(sort=name), "")
        is_reversed = sort.startswith("-")
        is_descending = (name in _DESCENDING) is not is_reversed
        return Header(
            self._selection.query(sort=name if is_reversed else f"-{name}"),
            "descending" if is_descending else "ascending",
        )

    def labels(self) -> list[Choice]:
        """Return the most frequent labels that are not chosen yet."""
        chosen = {label.lower() for label in self._selection.labels}
        frequent = (
            label for label, _ in self._labels.most_common(_MAX_LABELS) if label.lower() not in chosen
        )
        return [Choice(label, label.replace(":", ": ", 1)) for label in sorted(frequent)]

    def flags(self) -> list[tuple[str, str, list[Choice]]]:
        """Return the names, the titles and the options of the filters by what people have said."""
        chosen = self._selection
        return [
            (
                "silenced",
                _("Silence"),
                _flag(chosen.silenced, (_("Any"), _("Silenced"), _("Not silenced"))),
            ),
            (
                "acknowledged",
                _("Acknowledgement"),
                _flag(chosen.acknowledged, (_("Any"), _("Acknowledged"), _("Not acknowledged"))),
            ),
        ]

    def chosen(self) -> list[Choice]:
        """Return the filters in force but for the status. The value of each is the address without it."""
        selection, choices = self._selection, []
        for label in selection.labels:
            others = tuple(other for other in selection.labels if other != label)
            text = _("Label %(label)s") % {"label": label.replace(":", ": ", 1)}
            choices.append(Choice(selection.query(labels=others), text))
        if selection.text:
            choices.append(
                Choice(selection.query(text=""), _("Search “%(text)s”") % {"text": selection.text})
            )
        for name, _title, options in self.flags():
            choices += [
                Choice(selection.query(**{name: None}), option.text)
                for option in options
                if option.value and option.is_chosen
            ]
        return choices

    def windows(self) -> list[Choice]:
        selection = self._selection
        return [
            Choice(selection.query(window=name, page=selection.page), str(text), name == selection.window)
            for name, text in _WINDOW_NAMES.items()
        ]


def count_labels(proxies: Sequence[Proxy]) -> Counter[str]:
    """Return how many proxies have each label, as ``key:value``."""
    return Counter(f"{key}:{value}" for proxy in proxies for key, value in proxy.labels.items())


def _flag(chosen: bool | None, texts: Sequence[str]) -> list[Choice]:
    values = {"": None, "yes": True, "no": False}
    return [
        Choice(value, text, flag is chosen) for (value, flag), text in zip(values.items(), texts, strict=True)
    ]
