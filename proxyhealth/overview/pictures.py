"""Pictures as SVG: strips, sparklines, and the latency of a day. Their colours and sizes: ``pictures.css``.

They have neither scripts nor styles, so that a strict Content-Security-Policy allows them. No meaning depends
on colour alone: a cell that was down is the highest, and an unknown one the lowest.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import NamedTuple

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.timezone import localtime
from django.utils.translation import gettext as _

from proxyhealth.conf import conf
from proxyhealth.display import number
from proxyhealth.history.strips import Cell
from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.notifications.wording import duration
from proxyhealth.storage.probes import RecentProbe
from proxyhealth.utils import aware

_HEIGHT = 12  # of a strip
_BIN = 300  # seconds for which a curve has one point
_CURVE_HEIGHT = 100
_DAY = timedelta(days=1)

# Upper ends of the latency axis, in milliseconds, times a power of ten.
_NICE = (1, 2, 5, 10)


def strip(cells: Sequence[Cell], name: str = "") -> SafeString:
    """Return a strip with one place per cell. ``name`` begins its text alternative.

    Neighbours that are equal are one shape, so that a strip of a proxy without outages is small.
    """
    shapes = mark_safe("".join(map(_shape, _runs(cells))))  # noqa: S308  escaped
    return format_html(
        '<svg class="proxyhealth-strip" role="img" viewBox="0 0 {} 12" preserveAspectRatio="none">'
        '<title>{}</title>{}<path class="grid" d="M0 6h{}"/></svg>',
        len(cells),
        _named(name, _strip_text(cells)),
        shapes,
        len(cells),
    )


class _Run(NamedTuple):
    """Neighbouring cells that look alike, from ``begin`` to before ``end``."""

    begin: int
    end: int
    kind: str
    text: str


def _runs(cells: Sequence[Cell]) -> Iterator[_Run]:
    are_days = bool(cells) and cells[0].end - cells[0].start > _DAY / 2
    place = 0
    for kind, group in groupby(cells, _kind):
        same = list(group)
        # Those in which something changed have each their own text.
        parts = [same] if kind in ("up", "down", "unknown") else [[cell] for cell in same]
        for part in parts:
            yield _Run(place, place + len(part), kind, _cell_text(part[0], part[-1], kind, are_days))
            place += len(part)


def _kind(cell: Cell) -> str:
    # Less than a second is the rounding of a boundary.
    if cell.down >= 1:
        return "part" if cell.up >= 1 or cell.unknown >= 1 else "down"
    if cell.up < 1:
        return "unknown"
    return "gap" if cell.unknown >= 1 else "up"


# The bars of each kind: the class, the top, and the bottom.
_BARS = {
    "up": (("up", 4, 12),),
    "down": (("down", 0, 12),),
    "part": (("up", 5, 12), ("down", 0, 5)),
    "gap": (("up", 8, 12), ("unknown", 5, 7)),
    "unknown": (("unknown", 9, 12),),
}


def _shape(run: _Run) -> str:
    width = run.end - run.begin
    bars = "".join(
        f'<path class="{name}" d="M{run.begin} {top}h{width}v{bottom - top}h-{width}z"/>'
        for name, top, bottom in _BARS[run.kind]
    )
    return format_html("<g><title>{}</title>{}</g>", run.text, mark_safe(bars))  # noqa: S308  only numbers


def _cell_text(first: Cell, last: Cell, kind: str, are_days: bool) -> str:
    span = _days if are_days else _times
    values = {
        "time": span(first.start, last.end),
        "down": duration(first.down),
        "unknown": duration(first.unknown),
    }
    match kind:
        case "up":
            return _("%(time)s: up") % values
        case "down":
            return _("%(time)s: down all the time") % values
        case "unknown":
            return _("%(time)s: not known") % values
        case "gap":
            return _("%(time)s: up, not known for %(unknown)s") % values
    if first.unknown >= 1:
        return _("%(time)s: down for %(down)s, not known for %(unknown)s") % values
    return _("%(time)s: down for %(down)s") % values


def _days(start: datetime, end: datetime) -> str:
    first, last = (f"{_local(each):%Y-%m-%d}" for each in (start, end - timedelta(microseconds=1)))
    return first if first == last else _("%(begin)s to %(end)s") % {"begin": first, "end": last}


def _times(start: datetime, end: datetime) -> str:
    begin, stop = _local(start), _local(end)
    first = f"{begin:%H:%M}" if begin.date() == stop.date() else f"{begin:%Y-%m-%d %H:%M}"
    return _("%(begin)s to %(end)s") % {"begin": first, "end": f"{stop:%H:%M}"}


def _strip_text(cells: Sequence[Cell]) -> str:
    up, down, unknown = (sum(getattr(cell, name) for cell in cells) for name in ("up", "down", "unknown"))
    if up + down < 1:
        return _("nothing is known of this time")
    values = {"up": duration(up), "down": duration(down), "unknown": duration(unknown)}
    if unknown < 1:
        return _("up for %(up)s, down for %(down)s") % values
    return _("up for %(up)s, down for %(down)s, not known for %(unknown)s") % values


def sparkline(probes: Iterable[RecentProbe], hours: int = 6, now: datetime | None = None) -> SafeString:
    """Return the latency in the last hours as a small curve. Failed probes are bars below it."""
    curve = _Curve(probes, timedelta(hours=hours), now)
    return format_html(
        '<svg class="proxyhealth-sparkline" role="img" viewBox="0 0 {} {}" preserveAspectRatio="none">'
        "<title>{}</title>{}{}</svg>",
        curve.width,
        _CURVE_HEIGHT,
        _named(_("Last %(time)s") % {"time": duration(hours * 3600)}, curve.text()),
        _path("line", curve.line(curve.highest)),
        _path("failed", "".join(f"M{place}.5 60v40" for place in curve.failed)),
    )


def latency_chart(probes: Iterable[RecentProbe], now: datetime | None = None) -> SafeString:
    """Return the latency of the last 24 hours with its axes. Failures are bars below, and a shade behind.

    Each point of the curve is the slowest probe of five minutes. Where no probe was, there is no curve.
    """
    curve = _Curve(probes, _DAY, now)
    top = _nice(curve.highest * 1000) / 1000
    labels = [number(1000 * value, 0 if top > 0.004 else 2) for value in (top, top / 2, 0)]
    ticks = [curve.begin + timedelta(hours=hours) for hours in range(0, 25, 6)]
    return format_html(
        '<div class="proxyhealth-chart"><div class="proxyhealth-axis-y" aria-hidden="true" dir="ltr">{}</div>'
        '<svg class="proxyhealth-latency" role="img" viewBox="0 0 {} {}" preserveAspectRatio="none">'
        "<title>{}</title>{}{}{}{}</svg>"
        '<div class="proxyhealth-axis-x" aria-hidden="true" dir="ltr">{}</div></div>',
        format_html_join("", "<span>{}</span>", ((_("%(count)s ms") % {"count": each},) for each in labels)),
        curve.width,
        _CURVE_HEIGHT,
        _named(_("Latency of the last 24 hours"), curve.text()),
        _path("scale", f"M0 0h{curve.width}M0 50h{curve.width}M0 100h{curve.width}"),
        _failed_runs(curve),
        _path("failed", "".join(f"M{place}.5 90v10" for place in curve.failed)),
        _path("line", curve.line(top)),
        format_html_join("", "<span>{}</span>", ((f"{_local(tick):%H:%M}",) for tick in ticks)),
    )


def bar(begin: float, length: float, total: float) -> SafeString:
    """Return a part of a time as a bar. The text beside it has its length, so it has no text of its own."""
    scale = 100 / total if total else 0
    return format_html(
        '<svg class="proxyhealth-bar" aria-hidden="true" viewBox="0 0 101 10" preserveAspectRatio="none">'
        '<path d="M{} 0h{}v10H{}z"/></svg>',
        *(round(begin * scale), max(1, round(length * scale)), round(begin * scale)),
    )


class _Curve:
    """The probes from ``begin`` until now, in bins: the slowest latency of each, and the failures."""

    def __init__(self, probes: Iterable[RecentProbe], period: timedelta, now: datetime | None) -> None:
        now = now or datetime.now(UTC)
        self.begin = now - period
        self.width = int(period.total_seconds()) // _BIN
        self.probes = [probe for probe in probes if probe.at >= self.begin]
        self.slowest: dict[int, float] = {}
        self.failed: dict[int, int] = {}
        for probe in self.probes:
            place = self._place(probe)
            if probe.latency is not None:
                self.slowest[place] = max(probe.latency, self.slowest.get(place, 0))
            if probe.status in BAD_STATUSES:
                self.failed[place] = self.failed.get(place, 0) + 1
        self.highest = max(self.slowest.values(), default=0.0)

    def _place(self, probe: RecentProbe) -> int:
        # The clock of a worker may be ahead.
        return min(int((probe.at - self.begin).total_seconds()) // _BIN, self.width - 1)

    def line(self, top: float) -> str:
        """Return the curve as a path, with the latency ``top`` at its upper edge."""
        longest = 1 + int(conf.STALE_AFTER) // _BIN  # a longer time without a response is a gap
        parts, last = [], None
        for place, latency in sorted(self.slowest.items()):
            height = round(_CURVE_HEIGHT * (1 - latency / top)) if top else _CURVE_HEIGHT
            if last is not None and place - last <= longest:
                parts.append(f"L{place + 1} {height}")
            else:
                parts.append(f"M{place} {height}h1")  # also a single point is seen
            last = place
        return "".join(parts)

    def text(self) -> str:
        if not self.probes:
            return _("no probe is known")
        values = {
            "probes": number(len(self.probes)),
            "failed": number(sum(self.failed.values())),
            "lowest": number(
                1000 * min((p.latency for p in self.probes if p.latency is not None), default=0)
            ),
            "highest": number(1000 * self.highest),
        }
        if not self.slowest:
            return _("none of %(probes)s probes got a response") % values
        return _("%(lowest)s to %(highest)s ms, %(failed)s of %(probes)s probes failed") % values


def _failed_runs(curve: _Curve) -> SafeString:
    """Return a shade with a text behind the failures: one per run of bins."""
    shapes = []
    for begin, end in _neighbours(sorted(curve.failed)):
        start = curve.begin + timedelta(seconds=begin * _BIN)
        time = _times(start, curve.begin + timedelta(seconds=end * _BIN))
        count = sum(curve.failed[place] for place in range(begin, end))
        text = _("%(time)s: failed probes: %(count)s") % {"time": time, "count": number(count)}
        shapes.append((text, begin, end - begin))
    return format_html_join(
        "", '<rect class="shade" x="{1}" y="0" width="{2}" height="100"><title>{0}</title></rect>', shapes
    )


def _neighbours(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the runs of successive numbers, each with its first one and the one after its last."""
    for _key, group in groupby(enumerate(places), lambda item: item[1] - item[0]):
        run = [place for _index, place in group]
        yield run[0], run[-1] + 1


def _path(name: str, path: str) -> SafeString | str:
    return format_html('<path class="{}" d="{}"/>', name, path) if path else ""


def _nice(value: float) -> float:
    """Return the round number that is the upper end of an axis for ``value``."""
    power = 1.0
    while power * 10 < value:
        power *= 10
    return next((power * factor for factor in _NICE if power * factor >= value), power * 10)


def _named(name: str, text: str) -> str:
    return _("%(name)s: %(text)s") % {"name": name, "text": text} if name else text


def _local(moment: datetime) -> datetime:
    return localtime(aware(moment))
