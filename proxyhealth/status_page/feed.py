"""The outages as an Atom feed. An outage that ends updates its entry, whose id stays."""

from django.db import OperationalError
from django.urls import reverse
from django.utils.feedgenerator import Atom1Feed
from django.utils.translation import get_language
from django.utils.translation import gettext as _

from proxyhealth.display import clock
from proxyhealth.status_page.contents import Contents, PastOutage


def write_feed(contents: Contents, base: str) -> str:
    """Return the feed as XML. ``base`` is the address of the site, without a final slash.

    Raise ``OperationalError`` without the history: readers would take the outages for others.
    """
    if not contents.has_history:
        raise OperationalError("the outages cannot be read")
    page = base + reverse("proxyhealth-status")
    feed = Atom1Feed(
        title=_("Outages"),
        link=page,
        description=None,
        subtitle=contents.headline.text,
        feed_url=base + reverse("proxyhealth-status-feed"),
        language=get_language(),
    )
    for outage in (each for each in (*contents.current, *contents.recent) if each.id):
        feed.add_item(
            title=_title(outage),
            link=page,
            description=_description(outage),
            unique_id=f"urn:uuid:{outage.id}",
            pubdate=outage.began_at,
            updateddate=outage.ended_at or outage.began_at,
        )
    return feed.writeString("utf-8")


def _title(outage: PastOutage) -> str:
    values = {"name": outage.name, "duration": outage.duration}
    if outage.ended_at:
        return _("%(name)s was down for %(duration)s") % values
    return _("%(name)s is down") % values


def _description(outage: PastOutage) -> str:
    values = {"begin": clock(outage.began_at), "end": outage.ended_at and clock(outage.ended_at)}
    if outage.ended_at:
        return _("It began at %(begin)s and ended at %(end)s.") % values
    return _("It began at %(begin)s and has not ended.") % values
