from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import pytest
from django.utils import translation

from proxyhealth.history.strips import Cell
from proxyhealth.overview.pictures import latency_chart, sparkline, strip
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage.probes import RecentProbe

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)


def half_hours(*parts):
    """Return cells until now with these seconds of up, down and unknown."""
    first = NOW - timedelta(minutes=30) * len(parts)
    edges = [first + timedelta(minutes=30) * place for place in range(len(parts) + 1)]
    return [Cell(edges[place], edges[place + 1], *part) for place, part in enumerate(parts)]


def days(*parts):
    return [
        Cell(datetime(2026, 11, 1 + place, tzinfo=UTC), datetime(2026, 11, 2 + place, tzinfo=UTC), *part)
        for place, part in enumerate(parts)
    ]


def titles(picture):
    """Return the texts of a picture, the first of which is that of the whole."""
    root = ElementTree.fromstring(picture)
    return [title.text for title in root.iter("title")]


def probes(*minutes, latency=0.02, status=Status.OK):
    reason = Reason.NONE if latency is not None else Reason.TIMEOUT
    return [RecentProbe(NOW - timedelta(minutes=each), status, reason, latency) for each in minutes]


def failures(*minutes):
    return probes(*minutes, latency=None, status=Status.UNREACHABLE)


UP, DOWN, UNKNOWN = (1800, 0, 0), (0, 1800, 0), (0, 0, 1800)


def test_strip__says_in_words_what_it_shows():
    picture = strip(half_hours(UP, UP, DOWN, (1200, 600, 0), UNKNOWN, (1500, 0, 300), (60, 40, 1700)), "24 h")
    assert titles(picture) == [
        "24 h: up for 1 h 46 min, down for 40 min 40 s, not known for 1 h 3 min",
        "08:30 to 09:30: up",
        "09:30 to 10:00: down all the time",
        "10:00 to 10:30: down for 10 min",
        "10:30 to 11:00: not known",
        "11:00 to 11:30: up, not known for 5 min",
        "11:30 to 12:00: down for 40 s, not known for 28 min 20 s",
    ]


def test_strip__of_days_names_their_dates():
    up = (86_400, 0, 0)
    assert titles(strip(days(up, up, (0, 86_400, 0))))[1:] == [
        "2026-11-01 to 2026-11-02: up",
        "2026-11-03: down all the time",
    ]


def test_strip__of_which_nothing_is_known():
    assert titles(strip(half_hours(UNKNOWN, UNKNOWN)))[0] == "nothing is known of this time"


def test_strip__shows_each_kind_by_its_height_too():
    picture = strip(half_hours(UP, DOWN, UNKNOWN))
    assert re.findall(r'class="(\w+)" d="M\d \d+h1v(\d+)', picture) == [
        ("up", "8"),
        ("down", "12"),
        ("unknown", "3"),
    ]


def test_strips__are_small():
    quiet = strip(days(*[(86_400, 0, 0)] * 29))
    assert len(quiet) < 450
    worst = strip(half_hours(*[(60, 40, 1700)] * 90))
    assert len(50 * worst) < 1_500_000


@pytest.mark.parametrize("draw", [sparkline, latency_chart])
def test_curves__say_in_words_what_they_show(draw):
    found = titles(draw([*probes(9, 8), *probes(7, latency=1.2345), *failures(3, 2)], now=NOW))[0]
    assert found.endswith(": 20 to 1,234 ms, 2 of 5 probes failed")


@pytest.mark.parametrize("draw", [sparkline, latency_chart])
def test_curves__without_probes_and_without_responses(draw):
    assert titles(draw([], now=NOW))[0].endswith(": no probe is known")
    assert titles(draw(failures(1, 2), now=NOW))[0].endswith(": none of 2 probes got a response")


def line_of(picture):
    return re.search(r'class="line" d="([^"]*)"', picture)[1]


def test_curve__leaves_gaps_blank():
    assert line_of(sparkline(probes(*range(9, 0, -1)), now=NOW)).count("M") == 1
    assert line_of(sparkline(probes(*range(59, 40, -1), *range(9, 0, -1)), now=NOW)).count("M") == 2


def test_curve__draws_failures_where_they_were():
    picture = latency_chart([*probes(61, 62), *failures(60, 59, 2)], now=NOW)
    assert 'class="failed" d="M276.5 90v10M287.5 90v10"' in picture
    assert titles(picture)[1:] == [
        "11:00 to 11:05: failed probes: 2",
        "11:55 to 12:00: failed probes: 1",
    ]


def test_curve__of_a_worker_whose_clock_is_ahead():
    assert 'd="M71.5 60v40"' in sparkline(failures(-2), now=NOW)


def test_curve__omits_what_is_older():
    assert titles(sparkline(probes(6 * 60 + 1), now=NOW))[0] == "Last 6 h: no probe is known"


@pytest.mark.parametrize(
    ("latency", "top"), [(0.0004, "1.00"), (0.02, "20"), (0.021, "50"), (9.99, "10,000")]
)
def test_chart__has_a_round_scale(latency, top):
    assert f"<span>{top} ms</span>" in latency_chart(probes(1, latency=latency), now=NOW)


def test_chart__of_a_day_at_each_second_is_small():
    every = [NOW - timedelta(seconds=each) for each in range(86_400, 0, -40)]
    many = [RecentProbe(at, Status.OK, Reason.NONE, 0.02 + at.minute / 100) for at in every]
    assert len(latency_chart(many, now=NOW)) < 6_000
    assert len(sparkline(many, now=NOW)) < 1_500


def test_pictures__need_no_style_and_escape_their_texts():
    pictures = [
        strip(half_hours(UP, DOWN), "<b>"),
        sparkline(probes(1), now=NOW),
        latency_chart(failures(1), NOW),
    ]
    for picture in pictures:
        assert "style" not in picture
        assert "<b>" not in picture
        assert 'role="img"' in picture


def test_pictures__in_another_language():
    with translation.override("de"):
        assert "1.234 ms" in titles(sparkline(probes(1, latency=1.2345), now=NOW))[0]
