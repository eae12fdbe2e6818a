"""The times of silences: one-off and weekly ones, changes of clocks, unions, and invalid rows."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, time, timedelta

import pytest
from django.core.exceptions import ValidationError
from django.db import connection
from django.utils import timezone

from proxyhealth.models import Silence
from proxyhealth.notifications.silences import Silences, Times

NIGHTLY = [0, 1, 2, 3, 4, 5, 6]


def at(text: str) -> datetime:
    """``at("2026-03-29 01:00")`` is a time in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def one_off(starts: str, ends: str, proxies: str = "*") -> Silence:
    return Silence(proxies=proxies, starts=at(starts), ends=at(ends), reason="work")


def weekly(
    times: str,
    zone: str = "Europe/Paris",
    weekdays: list[int] = NIGHTLY,
    starts: str = "2026-01-01",
    ends: str = "2026-12-31",
    proxies: str = "*",
) -> Silence:
    """``weekly("22:00-06:00")`` is a silence of each night."""
    begin, end = map(time.fromisoformat, times.split("-")) if times else (None, None)
    silence = one_off(starts, ends, proxies)
    silence.weekdays, silence.begin, silence.end, silence.time_zone = weekdays, begin, end, zone
    return silence


def until(now: str, *rows: Silence, name: str = "paris", labels: dict[str, str] | None = None) -> str:
    """Return the end in UTC, as text, or ``""``."""
    end = Silences(map(Times.of, rows)).until(name, labels or {}, at(now))
    return f"{end:%Y-%m-%d %H:%M}" if end else ""


def window(row: Silence, now: str) -> tuple[str, str] | None:
    found = Times.of(row).window(at(now))
    return found and (f"{found.start:%m-%d %H:%M}", f"{found.stop:%m-%d %H:%M}")


# One-off


def test_one_off__from_its_start_until_before_its_end():
    silence = one_off("2026-05-01 10:00", "2026-05-01 12:00")
    assert until("2026-05-01 09:59:59", silence) == ""
    assert until("2026-05-01 10:00", silence) == "2026-05-01 12:00"
    assert until("2026-05-01 11:59:59", silence) == "2026-05-01 12:00"
    assert until("2026-05-01 12:00", silence) == ""


def test_one_off__only_chosen_proxies():
    silence = one_off("2026-05-01 10:00", "2026-05-01 12:00", "oslo\nregion:eu")
    now = "2026-05-01 11:00"
    assert until(now, silence) == ""
    assert until(now, silence, name="Oslo")
    assert until(now, silence, labels={"region": "eu"})
    assert until(now, silence, labels={"region": "us"}) == ""


# Weekly


def test_weekly__only_on_its_weekdays_and_between_its_times():
    silence = weekly("10:00-11:30", "UTC", [0, 2])  # Monday and Wednesday
    assert until("2026-05-04 10:30", silence) == "2026-05-04 11:30"
    assert until("2026-05-04 11:30", silence) == ""
    assert until("2026-05-05 10:30", silence) == ""
    assert until("2026-05-06 10:00", silence) == "2026-05-06 11:30"


def test_weekly__across_midnight_belongs_to_the_day_of_its_begin():
    silence = weekly("22:00-06:00", "UTC", [4])  # Friday night
    assert until("2026-05-08 21:59", silence) == ""
    assert until("2026-05-08 22:00", silence) == "2026-05-09 06:00"
    assert until("2026-05-09 05:59", silence) == "2026-05-09 06:00"
    assert until("2026-05-09 22:00", silence) == ""
    assert until("2026-05-08 05:00", silence) == ""


def test_weekly__without_times_is_whole_days():
    silence = weekly("", "Asia/Tokyo", [5, 6])
    assert window(silence, "2026-05-06") == ("05-08 15:00", "05-09 15:00")
    assert until("2026-05-08 15:00", silence) == "2026-05-10 15:00"


def test_weekly__equal_times_are_24_hours():
    assert window(weekly("12:00-12:00", "UTC", [0]), "2026-05-04") == ("05-04 12:00", "05-05 12:00")


def test_weekly__begins_and_ends_with_the_silence():
    silence = weekly("22:00-06:00", "UTC", starts="2026-05-04 23:00", ends="2026-05-06 01:00")
    assert until("2026-05-04 22:30", silence) == ""
    assert until("2026-05-04 23:00", silence) == "2026-05-05 06:00"
    assert until("2026-05-06 00:30", silence) == "2026-05-06 01:00"
    assert until("2026-05-06 01:00", silence) == ""
    assert window(silence, "2026-05-06 01:00") is None


def test_weekly__next_window():
    silence = weekly("22:00-06:00", "UTC", [4], starts="2026-05-01")
    assert window(silence, "2025-11-01") == ("05-01 22:00", "05-02 06:00")
    assert window(silence, "2026-05-02 05:00") == ("05-01 22:00", "05-02 06:00")
    assert window(silence, "2026-05-02 06:00") == ("05-08 22:00", "05-09 06:00")


