"""The user in whose name a command writes, and the fields that a form would check."""

from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management.base import CommandError
from django.utils.translation import gettext as _

from proxyhealth.cli.exits import failure


def find_user(name: str | None) -> Any:
    """Return the user with this name, or None without a name. Raise ``CommandError``."""
    if name is None:
        return None
    users = get_user_model()
    try:
        return users._default_manager.get_by_natural_key(name)
    except (users.DoesNotExist, ValueError):
        raise failure(_("There is no user “%(name)s”. Give the name of a user.") % {"name": name}) from None


def invalid(error: ValidationError) -> CommandError:
    """Return the error about values that the form would refuse, each with its field."""
    if not hasattr(error, "error_dict"):
        return failure(" ".join(error.messages))
    texts = (f"{name}: {' '.join(messages)}" for name, messages in error.message_dict.items())
    return failure(" ".join(texts))
