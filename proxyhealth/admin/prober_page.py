"""The page about the prober itself: its parts, its workers, and its last rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.cache import add_never_cache_headers
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from proxyhealth import access
from proxyhealth.conf import conf
from proxyhealth.notifications.culprit import tasks_of
from proxyhealth.notifications.wording import duration
from proxyhealth.overview import prober
from proxyhealth.storage.presence import GONE_AFTER, Presence, Sign
from proxyhealth.storage.rounds_log import RoundEntry
from proxyhealth.texts import clean

if TYPE_CHECKING:
    from proxyhealth.admin.proxies import WorkspaceProxyAdmin

ROUNDS_SHOWN = 50

# The picture of the durations, in its own units.
_BAR, _HEIGHT = 8, 60

OUTCOMES: dict[str, Promise] = {
    "success": gettext_lazy("complete"),
    "incomplete": gettext_lazy("incomplete"),
    "failure": gettext_lazy("failed"),
    "offline": gettext_lazy("prober offline"),
    "skipped": gettext_lazy("tick skipped"),
    "running": gettext_lazy("running"),
    "killed": gettext_lazy("killed"),
}
_SKIPPED: dict[str, Promise] = {
    "running": gettext_lazy("A round was running."),
    "early": gettext_lazy("It came too soon after the last tick."),
    "done": gettext_lazy("A round had just ended."),
}
# The look of an outcome. All others look like a failure.
_LOOKS = {"success": "ok", "incomplete": "warning", "skipped": "off", "running": "off"}


class ProberPage:
    """The view of the page in one admin site."""

    def __init__(self, model_admin: WorkspaceProxyAdmin) -> None:
        self._admin = model_admin

    def urls(self) -> list[URLPattern]:
        view = access.outside_transactions(self._admin.admin_site.admin_view(self.show))
        return [path("prober/", view, name="proxyhealth_workspaceproxy_prober")]

    def show(self, request: HttpRequest) -> HttpResponse:
        if not self._admin.has_view_permission(request):
            raise PermissionDenied
        found = prober.examine()
        rounds = [RoundRow.of(entry) for entry in (found.rounds or ())[:ROUNDS_SHOWN]]
        context = {
            **self._admin.admin_site.each_context(request),
            "opts": self._admin.opts,
            "title": _("The prober"),
            "prober": found,
            "guide": f"{conf.RUNBOOK_URL}#is-it-us" if conf.RUNBOOK_URL else "",
            "workers": list(_worker_rows(found.presence or Presence())),
            "rounds": rounds,
            "bars": list(_bars(rounds)),
            "width": max(1, _BAR * len(rounds)),
            "height": _HEIGHT,
        }
        response = TemplateResponse(request, "admin/proxyhealth/workspaceproxy/prober.html", context)
        add_never_cache_headers(response)
        return response


class RoundRow(NamedTuple):
    """A round as the page shows it."""

    entry: RoundEntry
    outcome: str
    look: str
    detail: str

    @classmethod
    def of(cls, entry: RoundEntry) -> RoundRow:
        detail = entry.error
        if entry.outcome == "skipped":
            detail = str(_SKIPPED.get(entry.error, entry.error))
        outcome = str(OUTCOMES.get(entry.outcome, entry.outcome))
        return cls(entry, outcome, _LOOKS.get(entry.outcome, "failed"), detail)


def _bars(rounds: Sequence[RoundRow]) -> Iterator[Mapping[str, Any]]:
    """Yield a bar per round, the oldest first. The longest has the whole height."""
    longest = max((row.entry.seconds or 0.0 for row in rounds), default=0.0)
    for place, row in enumerate(reversed(rounds)):
        share = (row.entry.seconds or 0.0) / longest if longest else 0.0
        height = max(2, round(_HEIGHT * share))
        yield {"x": _BAR * place, "y": _HEIGHT - height, "height": height, "look": row.look}


def _worker_rows(signs: Presence) -> Iterator[Mapping[str, Any]]:
    """Yield the workers that run, and those that do not run any more and have no successor."""
    running = signs.running
    names = {sign.text("name") for sign in running}
    seen: set[str] = set()
    for sign in signs.workers:
        name = sign.text("name")
        if sign in running or name not in names | seen:
            seen.add(name)
            yield _worker_row(sign, sign in running)


def _worker_row(sign: Sign, is_running: bool) -> Mapping[str, Any]:
    if is_running:
        word, look = (_("runs"), "ok")
        if sign.values.get("connected") is False:
            word, look = (_("not connected to the broker"), "failed")
    elif sign.values.get("stopped"):
        word, look = (_("stopped"), "off")
    else:
        word, look = (_("no sign for more than %(seconds)s s") % {"seconds": round(GONE_AFTER)}, "failed")
    return {
        "sign": sign,
        "word": word,
        "look": look,
        "name": sign.text("name"),
        "host": sign.text("host"),
        "pid": sign.count("pid"),
        "pool": sign.text("pool"),
        "processes": [pid for pid in sign.items("processes") if isinstance(pid, int)],
        "concurrency": sign.count("concurrency"),
        "active": sign.count("active"),
        "queues": [clean(str(name), 100) for name in sign.items("takes")],
        "missing": [clean(str(name), 100) for name in sign.items("missing")],
        "tasks": [(name, duration(seconds)) for name, seconds in tasks_of(sign)] if is_running else [],
        "version": sign.text("version"),
    }