# Changes of clocks. In Paris, they go from 2:00 to 3:00 on 2026-03-29, and from 3:00 to 2:00 on 2026-10-25.


@pytest.mark.parametrize(
    ("times", "now", "expected"),
    [
        # A night of 7 hours, and one of 9.
        ("22:00-06:00", "2026-03-28 12:00", ("03-28 21:00", "03-29 04:00")),
        ("22:00-06:00", "2026-10-24 12:00", ("10-24 20:00", "10-25 05:00")),
        # A begin that does not exist is the change, an end is as late as without the change.
        ("02:30-04:00", "2026-03-29", ("03-29 01:00", "03-29 02:00")),
        ("01:00-02:30", "2026-03-29", ("03-29 00:00", "03-29 01:30")),
        ("02:15-02:45", "2026-03-29", ("03-29 01:00", "03-29 01:45")),
        # A begin that exists twice is the first, an end the last.
        ("02:30-04:00", "2026-10-25", ("10-25 00:30", "10-25 03:00")),
        ("01:00-02:30", "2026-10-25", ("10-24 23:00", "10-25 01:30")),
        ("02:15-02:45", "2026-10-25", ("10-25 00:15", "10-25 01:45")),
        # Times at the change itself. The hour that the clocks skip is the one after it.
        ("02:00-03:00", "2026-03-29", ("03-29 01:00", "03-29 02:00")),
        ("03:00-04:00", "2026-03-29", ("03-29 01:00", "03-29 02:00")),
        ("03:00-04:00", "2026-10-25", ("10-25 02:00", "10-25 03:00")),
    ],
)
def test_change_of_clocks__paris(times, now, expected):
    assert window(weekly(times), now) == expected


def test_change_of_clocks__at_midnight():
    # In Havana, 2026-03-08 begins at 1:00, and 2026-11-01 has the hour after midnight twice.
    assert window(weekly("", "America/Havana", [6]), "2026-03-07") == ("03-08 05:00", "03-09 04:00")
    assert window(weekly("", "America/Havana", [6]), "2026-10-31") == ("11-01 04:00", "11-02 05:00")


def test_change_of_clocks__half_an_hour():
    # Lord Howe: from 2:00 to 2:30 on 2026-10-04.
    assert window(weekly("02:10-03:00", "Australia/Lord_Howe"), "2026-10-03 15:20") == (
        "10-03 15:30",
        "10-03 16:00",
    )


def test_change_of_clocks__a_day_that_does_not_exist():
    silence = weekly("", "Pacific/Apia", [4], starts="2011-12-20", ends="2012-01-30")
    assert window(silence, "2011-12-25") == ("01-05 10:00", "01-06 10:00")  # there was no Friday the 30th


# Unions


def test_union__overlapping_ones_end_together():
    first, second = (
        one_off("2026-05-01 01:00", "2026-05-01 02:00"),
        one_off("2026-05-01 01:30", "2026-05-01 03:00"),
    )
    for rows in ([first, second], [second, first]):
        assert until("2026-05-01 01:10", *rows) == "2026-05-01 03:00"
        assert until("2026-05-01 02:30", *rows) == "2026-05-01 03:00"


def test_union__one_that_follows_at_once_belongs_to_it():
    rows = [
        one_off("2026-05-01 01:00", "2026-05-01 02:00"),
        one_off("2026-05-01 02:00", "2026-05-01 02:30"),
        one_off("2026-05-01 02:31", "2026-05-01 04:00"),
    ]
    assert until("2026-05-01 01:10", *rows) == "2026-05-01 02:30"


def test_union__a_silence_of_other_proxies_is_not_in_it():
    rows = [
        one_off("2026-05-01 01:00", "2026-05-01 02:00", "paris"),
        one_off("2026-05-01 01:30", "2026-05-01 03:00", "oslo"),
    ]
    assert until("2026-05-01 01:45", *rows) == "2026-05-01 02:00"


def test_union__all_days_of_a_week_end_with_the_silence():
    rows = [weekly("", weekdays=[0, 1, 2, 3]), weekly("", weekdays=[4, 5, 6])]
    assert until("2026-05-01", *rows) == "2026-12-31 00:00"
    assert until("2026-05-01", weekly("06:00-06:00")) == "2026-12-31 00:00"


# Rows


def save(minutes: float = 60, **values: object) -> Silence:
    now = timezone.now()
    row = {"proxies": "*", "starts": now - timedelta(minutes=1), "ends": now + timedelta(minutes=minutes)}
    return Silence.objects.create(reason="work", **{**row, **values})


