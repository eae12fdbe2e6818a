"""The sentences of the scripts that keep a page current. ``{name}`` is a placeholder."""

from django.utils.translation import gettext as _


def live_sentences() -> dict[str, str]:
    """Return the sentences in the current language, by the names that the scripts use."""
    return {
        # The age of something, in a sentence or in parentheses.
        "seconds": _("{count} s ago"),
        "minutes": _("{count} min ago"),
        "hours": _("{count} h ago"),
        "days": _("{count} d ago"),
        "refreshed": _("Refreshed {ago}."),
        # Contact with the server. The reason is one of the sentences below.
        "lost": _("Contact lost: {reason} Last refreshed {ago}. The statuses may be out of date."),
        "lostTitle": _("Contact lost, last refreshed {ago}: {title}"),
        "back": _("The contact is back."),
        "noAnswer": _("The server does not answer."),
        "failed": _("The server answers with the error {status}."),
        "signedOut": _("You are no longer signed in."),
        "forbidden": _("You may no longer see this page."),
        "otherPage": _("The server answers with another page: reload this one."),
        # Changes of statuses.
        "ok": _("{proxy} is ok"),
        "unhealthy": _("{proxy} is unhealthy"),
        "unreachable": _("{proxy} is unreachable"),
        "unregistered": _("{proxy} is not registered"),
        "unknown": _("{proxy} is unknown"),
        "changed": _("{proxy} has changed"),
        "gone": _("{proxy} is no longer in this list"),
        "several": _("Proxies that changed: {count}. {changes}"),
        "more": _("and {count} more"),
        # Check now.
        "chooseOne": _("Choose at least one proxy."),
        "refused": _("The server has refused the request: reload this page, and try again."),
    }
