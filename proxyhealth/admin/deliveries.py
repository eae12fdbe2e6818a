"""The list of the deliveries. It is fast however many there are."""

from datetime import timedelta
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.db import router
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from proxyhealth import access
from proxyhealth.admin.history import ReadOnlyAdmin, TimeFilter
from proxyhealth.display import number, time_tag
from proxyhealth.models import Channel, Delivery
from proxyhealth.notifications import waiting
from proxyhealth.rounds import dispatch
from proxyhealth.texts import clean

_NOTHING = _("Nothing is sent again: none of these has failed, or their channels are disabled.")


class ChannelFilter(admin.SimpleListFilter):
    title = _("channel")
    parameter_name = "channel"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        rows = Channel.objects.using(router.db_for_write(Channel)).values_list("pk", "name")
        return [(str(pk), clean(name, 64)) for pk, name in rows]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value():
            return queryset
        if self.value() not in dict(self.lookup_choices):
            raise IncorrectLookupParameters(f"{self.value()!r} is not the id of a channel")
        return queryset.filter(channel=self.value())


class StateFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(value), str(label)) for value, label in Delivery.State.choices]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(state=self.value()) if self.value() else queryset


class CreatedFilter(TimeFilter):
    """A filter by the time of the creation, in which the keys increase, too."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        hours = dict(self.lookup_choices).keys() & {self.value()}
        if not hours:
            return queryset
        begin = timezone.now() - timedelta(hours=int(hours.pop()))
        first = Delivery.objects.primary().filter(created_at__gte=begin).order_by("created_at")
        # The rows are sorted by their keys. A condition on the time would not limit those that are read.
        return queryset.filter(pk__gte=first.values_list("pk", flat=True).first() or 2**62)


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin):
    list_display = ("created", "shown_channel", "what", "shown_state", "attempts", "next", "shown_error")
    list_filter = (ChannelFilter, StateFilter, CreatedFilter)
    list_per_page = 50
    actions = ("try_again",)  # type: ignore[assignment]  # the other lists have none
    fields = (
        "created",
        "shown_channel",
        "what",
        "shown_state",
        "waits",
        "attempts",
        "next",
        "sent",
        "shown_error",
        "message",
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        rows = super().get_queryset(request).select_related("channel", "transition", "alarm")
        return rows.defer("transition__report", "channel__target", "channel__secret")

    @admin.display(description=_("created"))
    def created(self, row: Delivery) -> SafeString:
        return time_tag(row.created_at)

    @admin.display(description=_("channel"))
    def shown_channel(self, row: Delivery) -> SafeString:
        name = format_html("<bdi>{}</bdi>", clean(row.channel.name, 64))
        page = f"{self.admin_site.name}:proxyhealth_channel_change"
        try:
            return format_html('<a href="{}">{}</a>', reverse(page, args=[row.channel_id]), name)
        except NoReverseMatch:  # the host has unregistered the channels
            return name

    @admin.display(description=_("what"))
    def what(self, row: Delivery) -> SafeString:
        return what(row)

    @admin.display(description=_("state"))
    def shown_state(self, row: Delivery) -> str:
        return row.get_state_display()

    @admin.display(description=_("why not yet"))
    def waits(self, row: Delivery) -> str:
        return waiting.reasons(Delivery.objects.primary().db, [row]).get(row.pk, "")

    @admin.display(description=_("next attempt"))
    def next(self, row: Delivery) -> SafeString | str:
        return time_tag(row.next_attempt_at) if row.next_attempt_at else ""

    @admin.display(description=_("sent"))
    def sent(self, row: Delivery) -> SafeString | str:
        return time_tag(row.sent_at) if row.sent_at else ""

    @admin.display(description=_("error"))
    def shown_error(self, row: Delivery) -> SafeString:
        return format_html("<bdi>{}</bdi>", clean(row.error, 500))

    def has_try_again_permission(self, request: HttpRequest) -> bool:
        return access.is_granted(request.user.has_perm("proxyhealth.change_channel"))

    @admin.action(description=_("Try again now"), permissions=["try_again"])
    def try_again(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Make failed deliveries pending, each with all others of its message: a repeat is the same."""
        failed = Delivery.objects.primary().filter(state=Delivery.State.FAILED, channel__enabled=True)
        chosen = failed.filter(pk__in=queryset.order_by().values("pk"))
        messages_of = set(chosen.exclude(message=None).values_list("message", flat=True).distinct())
        pending = {"state": Delivery.State.PENDING, "next_attempt_at": timezone.now()}
        count = chosen.filter(message=None).update(**pending)
        count += failed.filter(message__in=messages_of).update(**pending)
        if not count:
            self.message_user(request, _NOTHING, messages.WARNING)
            return
        dispatch.request_delivery(0)
        text = ngettext(
            "%(count)s delivery is sent again now.", "%(count)s deliveries are sent again now.", count
        )
        self.message_user(request, text % {"count": number(count)}, messages.SUCCESS)


def what(row: Delivery) -> SafeString:
    """Return what a delivery tells, as HTML."""
    if row.transition:
        change = f"{clean(row.transition.before, 32)} → {clean(row.transition.after, 32)}"
        reminder = gettext(", reminder %(number)s") % {"number": number(row.number)} if row.number else ""
        return format_html(
            '<bdi>{}</bdi>: <bdi dir="ltr">{}</bdi>{}', clean(row.transition.proxy_name, 64), change, reminder
        )
    kind = row.alarm.get_kind_display() if row.alarm else ""
    return format_html(gettext("end of {}") if row.number else "{}", kind)