@pytest.mark.django_db
def test_read__one_query_without_ended_silences(django_assert_num_queries):
    save()
    save(60, proxies="region:eu", weekdays=NIGHTLY, time_zone="UTC")
    old = timezone.now() - timedelta(days=3)
    save(starts=old, ends=old + timedelta(hours=1))
    with django_assert_num_queries(1):
        found = Silences.read()
    assert len(found._all) == 2


@pytest.mark.django_db
def test_read__a_deleted_or_shortened_silence_counts_at_once():
    silence, now = save(), datetime.now(UTC)
    assert Silences.read().until("paris", {}, now)
    silence.ends = timezone.now()
    silence.save()
    assert Silences.read().until("paris", {}, datetime.now(UTC)) is None
    assert Silences.read().until("paris", {}, now), "it was silenced then"
    silence.delete()
    assert Silences.read().until("paris", {}, now) is None


@pytest.mark.django_db
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Chicago"])
def test_read__without_time_zones_in_the_database(settings, zone):
    settings.USE_TZ, settings.TIME_ZONE = False, zone
    silence = save(30)
    assert silence.starts.tzinfo is None
    end = Silences.read().until("paris", {}, timezone.now())
    assert abs(end - datetime.now(UTC) - timedelta(minutes=30)) < timedelta(minutes=1)


INVALID = {
    "zone": ("time_zone", "Mars/Base"),
    "directory": ("time_zone", "Europe"),
    "path": ("time_zone", "../../etc/passwd"),
    "no-zone": ("time_zone", ""),
    "day": ("weekdays", "[7]"),
    "days": ("weekdays", '"monday"'),
    "selector": ("proxies", "eu west"),
    "no-selector": ("proxies", "\n"),
    "one-time": ("begin", None),
}


@pytest.mark.django_db
@pytest.mark.parametrize("case", INVALID)
def test_read__invalid_rows_are_logged_and_ignored(caplog, case):
    bad = save(weekdays=NIGHTLY, begin=time(1), end=time(1), time_zone="UTC")
    column, value = INVALID[case]
    with connection.cursor() as cursor:
        cursor.execute(
            f'UPDATE proxyhealth_silence SET "{column}" = %s WHERE id = %s',
            [value, bad.pk],
        )
    save(proxies="oslo")
    now = datetime.now(UTC)
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            found = Silences.read()
            assert found.until("paris", {}, now) is None
            assert found.until("oslo", {}, now)
    assert len(caplog.messages) == 1, "each process logs it once"
    assert f"id {bad.pk} is ignored, correct or delete it: " in caplog.messages[0]


@pytest.mark.django_db
@pytest.mark.sqlite
@pytest.mark.parametrize("column", ["starts", "ends", "begin", "time_zone"])
def test_read__unreadable_rows_are_logged_and_ignored(caplog, column):
    bad = save(weekdays=NIGHTLY, begin=time(1), end=time(1), time_zone="UTC")
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE proxyhealth_silence SET {column} = 'zzzz' WHERE id = %s", [bad.pk])
    save(proxies="oslo")
    now = datetime.now(UTC)
    with caplog.at_level(logging.ERROR):
        found = Silences.read()
    assert found.until("paris", {}, now) is None
    assert found.until("oslo", {}, now)
    assert len(caplog.messages) == 1


# Validation


def faults_of(row: Silence) -> dict[str, list[str]]:
    with pytest.raises(ValidationError) as caught:
        row.full_clean()
    return caught.value.message_dict


def test_clean__times():
    assert list(faults_of(one_off("2026-05-01", "2026-05-01"))) == ["ends"]
    assert "a year at most" in str(faults_of(one_off("2026-01-01", "2027-01-03")))
    assert list(faults_of(one_off("9998-06-01", "9999-01-01"))) == ["ends"]
    assert list(faults_of(Silence(proxies="*", reason="work"))) == ["starts", "ends"]
    one_off("2026-01-01", "2027-01-01").full_clean()


def test_clean__repetition():
    assert list(faults_of(weekly("01:00-02:00", weekdays=[]))) == ["begin", "end"]
    assert list(faults_of(weekly("01:00-02:00", zone=""))) == ["time_zone"]
    assert list(faults_of(weekly("01:00-02:00", zone="Mars/Base"))) == ["time_zone"]
    for weekdays in ([7], [-1], [True], [1, 1], ["1"], "1", 1, {"1": 1}):
        assert list(faults_of(weekly("01:00-02:00", weekdays=weekdays))) == ["weekdays"]
    half = weekly("01:00-02:00")
    half.end = None
    assert list(faults_of(half)) == ["end"]
    weekly("22:00-06:00").full_clean()
    weekly("").full_clean()


def test_clean__selectors():
    assert list(faults_of(one_off("2026-05-01", "2026-05-02", ""))) == ["proxies"]
    assert list(faults_of(one_off("2026-05-01", "2026-05-02", "eu west"))) == ["proxies"]
