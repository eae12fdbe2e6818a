"""The forms of channels: one per kind, with the fields that fit it."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.utils.text import capfirst
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from proxyhealth.admin.durations import HumanDurationField
from proxyhealth.models import Channel, Transition
from proxyhealth.models.notifications import default_statuses
from proxyhealth.notifications.apprise_channel import validate_service
from proxyhealth.statuses import Status
from proxyhealth.targets import new_secret
from proxyhealth.validators import validate_text

STATUSES = {
    Status.UNREACHABLE.value: _("unreachable: the proxy does not respond"),
    Status.UNHEALTHY.value: _("unhealthy: the proxy responds, but reports errors or no valid report"),
    Status.UNREGISTERED.value: _("unregistered: the proxy has no URL any more"),
    Transition.REMOVED: _("removed: the proxy was deleted"),
}


class ChannelForm(forms.ModelForm):  # type: ignore[type-arg]  # generic for type checkers only
    """The fields of all kinds.

    Neither the target nor the secret of a saved channel is in the form. An empty field keeps it.
    """

    kind: ClassVar[str] = ""
    target_label: ClassVar[Any] = _("Target")
    target_help: ClassVar[Any] = ""

    target = forms.CharField(max_length=4_000, widget=forms.Textarea(attrs={"rows": 3, "cols": 60}))
    # The hidden initial value: another process may disable the channel while the form is open.
    enabled = forms.BooleanField(
        required=False,
        initial=True,
        label=_("Enabled"),
        show_hidden_initial=True,
        help_text=_(
            "A disabled channel is told nothing. Enabled again, it is told what happens from then on."
        ),
    )
    proxies = forms.CharField(
        required=False,
        max_length=10_000,
        label=_("Which proxies"),
        widget=forms.Textarea(attrs={"rows": 4, "cols": 60}),
        help_text=_(
            "One pattern on each line: of names, such as eu-*, or of a label, such as region:eu. "
            "Empty: all proxies."
        ),
    )
    statuses = forms.MultipleChoiceField(
        choices=list(STATUSES.items()),
        initial=default_statuses,
        label=_("Which statuses"),
        widget=forms.CheckboxSelectMultiple,
        help_text=_("The begin of each of these is told. The end of what was told is always told."),
        error_messages={"required": _("Choose at least one status.")},
    )
    delay = HumanDurationField(
        label=_("Delay"),
        help_text=_("Tell only what lasts longer, for example 5 min. Empty: at once."),
    )
    remind_every = HumanDurationField(
        label=_("Remind every"),
        lowest=60,
        highest=30 * 86_400,
        help_text=_(
            "Repeat what goes on, for example every 4 h, until somebody acknowledges it. Empty: never."
        ),
    )

    class Meta:
        model = Channel
        fields: Sequence[str] = (
            *("name", "target", "enabled", "proxies", "statuses", "delay", "remind_every"),
        )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made_secret = ""  # what people are shown once
        is_new = self.instance.pk is None
        if is_new:
            self.instance.kind = self.kind
            for name in ("enabled", "new_secret"):
                self.fields.pop(name, None)
        self.initial["target"] = ""
        if "name" in self.fields:
            self.fields["name"].validators.append(validate_text)
            self.fields["name"].help_text = _("As messages and pages call this channel.")
        if target := self.fields.get("target"):
            target.required = is_new
            target.label, target.help_text = capfirst(str(self.target_label)), self.target_help
            if not is_new:
                target.label = gettext("Replace: %(target)s") % {"target": self.target_label}
                keep = gettext("Empty: keep the present one.")
                target.help_text = f"{keep} {target.help_text}"

    def clean_target(self) -> str:
        target = "\n".join(line.strip() for line in self.cleaned_data["target"].splitlines()).strip()
        return target or str(self.instance.target)


class EmailForm(ChannelForm):
    kind = Channel.Kind.EMAIL.value
    target_label = _("recipients")
    target_help = _("One email address on each line. All of them are in each mail, so they see each other.")


class WebhookForm(ChannelForm):
    kind = Channel.Kind.WEBHOOK.value
    target_label = _("URL")
    target_help = _("It gets a POST request with JSON, with a signature by the secret of this channel.")

    secret = forms.CharField(
        required=False,
        min_length=16,
        max_length=128,
        label=_("Secret"),
        widget=forms.TextInput(attrs={"autocomplete": "off", "class": "vTextField"}),
        help_text=_("What the receiver verifies the signatures with. Empty: one is made, and shown once."),
    )
    new_secret = forms.BooleanField(
        required=False,
        label=_("Make a new secret"),
        help_text=_("It replaces the present one at once, and is shown once after saving."),
    )

    class Meta(ChannelForm.Meta):
        fields = (*ChannelForm.Meta.fields, "secret")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["secret"] = ""
        if self.instance.pk and "secret" in self.fields:
            self.fields["secret"].label = _("Replace the secret")
            self.fields["secret"].help_text = _("Empty: keep the present one.")

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        typed = data.get("secret") or ""
        if typed and data.get("new_secret"):
            self.add_error(
                "new_secret", ValidationError(_("Enter a secret, or have one made, but not both."))
            )
        elif not self.errors and not typed:
            if data.get("new_secret") or not self.instance.secret:
                self.made_secret = new_secret()
            data["secret"] = self.made_secret or self.instance.secret
        return data


class AppriseForm(ChannelForm):
    kind = Channel.Kind.APPRISE.value
    target_label = _("address of Apprise")
    target_help = _(
        "Such as slack://TokenA/TokenB/TokenC or tgram://Token/ChatID. The documentation of Apprise has the "
        "address of each service."
    )

    def clean_target(self) -> str:
        target = super().clean_target()
        if "target" in self.changed_data:
            validate_service(target)
        return target


FORMS: dict[str, type[ChannelForm]] = {form.kind: form for form in (EmailForm, WebhookForm, AppriseForm)}


def kinds() -> list[dict[str, Any]]:
    """Return the kinds of channels to choose from, with a description each."""
    has_apprise = find_spec("apprise") is not None
    return [
        {
            "kind": Channel.Kind.EMAIL.value,
            "title": _("Email"),
            "text": _("A mail to one or more people, or to a mailing list."),
        },
        {
            "kind": Channel.Kind.WEBHOOK.value,
            "title": _("Webhook"),
            "text": _("A signed POST request with JSON to a program of yours."),
        },
        {
            "kind": Channel.Kind.APPRISE.value,
            "title": _("Chat or pager"),
            "text": _("Slack, Teams, Discord, Telegram, PagerDuty, ntfy, and many others, by Apprise."),
            "missing": "" if has_apprise else "proxyhealth[apprise]",
        },
    ]
