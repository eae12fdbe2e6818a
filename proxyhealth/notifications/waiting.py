"""The reasons for which pending deliveries are not sent yet, in words for the pages."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from proxyhealth.display import clock
from proxyhealth.models import Channel, Delivery
from proxyhealth.notifications.composing import is_due, is_resting
from proxyhealth.notifications.planning import Plan, Why, plan

_WAITS = {
    Why.SILENCED: gettext_lazy("The proxy is silenced until %(time)s."),
    Why.DELAY: gettext_lazy("The delay of the channel ends at %(time)s."),
    Why.FLAPPING: gettext_lazy("The proxy is flapping. It is told when it is calm, not before %(time)s."),
}
_DUE = gettext_lazy("It is due. A worker sends it with its next round at the latest.")


def reasons(alias: str, deliveries: Sequence[Delivery]) -> Mapping[int, str]:
    """Return why each pending one of these ``deliveries`` of one proxy is not sent yet, by its key.

    Their channels and transitions must have been read. There is a fixed number of queries for each channel.
    """
    channels: dict[Channel, list[Delivery]] = {}
    for delivery in deliveries:
        if delivery.state == Delivery.State.PENDING:
            channels.setdefault(delivery.channel, []).append(delivery)
    found: dict[int, str] = {}
    for channel, pending in channels.items():
        channel_wait = _of_channel(alias, channel)
        decision = _plan(alias, channel, pending)
        for delivery in pending:
            found[delivery.pk] = _reason(channel, delivery, decision) or channel_wait or str(_DUE)
    return found


def _plan(alias: str, channel: Channel, pending: Sequence[Delivery]) -> Plan:
    proxies: set[UUID] = {
        each.transition.proxy_uuid for each in pending if each.transition and not each.message
    }
    return plan(alias, channel, proxies.pop()) if len(proxies) == 1 else Plan()


def _reason(channel: Channel, delivery: Delivery, decision: Plan) -> str:
    """Return why this delivery is not sent yet, or an empty string if it waits for its channel."""
    if not channel.enabled:
        return _("The channel is disabled. Nothing is sent.")
    if delivery.message:
        return _of_message(channel, delivery)
    if wait := decision.waits.get(delivery.pk):
        return str(_WAITS[wait.why]) % {"time": clock(wait.until)}
    if any(delivery.pk in pks for pks in decision.drop.values()):
        return _("It is not needed any more.")
    return ""


def _of_message(channel: Channel, delivery: Delivery) -> str:
    """Return why a delivery that is in a message is not sent yet."""
    if _is_claimed(channel):
        return _("It is being sent now.")
    due_at = delivery.next_attempt_at
    if due_at and not is_due(due_at):
        return _("The last attempt failed. The next attempt is at %(time)s.") % {"time": clock(due_at)}
    return _("The next attempt is due. A worker makes it with its next round at the latest.")


def _of_channel(alias: str, channel: Channel) -> str:
    """Return why a channel gets no new message now, or an empty string."""
    begun = channel.deliveries.using(alias).pending().filter(message__isnull=False)
    first: datetime | None = begun.order_by("message_at").values_list("next_attempt_at", flat=True).first()
    if first and first > timezone.now():
        return _("An earlier message must be sent first. Its next attempt is at %(time)s.") % {
            "time": clock(first)
        }
    if first:
        return _("An earlier message must be sent first.")
    if channel.rests_until and is_resting(channel.rests_until):
        return _("The channel rests after its last message until %(time)s.") % {
            "time": clock(channel.rests_until)
        }
    return _("The channel is being told something now.") if _is_claimed(channel) else ""


def _is_claimed(channel: Channel) -> bool:
    """Return True if a process sends to the channel now. An expired claim is that of a dead process."""
    until = channel.claimed_until
    return channel.claim is not None and until is not None and until > timezone.now()
