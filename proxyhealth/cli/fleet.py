"""The proxies that a command is about: all of them, or those that its arguments choose."""

import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any
from uuid import UUID

from django.core.management.base import CommandError
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from proxyhealth.api import listing
from proxyhealth.api.listing import Listing
from proxyhealth.api.representation import public_name, snapshot_json, staleness_json
from proxyhealth.cli import arguments
from proxyhealth.cli.exits import BAD, FINE, UNCERTAIN, failure
from proxyhealth.display import number
from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.notifications.marks import Marks
from proxyhealth.notifications.wording import isolated
from proxyhealth.overview.headline import Headline, headline
from proxyhealth.overview.selection import Selection
from proxyhealth.snapshot import ProxyStatus, Snapshot
from proxyhealth.statuses import Status

_MAX_SUGGESTIONS = 3


def add_filters(parser: ArgumentParser) -> None:
    """Add the arguments that :class:`Chosen` reads."""
    parser.add_argument("names", nargs="*", metavar="NAME", help=_("Names or ids of proxies. Default: all."))
    group = parser.add_argument_group(_("filters"), _("A proxy is chosen if all of them match."))
    group.add_argument(
        "--status",
        action="append",
        choices=list(map(str, Status)),
        default=[],
        help=_("Only proxies with this status. Repeat it for several."),
    )
    group.add_argument(
        "--label",
        action="append",
        type=arguments.label,
        default=[],
        metavar="KEY:VALUE",
        help=_("Only proxies with this label, for example region:eu. Repeat it to need several."),
    )
    group.add_argument(
        "--search",
        default="",
        metavar="TEXT",
        help=_("Only proxies with these words in their name, URL, reason or labels."),
    )


@dataclass(frozen=True)
class Chosen:
    """The chosen ``statuses``, the worst first, beside the listing of all proxies.

    ``is_all`` is True if no argument chooses.
    """

    listing: Listing
    statuses: Sequence[ProxyStatus]
    is_all: bool

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> "Chosen":
        """Read the proxies now, and choose. Raise ``CommandError`` if there is nothing to choose from."""
        current = listing.current(now=True)
        names, marks = options["names"], current.parts.rows.marks
        named = find(current, names) if names else current.statuses
        selection = Selection(labels=tuple(options["label"]), text=options["search"])
        found = selection.filter(named, marks)
        # A typing error in a filter must not look as if all were fine.
        if named and not found:
            raise failure(_("No proxy matches --label and --search. Correct them, or leave them out."))
        chosen = Selection(statuses=tuple(map(Status, options["status"])))
        is_all = not (names or selection.is_filtered or chosen.is_filtered)
        return cls(current, selection.sorted(chosen.filter(found, marks), marks), is_all)

    @classmethod
    def again(cls, ids: Sequence[UUID] | None) -> "Chosen":
        """Read these proxies now, or all, without those that were deleted meanwhile."""
        current = listing.current(now=True)
        found = current.statuses if ids is None else filter(None, map(current.find, map(str, ids)))
        return cls(current, Selection().sorted(found, current.parts.rows.marks), ids is None)

    @property
    def snapshot(self) -> Snapshot:
        return self.listing.parts.snapshot

    @property
    def marks(self) -> Marks:
        return self.listing.parts.rows.marks

    @property
    def by_id(self) -> dict[UUID, ProxyStatus]:
        return {status.proxy.id: status for status in self.statuses}

    @property
    def exit_status(self) -> int:
        """The exit status that these proxies give."""
        snapshot, rows = self.snapshot, self.listing.parts.rows
        statuses = {status.status for status in self.statuses}
        if snapshot.fault or rows.fault or snapshot.checked_at is None:
            return UNCERTAIN
        if snapshot.stale or not statuses.isdisjoint(BAD_STATUSES):
            return BAD
        return UNCERTAIN if Status.UNKNOWN in statuses else FINE

    def headline(self) -> Headline:
        """Return the headline. Of some proxies, it says so: “all” are not all that there are."""
        line = headline(self.snapshot, self.statuses, datetime.now(UTC))
        if self.is_all or self.snapshot.stale:
            return line
        if len(self.statuses) == 1:
            (one,) = self.statuses
            name = public_name(one.proxy.name, one.proxy.id)
            text = _("%(name)s is %(status)s") % {"name": isolated(name), "status": one.status}
            return replace(line, text=text)
        down = sum(line.counts[Status(status)] for status in BAD_STATUSES)
        total = len(self.statuses)
        text = ngettext(
            "%(down)s of %(total)s chosen proxy is down",
            "%(down)s of %(total)s chosen proxies are down",
            total,
        )
        return replace(line, text=text % {"down": number(down), "total": number(total)})

    def json(self) -> dict[str, Any]:
        """Return the object of ``/api/v2/workspaceproxies`` for these proxies, and the headline."""
        stale_reason = self.listing.parts.stale_reason
        ids = (str(status.proxy.id) for status in self.statuses)
        return {
            "headline": self.headline().text,
            "regions": [json.loads(one.body) for one in map(self.listing.one, ids) if one],
            **staleness_json(stale_reason),
            "snapshot": snapshot_json(self.snapshot, stale_reason),
        }


def find(current: Listing, names: Sequence[str]) -> list[ProxyStatus]:
    """Return the statuses of the proxies with these names or ids. Raise ``CommandError`` for unknown ones."""
    found = {name: current.find(name) for name in names}
    missing = [name for name, status in found.items() if status is None]
    if missing:
        raise unknown(missing, [status.proxy.name for status in current.statuses])
    # Several names may mean one proxy.
    return list({status.proxy.id: status for status in found.values() if status}.values())


def unknown(missing: Sequence[str], names: Sequence[str]) -> CommandError:
    """Return the error about names that no proxy has, with similar ones that proxies have."""
    by_lower = {name.lower(): name for name in names}
    quoted = ", ".join(f"“{name}”" for name in missing)
    texts = [
        ngettext(
            "No proxy has the name or id %(names)s.",
            "No proxies have the names or ids %(names)s.",
            len(missing),
        )
        % {"names": quoted}
    ]
    similar = dict.fromkeys(
        by_lower[match]
        for name in missing
        for match in get_close_matches(name.lower(), by_lower, _MAX_SUGGESTIONS)
    )
    if similar:
        texts.append(_("Did you mean %(names)s?") % {"names": ", ".join(similar)})
    elif not names:
        texts.append(_("There are no proxies."))
    return failure(" ".join(texts))
