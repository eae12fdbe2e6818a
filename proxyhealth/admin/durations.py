"""The form field of durations."""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from proxyhealth.durations import duration_text, parse_duration

WEEK = 7 * 86_400


class HumanDurationField(forms.CharField):
    """A number of seconds that people read and write as a duration. Empty is 0."""

    def __init__(self, *, lowest: int = 0, highest: int = WEEK, **options: Any) -> None:
        super().__init__(required=False, max_length=64, **options)
        self._lowest = lowest
        self._highest = highest

    def prepare_value(self, value: Any) -> Any:
        return duration_text(value) if isinstance(value, int) else value

    def clean(self, value: Any) -> Any:
        text = super().clean(value)
        try:
            seconds = parse_duration(text)
        except ValueError:
            raise ValidationError(
                _("Enter a number with a unit (s, min, h, or d), for example 5 min."), code="invalid_duration"
            ) from None
        if 0 < seconds < self._lowest:
            params = {"duration": duration_text(self._lowest)}
            raise ValidationError(
                _("The shortest duration is %(duration)s."), code="too_short", params=params
            )
        if seconds > self._highest:
            params = {"duration": duration_text(self._highest)}
            raise ValidationError(_("The longest duration is %(duration)s."), code="too_long", params=params)
        return seconds

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return bool(parse_duration(data or "") != (initial or 0))
        except ValueError:
            return True
