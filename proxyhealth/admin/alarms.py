"""The list of the alarms about the prober itself."""

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from proxyhealth.admin.history import ReadOnlyAdmin
from proxyhealth.display import time_tag
from proxyhealth.models import Alarm
from proxyhealth.utils import aware


@admin.register(Alarm)
class AlarmAdmin(ReadOnlyAdmin):
    list_display = ("began", "ended", "duration", "kind", "detail")
    list_filter = ("kind", ("ended_at", admin.EmptyFieldListFilter))
    fields = ("began", "ended", "duration", "kind", "detail")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields

    @admin.display(description=_("start"))
    def began(self, row: Alarm) -> SafeString:
        return time_tag(row.began_at)

    @admin.display(description=_("end"))
    def ended(self, row: Alarm) -> SafeString | str:
        return time_tag(row.ended_at) if row.ended_at else gettext("goes on")

    @admin.display(description=_("duration"))
    def duration(self, row: Alarm) -> SafeString | None:
        if not row.ended_at:
            return None
        seconds = round((aware(row.ended_at) - aware(row.began_at)).total_seconds())
        return format_html('<bdi dir="ltr">{}</bdi>', timedelta(seconds=seconds))
