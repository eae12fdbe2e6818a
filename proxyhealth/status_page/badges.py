"""Badges: a name and a status as a small picture for other pages."""

from unicodedata import east_asian_width

from django.utils.html import format_html
from django.utils.translation import gettext as _

from proxyhealth.display import name_of
from proxyhealth.overview.headline import Headline, Level
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.status_page.contents import kind_of
from proxyhealth.texts import cut

_COLORS = {"up": "#1a7a3c", "down": "#c22a2a", "unknown": "#5b626a"}
_MAX_LABEL = 40
_HEIGHT = 20
_PADDING = 6


def badge_of_proxy(status: ProxyStatus, *, stale: bool) -> str:
    """Return the badge of one region."""
    kind = kind_of(status)
    words = {"up": _("up"), "down": _("down")}
    return _draw(name_of(status.proxy), kind, words.get(kind) or _("not known"), stale=stale)


def badge_of_all(headline: Headline, *, stale: bool) -> str:
    """Return the badge of all regions together."""
    kind = {Level.OK: "up", Level.DOWN: "down"}.get(headline.level, "unknown")
    words = {"up": _("all up"), "down": _("some down")}
    return _draw(_("status"), kind, words.get(kind) or _("not known"), stale=stale)


def _draw(label: str, kind: str, word: str, *, stale: bool) -> str:
    label = cut(label, _MAX_LABEL)
    if stale:  # whatever was known last, in the colour of what nobody knows
        word = _("not current") if kind == "unknown" else _("%(status)s, not current") % {"status": word}
        kind = "unknown"
    left, right = _width(label), _width(word)
    # The browser fits the texts into their widths, whatever its font is.
    return format_html(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">'
        "<title>{label}: {word}</title>"
        '<rect width="{width}" height="{height}" rx="3" fill="#3b4148"/>'
        '<path d="M{left} 0h{flat}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3h-{flat}z" fill="{color}"/>'
        '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
        '<text x="{x1}" y="14" textLength="{length1}" lengthAdjust="spacingAndGlyphs">{label}</text>'
        '<text x="{x2}" y="14" textLength="{length2}" lengthAdjust="spacingAndGlyphs">{word}</text>'
        "</g></svg>",
        width=left + right,
        height=_HEIGHT,
        left=left,
        flat=right - 3,
        color=_COLORS[kind],
        label=label,
        word=word,
        x1=_PADDING,
        x2=left + _PADDING,
        length1=left - 2 * _PADDING,
        length2=right - 2 * _PADDING,
    )


def _width(text: str) -> int:
    """Return the width of a text with its padding: about that of Verdana, so that little is stretched."""
    return 2 * _PADDING + max(7, sum(12 if east_asian_width(each) in "WF" else 7 for each in text))
