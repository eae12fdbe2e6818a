"""The admin of the channels, with the wizard of a new one and the test message."""

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import router
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_POST

from proxyhealth import access
from proxyhealth.admin.channel_forms import FORMS, STATUSES, ChannelForm, kinds
from proxyhealth.admin.channel_states import matching, state_of, with_state
from proxyhealth.admin.deliveries import what
from proxyhealth.admin.granted import GrantedAdmin
from proxyhealth.admin.history import MAX_ROWS
from proxyhealth.display import number
from proxyhealth.durations import duration_text
from proxyhealth.models import Channel, Delivery
from proxyhealth.notifications import sending, transport
from proxyhealth.targets import masked_target
from proxyhealth.texts import clean

# Deliveries below the form.
_SHOWN_DELIVERIES = 20

# Deliveries that one transaction deletes.
_BATCH = 10_000

# What the view is asked to do once its transaction has ended: nothing on the network may hold a transaction.
_TEST = "_proxyhealth_test"


@admin.register(Channel)
class ChannelAdmin(GrantedAdmin):
    list_display = ("name", "kind", "shown_target", "state", "pending")
    list_display_links = ("name",)
    show_full_result_count = False
    change_list_template = "admin/proxyhealth/channel_list.html"
    change_form_template = "admin/proxyhealth/channel_form.html"
    readonly_fields = ("shown_kind", "shown_target", "state", "matches")

    class Media:
        css = {"all": ("proxyhealth/health.css",)}  # noqa: RUF012  the shape that Django expects

    def get_queryset(self, request: HttpRequest) -> QuerySet[Channel]:
        # A replica may lag behind a saved row.
        rows = super().get_queryset(request).using(router.db_for_write(Channel))
        return with_state(rows)  # type: ignore[no-any-return]  # annotated columns have no types

    # What the pages show. No page shows a saved target or secret.

    @admin.display(description=_("kind"))
    def shown_kind(self, row: Channel) -> str:
        return row.get_kind_display()

    @admin.display(description=_("target"))
    def shown_target(self, row: Channel) -> SafeString:
        return format_html('<bdi dir="ltr">{}</bdi>', clean(masked_target(row.kind, row.target), 200))

    @admin.display(description=_("state"))
    def state(self, row: Channel) -> SafeString:
        return state_of(row)

    @admin.display(description=_("pending"), ordering="pending_count")
    def pending(self, row: Any) -> str:
        return number(row.pending_count)

    @admin.display(description=_("matches"))
    def matches(self, row: Channel) -> SafeString:
        return matching(row.proxies)[2]

    @admin.display(description=_("which proxies"))
    def shown_proxies(self, row: Channel) -> str:
        return clean(", ".join(row.proxies.splitlines()), 500) or gettext("all proxies")

    @admin.display(description=_("which statuses"))
    def shown_statuses(self, row: Channel) -> str:
        return ", ".join(status for status in STATUSES if status in (row.statuses or ()))

    @admin.display(description=_("delay"))
    def shown_delay(self, row: Channel) -> str:
        return duration_text(row.delay) or gettext("none")

    @admin.display(description=_("remind every"))
    def shown_remind_every(self, row: Channel) -> str:
        return duration_text(row.remind_every) or gettext("never")

    # The form. The kind of a new channel is in the address, as chosen on the first page of the wizard.

    def get_form(
        self, request: HttpRequest, obj: Channel | None = None, change: bool = False, **kwargs: Any
    ) -> Any:
        return super().get_form(request, obj, change, **{**kwargs, "form": _form_of(request, obj)})

    def get_fieldsets(self, request: HttpRequest, obj: Channel | None = None) -> Any:
        if obj and not self.has_change_permission(request, obj):
            return _READ_ONLY
        is_webhook = (obj.kind if obj else request.GET.get("kind")) == Channel.Kind.WEBHOOK
        what = ["proxies", "statuses", "delay", "remind_every"]
        if obj is None:
            secret = ["secret"] if is_webhook else []
            options = {"fields": what, "classes": ["collapse"], "description": _ALL}
            return ((None, {"fields": ["name", "target", *secret]}), (_("What is told"), options))
        secret = ["secret", "new_secret"] if is_webhook else []
        return (
            (None, {"fields": ["name", "enabled", "state", "shown_kind", "shown_target"]}),
            (_("What is told"), {"fields": ["proxies", "matches", *what[1:]]}),
            (_("Replace"), {"fields": ["target", *secret], "classes": ["collapse"]}),
        )

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        name = {kind["kind"]: kind["title"] for kind in kinds()}.get(request.GET.get("kind", ""), "")
        names = set(Channel.objects.using(router.db_for_write(Channel)).values_list("name", flat=True))
        numbered = (name if i == 1 else f"{name} {i}" for i in range(1, len(names) + 2))
        return {"name": next(text for text in numbered if text not in names)}

    def save_model(self, request: HttpRequest, obj: Channel, form: Any, change: bool) -> None:
        """Save what the form has changed: other processes write the other columns meanwhile."""
        changed = {"secret" if name == "new_secret" else name for name in form.changed_data}
        if not change or ("enabled" in changed and obj.enabled):
            obj.listens_since = timezone.now()
            changed.add("listens_since")
        obj.save(update_fields=changed if change else None)
        if change and changed & {"target", "secret"}:
            # Probably the fault is mended, so do not wait for the next attempt.
            deliveries = Delivery.objects.primary().filter(channel=obj).pending()
            deliveries.filter(attempts__gt=0).update(next_attempt_at=timezone.now())

    def response_add(
        self, request: HttpRequest, obj: Channel, post_url_continue: str | None = None
    ) -> HttpResponse:
        return self._response(request, obj, super().response_add(request, obj, post_url_continue))

    def response_change(self, request: HttpRequest, obj: Channel) -> HttpResponse:
        return self._response(request, obj, super().response_change(request, obj))

    def _response(self, request: HttpRequest, obj: Channel, response: HttpResponse) -> HttpResponse:
        """Return the page of a new secret, or that of the channel after a test, or else ``response``."""
        chosen, total, _ = matching(obj.proxies)
        if total and not chosen:
            text = gettext("No proxy matches, so nothing will be told.")
            self.message_user(request, text, messages.WARNING)
        secret = getattr(obj, "made_secret", "")
        is_test = "_test" in request.POST and self.has_change_permission(request, obj)
        if is_test:
            response = HttpResponseRedirect(self._page(obj.pk))
        if is_test and not secret:
            setattr(request, _TEST, obj.pk)
        if secret:
            context = {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "original": obj,
                "title": gettext("Secret of the channel"),
                "secret": secret,
                "next": response["Location"],
                # A receiver that does not know the secret yet would refuse the test.
                "is_test": is_test,
            }
            return TemplateResponse(request, "admin/proxyhealth/channel_secret.html", context)
        return response

    def save_form(self, request: HttpRequest, form: Any, change: bool) -> Any:
        channel = super().save_form(request, form, change)
        channel.made_secret = getattr(form, "made_secret", "")
        return channel

    # Views

    def get_urls(self) -> list[URLPattern]:
        test = self.admin_site.admin_view(require_POST(self.test_view))
        urls = [
            path("<path:object_id>/test/", test, name="proxyhealth_channel_test"),
            *super().get_urls(),
        ]
        for pattern in urls:
            pattern.callback = access.outside_transactions(access.page(pattern.callback))
        return urls

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the kinds first, then the form of the chosen one."""
        if request.GET.get("kind") in FORMS:
            return super().add_view(request, form_url, extra_context)
        if not self.has_add_permission(request):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": gettext("Add a channel"),
            "kinds": kinds(),
        }
        return TemplateResponse(request, "admin/proxyhealth/channel_kinds.html", context)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        kind = request.GET.get("kind")
        context = {"kind": next((each for each in kinds() if each["kind"] == kind), None)}
        if object_id is not None:
            context = self._deliveries(request, unquote(object_id))
        response = super().changeform_view(request, object_id, form_url, {**context, **(extra_context or {})})
        if id := getattr(request, _TEST, None):
            self._test(request, Channel.objects.using(router.db_for_write(Channel)).get(pk=id))
        return response

    def _deliveries(self, request: HttpRequest, id: str) -> dict[str, Any]:
        """Return the variables of the form about the deliveries of this channel."""
        rows: Any = (
            Delivery.objects.primary().select_related("transition", "alarm").defer("transition__report")
        )
        rows = rows.filter(channel=id)[:_SHOWN_DELIVERIES] if id.isdecimal() else rows.none()
        registered = self.admin_site.is_registered(Delivery)
        url = ""
        if registered and self.admin_site.get_model_admin(Delivery).has_view_permission(request):
            page = reverse(f"{self.admin_site.name}:proxyhealth_delivery_changelist")
            url = f"{page}?{urlencode({'channel': id})}"
        return {"deliveries": [(row, what(row)) for row in rows], "deliveries_url": url}

    def test_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Send a test message, and show what the other side has answered."""
        channel = self.get_object(request, unquote(object_id))
        if not self.has_change_permission(request, channel):
            raise PermissionDenied
        if channel is None:
            raise Http404(gettext("There is no channel with this id."))
        self._test(request, channel)
        return HttpResponseRedirect(self._page(channel.pk))

    def _test(self, request: HttpRequest, channel: Channel) -> None:
        answer = transport.send_test(channel)
        values = {
            "seconds": number(answer.seconds, 1),
            "answer": answer.text,
            "refused": sending.NOT_FOR_ALL.format(answer.refused) if answer.refused else "",
        }
        outcome: dict[str, Any] = {"last_success_at": timezone.now(), "last_error": values["refused"]}
        if answer.refused:
            text, level = _REFUSED % values, messages.WARNING
        elif answer.ok:
            text, level = _SENT % values, messages.SUCCESS
        else:
            text, level = _FAILED % values, messages.ERROR
            outcome = {"last_failure_at": timezone.now(), "last_error": answer.text}
        self.message_user(request, clean(text, 1_000), level)
        Channel.objects.using(router.db_for_write(Channel)).filter(pk=channel.pk).update(**outcome)
        # Not the answer: a mail server may repeat the address of a recipient.
        self.log_change(request, channel, f"A test {'was sent' if answer.ok else 'failed'}.")

    def _page(self, id: Any) -> str:
        return reverse(f"{self.admin_site.name}:proxyhealth_channel_change", args=[id])

    # Deleting. A channel may have a million deliveries.

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Return the channels and the number of their deliveries, without listing the deliveries."""
        channels = list(objs)
        rows = Delivery.objects.primary().filter(channel__in=channels).order_by()
        count = rows[: MAX_ROWS + 1].count()
        more = gettext("more than %(count)s") % {"count": number(MAX_ROWS)}
        deliveries = more if count > MAX_ROWS else number(count)
        model_count = {gettext("channels"): len(channels), gettext("deliveries"): deliveries}
        denied = set() if self.has_delete_permission(request) else {self.opts.verbose_name}
        return [str(channel) for channel in channels], model_count, denied, []

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> Any:
        if request.POST and self.has_delete_permission(request):
            self._delete_deliveries(self.get_queryset(request).filter(pk=object_id))
        return super().delete_view(request, object_id, extra_context)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Channel]) -> None:
        self._delete_deliveries(queryset)
        super().delete_queryset(request, queryset)

    def _delete_deliveries(self, channels: QuerySet[Channel]) -> None:
        """Delete most deliveries before the channels, in short transactions: SQLite has one writer."""
        ids = list(channels.values_list("pk", flat=True))
        # None is added meanwhile.
        Channel.objects.using(router.db_for_write(Channel)).filter(pk__in=ids).update(enabled=False)
        for id in ids:
            rows = Delivery.objects.primary().filter(channel=id).order_by("pk")
            keys = rows.values_list("pk", flat=True)
            while last := keys[_BATCH - 1 : _BATCH].first():
                rows.filter(pk__lte=last).delete()


_SENT = _("The test was sent in %(seconds)s s. The answer: %(answer)s")
_REFUSED = _("The test was sent in %(seconds)s s, but %(refused)s. The answer: %(answer)s")
_FAILED = _("The test failed after %(seconds)s s: %(answer)s")

_ALL = _("By default, the begin and the end of each outage of each proxy, at once, without reminders.")

_READ_ONLY = (
    (None, {"fields": ["name", "enabled", "state", "shown_kind", "shown_target"]}),
    (
        _("What is told"),
        {"fields": ["shown_proxies", "matches", "shown_statuses", "shown_delay", "shown_remind_every"]},
    ),
)


def _form_of(request: HttpRequest, channel: Channel | None) -> type[ChannelForm]:
    kind = channel.kind if channel else request.GET.get("kind")
    return FORMS.get(kind or "", ChannelForm)
