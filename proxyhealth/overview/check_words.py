"""The progress of a check in words, for people."""

from collections.abc import Sequence

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from proxyhealth.display import number
from proxyhealth.history.changes import StatusChange
from proxyhealth.rounds.progress import Progress, State
from proxyhealth.statuses import Status
from proxyhealth.storage.outbox import REMOVED
from proxyhealth.texts import clean

# Changes that a sentence names.
_MAX_NAMED = 5

_AFTER = {
    Status.OK.value: gettext_lazy("%(proxy)s is ok"),
    Status.UNHEALTHY.value: gettext_lazy("%(proxy)s is unhealthy"),
    Status.UNREACHABLE.value: gettext_lazy("%(proxy)s is unreachable"),
    Status.UNREGISTERED.value: gettext_lazy("%(proxy)s is not registered"),
    Status.UNKNOWN.value: gettext_lazy("%(proxy)s is unknown"),
    REMOVED: gettext_lazy("%(proxy)s is deleted"),
}


def progress_in_words(progress: Progress) -> str:
    """Return one or two sentences that are true at this moment."""
    match progress.state:
        case State.QUEUED:
            return _("The check waits for a worker.")
        case State.RUNNING:
            return _running(progress)
        case State.NO_WORKER:
            return _no_worker(progress)
        case State.FAILED:
            return _("The check failed: %(error)s The next round checks all proxies.") % {
                "error": _sentence(progress.error)
            }
        case State.LOST:
            return _(
                "A worker has taken the check, and has not finished it. Look at the log of the Celery "
                "worker. The next round checks all proxies."
            )
    return f"{_done(progress)} {_unconfirmed(progress)}".strip()


def _running(progress: Progress) -> str:
    if progress.total > 1:
        return _("Being checked now: %(checked)s of %(total)s proxies are done.") % {
            "checked": number(progress.checked),
            "total": number(progress.total),
        }
    return _("Being checked now.")


def _no_worker(progress: Progress) -> str:
    values = {"seconds": number(progress.seconds), "count": number(progress.queue_length or 0)}
    text = _("No worker has taken the check for %(seconds)s s.") % values
    if not progress.queue_length:
        advice = _("All workers are busy, or none is running: look at the Celery worker.")
    else:
        advice = (
            ngettext(
                "%(count)s task waits in the queue: is the Celery worker running?",
                "%(count)s tasks wait in the queue: is the Celery worker running?",
                progress.queue_length,
            )
            % values
        )
    return f"{text} {advice}"


def _done(progress: Progress) -> str:
    count = len(progress.changes)
    if not count:
        if progress.state is State.SUPERSEDED:
            return _("Another round has checked it first. Nothing has changed.")
        return _("Checked. Nothing has changed.")
    values = {"changes": changes_in_words(progress.changes), "count": number(count)}
    if progress.state is State.SUPERSEDED:
        return _("Another round has checked it first. Changed: %(changes)s.") % values
    return (
        ngettext(
            "Checked. %(count)s proxy has changed: %(changes)s.",
            "Checked. %(count)s proxies have changed: %(changes)s.",
            count,
        )
        % values
    )


def changes_in_words(changes: Sequence[StatusChange]) -> str:
    """Return the first changes, such as ``paris is unreachable (was ok), oslo is ok (was unknown)``."""
    texts = [_change(change) for change in changes[:_MAX_NAMED]]
    more = len(changes) - len(texts)
    if more:
        texts.append(ngettext("%(count)s more", "%(count)s more", more) % {"count": number(more)})
    return ", ".join(texts)


def _change(change: StatusChange) -> str:
    name = f"\u2068{clean(change.name, 64).strip() or change.id}\u2069"
    after = _AFTER.get(change.after, gettext_lazy("%(proxy)s has changed")) % {"proxy": name}
    return _("%(sentence)s (was %(before)s)") % {"sentence": after, "before": clean(change.before, 32)}


def _unconfirmed(progress: Progress) -> str:
    count = len(progress.unconfirmed)
    if not count:
        return ""
    return ngettext(
        "The last result of %(count)s proxy differs from its status, and is not confirmed yet.",
        "The last results of %(count)s proxies differ from their statuses, and are not confirmed yet.",
        count,
    ) % {"count": number(count)}


def _sentence(error: str) -> str:
    text = clean(error, 300).strip() or _("see the log of the Celery worker")
    return text if text.endswith((".", "!", "?")) else f"{text}."
