"""The admin of the silences."""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import available_timezones

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.db import router
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from django.urls import URLPattern, reverse
from django.utils import timezone
from django.utils.dates import WEEKDAYS, WEEKDAYS_ABBR
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from proxyhealth import access
from proxyhealth.admin.granted import GrantedAdmin
from proxyhealth.display import number, time_tag
from proxyhealth.models import Silence, WorkspaceProxy
from proxyhealth.notifications.silences import Times
from proxyhealth.selectors import Selector
from proxyhealth.snapshot import labels_of
from proxyhealth.texts import clean
from proxyhealth.utils import aware

# Names in a text about proxies. More than these make it too long to read.
_MAX_NAMES = 5

_USUAL_LENGTH = timedelta(hours=1)


@lru_cache(maxsize=1)
def _time_zones() -> list[tuple[str, str]]:
    return [("", "—"), *((name, name.replace("_", " ")) for name in sorted(available_timezones()))]


class SilenceForm(forms.ModelForm):  # type: ignore[type-arg]  # generic for type checkers only
    weekdays = forms.TypedMultipleChoiceField(
        choices=lambda: list(WEEKDAYS.items()),
        coerce=int,
        label=_("Weekdays"),
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text=_("None: the silence is in force without a pause from its start to its end."),
    )
    time_zone = forms.ChoiceField(
        choices=_time_zones,
        label=_("Time zone"),
        required=False,
        help_text=_("The clocks that “from” and “until” are read from. Daylight saving time counts."),
    )

    class Meta:
        help_texts = {  # noqa: RUF012  the shape that Django expects
            "begin": _("Empty, with “until”: all day."),
            "end": _("If it is not later than “from”, it is on the next day."),
        }
        widgets = {"proxies": forms.Textarea(attrs={"rows": 4, "cols": 40})}  # noqa: RUF012

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in {"starts", "ends"} & self.fields.keys():
            # Django gives a name to the pair, but not to its two fields.
            date, time = self.fields[name].widget.widgets
            label = capfirst(str(self.fields[name].label))
            date.attrs["aria-label"] = gettext("%(field)s: date") % {"field": label}
            time.attrs["aria-label"] = gettext("%(field)s: time") % {"field": label}


class EndedFilter(admin.SimpleListFilter):
    """A filter that hides the silences that have ended by default."""

    title = _("ended")
    parameter_name = "ended"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", gettext("Yes")), ("all", gettext("All"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "all":
            return queryset
        now = timezone.now()
        return queryset.filter(ends__lte=now) if self.value() == "yes" else queryset.filter(ends__gt=now)

    def choices(self, changelist: Any) -> Iterator[Any]:
        choices = super().choices(changelist)
        yield {**next(choices), "display": gettext("No")}
        yield from choices


