"""Labels in forms: a text with one ``key: value`` on each line."""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from proxyhealth.texts import is_label
from proxyhealth.validators import short


class LabelsField(forms.CharField):
    """A text area whose value is a dictionary. An error names each line that cannot be used."""

    def __init__(self, **options: Any) -> None:
        widget = forms.Textarea(attrs={"rows": 4, "cols": 40})
        help_text = _(
            "One a line, for example region: eu. Channels, silences, and filters choose proxies by them."
        )
        super().__init__(
            label=_("Labels"),
            required=False,
            strip=False,
            widget=widget,
            **{"help_text": help_text, **options},
        )

    def prepare_value(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value if isinstance(value, str) else ""
        return "\n".join(f"{key}: {text}" for key, text in value.items())

    def to_python(self, value: Any) -> Any:
        labels: dict[str, str] = {}
        errors = []
        for number, line in enumerate((super().to_python(value) or "").splitlines(), 1):
            key, colon, text = (part.strip() for part in line.partition(":"))
            if not line.strip():
                continue
            if fault := _fault(key, colon, text, labels):
                params = {"number": number, "line": short(line.strip()), "fault": fault}
                message = _("Line %(number)s, %(line)s: %(fault)s")
                errors.append(ValidationError(message, code="label", params=params))
            labels[key] = text
        if errors:
            raise ValidationError(errors)
        return labels

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return bool((initial or {}) != self.to_python(data))
        except ValidationError:
            return True


def _fault(key: str, colon: str, text: str, before: dict[str, str]) -> str:
    if not colon or not key or not text:
        return gettext("write a key, a colon, and a value, such as region: eu.")
    if not (is_label(key) and is_label(text)):
        return gettext(
            "a key and a value have 1 to 63 letters, digits, and the characters . _ - /, "
            "and begin with a letter or a digit."
        )
    if key in before:
        return gettext("the key %(key)s is already in another line.") % {"key": short(key)}
    return ""
