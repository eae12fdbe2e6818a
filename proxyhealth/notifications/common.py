"""The common part of several proxies: the beginning of their names, or a label."""

import re
from collections.abc import Mapping, Sequence

from django.utils.translation import gettext as _

from proxyhealth.texts import clean

MIN_PREFIX = 2
MAX_LABELS = 2
MAX_LENGTH = 40


def common_part(proxies: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """Return what all of these names and labels have in common, such as ``all in eu-…``, or ''."""
    if len(proxies) < 2:
        return ""
    prefix = common_prefix([name for name, _labels in proxies])
    labels = ", ".join(common_labels([labels for _name, labels in proxies]))
    if not prefix:
        return _("all with %(labels)s") % {"labels": labels} if labels else ""
    values = {"prefix": prefix, "labels": labels}
    return (_("all in %(prefix)s… (%(labels)s)") if labels else _("all in %(prefix)s…")) % values


def common_prefix(names: Sequence[str]) -> str:
    """Return the common beginning of the names that is a whole part of each: ``eu-``, or ``eu`` of eu1."""
    first, last = min(map(str.lower, names)), max(map(str.lower, names))
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    prefix = first[:length]
    match = re.match(r".*[-_.]", prefix)
    if match:
        prefix = match[0]
    elif not all(name[len(prefix) : len(prefix) + 1].isdigit() for name in names):
        return ""
    return clean(names[0][: len(prefix)], MAX_LENGTH) if len(prefix) >= MIN_PREFIX else ""


def common_labels(labels: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the labels that all have, as texts. Of many, return the first ones."""
    common = [
        (key, value)
        for key, value in sorted(labels[0].items())
        if all(other.get(key) == value for other in labels[1:])
    ]
    return [clean(f"{key}: {value}", MAX_LENGTH) for key, value in common[:MAX_LABELS]]