class _SilenceList(ChangeList):
    """A list whose rows know their proxies, which one query reads for all of them."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        proxies = _read_proxies() if self.result_list else []
        for row in self.result_list:
            row.chosen = _chosen(row, proxies)


@admin.register(Silence)
class SilenceAdmin(GrantedAdmin):
    form = SilenceForm
    list_display = ("reason", "state", "when", "shown_proxies", "matches", "created_by")
    list_filter = (EndedFilter,)
    list_select_related = ("created_by",)
    search_fields = ("reason", "proxies")
    ordering = ("ends", "pk")
    actions = ("end_now",)
    readonly_fields = ("state", "matches", "created")
    fieldsets = (
        (None, {"fields": ("proxies", "reason")}),
        (_("Time"), {"fields": (("starts", "ends"),)}),
        (
            _("Weekly repetition"),
            {
                "fields": ("weekdays", ("begin", "end"), "time_zone"),
                "description": _(
                    "Within this time, the silence may be in force only on some days and hours."
                ),
            },
        ),
        (_("Now"), {"fields": ("state", "matches", "created")}),
    )

    class Media:
        css = {"all": ("proxyhealth/health.css",)}  # noqa: RUF012  the shape that Django expects

    def get_queryset(self, request: HttpRequest) -> QuerySet[Silence]:
        # A replica may lag behind a saved row.
        return super().get_queryset(request).using(router.db_for_write(Silence))

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return _SilenceList

    def get_urls(self) -> list[URLPattern]:
        urls = super().get_urls()
        for pattern in urls:
            pattern.callback = access.page(pattern.callback)
        return urls

    def get_fieldsets(self, request: HttpRequest, obj: Silence | None = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        return fieldsets if obj else fieldsets[:-1]

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        now = timezone.now().replace(microsecond=0)
        given = super().get_changeform_initial_data(request)
        # Django cannot read times from an address.
        return {
            "time_zone": settings.TIME_ZONE,
            **given,
            "starts": now,
            "ends": now + _USUAL_LENGTH,
        }

    def save_model(self, request: HttpRequest, obj: Silence, form: Any, change: bool) -> None:
        if not change:
            obj.created_by_id = request.user.pk
        super().save_model(request, obj, form, change)
        proxies = _read_proxies()
        chosen = _chosen(obj, proxies)
        values = {"proxies": _of(len(chosen), len(proxies)), "names": _names(chosen)}
        text = gettext("It silences %(proxies)s: %(names)s.") % values
        text = text if chosen else gettext("It matches no proxy now.")
        self.message_user(request, text, messages.INFO if chosen else messages.WARNING)

    @admin.action(description=_("End now"), permissions=["change"])
    def end_now(self, request: HttpRequest, queryset: QuerySet[Silence]) -> None:
        now = timezone.now()
        ended = [row for row in queryset if row.starts < now < row.ends]
        for row in ended:
            row.ends = now
            row.save(update_fields=["ends"])
            self.log_change(request, row, "Ended.")
        if ended:
            text = ngettext("%(count)s silence ended.", "%(count)s silences ended.", len(ended))
            self.message_user(request, text % {"count": number(len(ended))}, messages.SUCCESS)
        if others := len(queryset) - len(ended):
            text = ngettext(
                "%(count)s silence had not started, or had ended before. To cancel it, delete it.",
                "%(count)s silences had not started, or had ended before. To cancel one, delete it.",
                others,
            )
            self.message_user(request, text % {"count": number(others)}, messages.WARNING)

    # The columns, which also show rows that skipped validation.

    @admin.display(description=_("state"))
    def state(self, row: Silence) -> SafeString | str:
        now = datetime.now(UTC)
        try:
            window = Times.of(row).window(now)
        except ValidationError as error:
            return format_html(
                '<span class="proxyhealth-error">{}</span>',
                gettext("ignored: %(why)s") % {"why": " ".join(error.messages)},
            )
        if window is None:
            if aware(row.ends) > now:
                return gettext("never again")
            return format_html(gettext("ended {}"), time_tag(row.ends))
        if window.start <= now:
            return format_html(gettext("<strong>in force</strong> until {}"), time_tag(window.stop))
        return format_html(gettext("next: {} to {}"), time_tag(window.start), time_tag(window.stop))

    @admin.display(description=_("when"))
    def when(self, row: Silence) -> str:
        if not row.weekdays or not isinstance(row.weekdays, list):
            return gettext("once")
        days = ", ".join(str(WEEKDAYS_ABBR[day]) for day in sorted(row.weekdays) if day in range(7))
        is_short = row.begin is not None and row.end is not None
        times = f"{row.begin:%H:%M}–{row.end:%H:%M}" if is_short else gettext("all day")
        return f"{days} {times} {row.time_zone}"

    @admin.display(description=_("proxies"))
    def shown_proxies(self, row: Silence) -> SafeString:
        lines = [line.strip() for line in row.proxies.splitlines() if line.strip()]
        shown = [(clean(line, 64),) for line in lines[:_MAX_NAMES]]
        names = format_html_join(", ", "<bdi>{}</bdi>", shown)
        if len(lines) <= _MAX_NAMES:
            return names
        more = number(len(lines) - _MAX_NAMES)
        return format_html(gettext("{names} and {count} more"), names=names, count=more)

    @admin.display(description=_("matches now"))
    def matches(self, row: Any) -> str:
        if hasattr(row, "chosen"):
            return number(len(row.chosen))
        proxies = _read_proxies()
        chosen = _chosen(row, proxies)
        text = _of(len(chosen), len(proxies))
        return f"{text}: {_names(chosen)}" if chosen else text

    @admin.display(description=_("created"))
    def created(self, row: Silence) -> SafeString:
        return format_html(
            gettext("{time} by {name}"),
            time=time_tag(row.created_at),
            name=row.created_by or gettext("a program"),
        )


def _read_proxies() -> Sequence[tuple[str, Any]]:
    return list(WorkspaceProxy.objects.primary().active().values_list("name", "labels"))


def _chosen(row: Silence, proxies: Iterable[tuple[str, Any]]) -> list[str]:
    """Return the names of the proxies that a silence matches."""
    selector = Selector.parse(row.proxies)
    if selector.is_empty:  # the row is ignored
        return []
    return [name for name, labels in proxies if selector.matches(name, labels_of(labels))]


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(clean(name, 64) for name in names[:_MAX_NAMES])
    if len(names) <= _MAX_NAMES:
        return shown
    values = {"names": shown, "count": number(len(names) - _MAX_NAMES)}
    return gettext("%(names)s and %(count)s more") % values


def _of(count: int, total: int) -> str:
    text = ngettext("%(count)s of %(total)s proxy", "%(count)s of %(total)s proxies", total)
    return text % {"count": number(count), "total": number(total)}


def add_page(site: admin.AdminSite, request: HttpRequest, names: Sequence[str]) -> HttpResponse | None:
    """Return the form of a silence of these proxies, or None if their names are too long for one.

    Call it for a request of a user who may add a silence. An address could not have many names, because
    servers limit its length.
    """
    lines = "\n".join(names)
    if len(lines) > (Silence._meta.get_field("proxies").max_length or 0):
        return None
    form = copy(request)
    form.method = "GET"
    values = QueryDict(mutable=True)
    values["proxies"] = lines
    setattr(form, "GET", values)  # noqa: B010  no assignment: its type is that of an immutable one
    return site.get_model_admin(Silence).add_view(form, add_url(site, request))


def add_url(site: admin.AdminSite, request: HttpRequest) -> str:
    """Return the address of the form, or '' for a user who may not add a silence.

    The lines of its parameter ``proxies`` are in the form.
    """
    if not site.is_registered(Silence) or not site.get_model_admin(Silence).has_add_permission(request):
        return ""
    return reverse(f"{site.name}:proxyhealth_silence_add")
