"""``manage.py proxyhealth silence``: nothing that the form would refuse is saved."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from proxyhealth import health
from proxyhealth.models import Silence, WorkspaceProxy
from tests.cli.conftest import run

pytestmark = pytest.mark.django_db

ADD = ("silence", "add")


@pytest.fixture(autouse=True)
def rows(db):
    for name, region in (("paris", "eu"), ("oslo", "eu"), ("sydney", "au")):
        WorkspaceProxy.objects.create(name=name, labels={"region": region})


def test_add__has_its_author_and_names_the_proxies(admin_user):
    result = run(*ADD, "region:eu", "sydney", "--for", "2h 30min", "--reason", "upgrade", "--by", "admin")
    row = Silence.objects.get()
    assert result.status == 0
    assert result.out.startswith(f"Silence {row.pk}: it silences 3 of 3 proxies until ")
    assert result.out.endswith(": oslo, paris, sydney\n")
    assert row.ends - row.starts == timedelta(hours=2.5)
    assert (row.proxies, row.reason, row.created_by) == ("region:eu\nsydney", "upgrade", admin_user)
    assert not health.silenced()  # they are in no snapshot yet


def test_add__later_and_json():
    result = run(*ADD, "*", "--for", "3d", "--in", "1h", "--reason", "work", "--json")
    row = Silence.objects.get()
    assert row.starts > timezone.now() + timedelta(minutes=59)
    silence = result.json["silence"]
    assert (silence["id"], silence["matches"]) == (row.pk, ["oslo", "paris", "sydney"])
    assert "from " in run("silence", "list").out


def test_add__warns_if_it_matches_no_proxy():
    assert "it matches no proxy now" in run(*ADD, "nothing-*", "--for", "1h", "--reason", "x").out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["paris, oslo", "--for", "2h"], "proxies: Line 1, “paris, oslo”: write each pattern on a line"),
        (["eu west", "--for", "2h"], "proxies: Line 1, “eu west”: a name has letters"),
        ([" ", "--for", "2h"], "proxies: "),
        (["*", "--for", "0"], "ends: It must end after it starts."),
        (["*", "--for", "500d"], "ends: A silence lasts a year at most."),
        (["*", "--for", "999999999d"], "A silence lasts a year at most."),
        (["*", "--for", "2h", "--reason", ""], "reason: This field cannot be blank."),
        (["*", "--for", "2h", "--reason", "x" * 256], "reason: "),
        (["*", "--for", "2h", "--by", "nobody"], "There is no user “nobody”."),
    ],
)
def test_add__nonsense_is_refused(args, message):
    result = run(*ADD, "--reason", "x", *args)
    assert result[:2] == (2, "")
    assert result.err.startswith(message)
    assert not Silence.objects.exists()


def test_add__duration_that_cannot_be_read():
    result = run(*ADD, "*", "--for", "soon", "--reason", "x")
    assert "write a number and a unit (s, min, h or d), such as 2h or 90min, not 'soon'" in result.err


def make(begin, end, **values):
    now = timezone.now()
    hour = timedelta(hours=1)
    values = {"proxies": "paris", "reason": "work", **values}
    return Silence.objects.create(starts=now + begin * hour, ends=now + end * hour, **values)


def test_list__in_force_and_to_come():
    ended, current, coming = make(-3, -2), make(-1, 1), make(1, 2)
    assert [each["id"] for each in run("silence", "list", "--json").json["silences"]] == [
        coming.pk,
        current.pk,
    ]
    assert [line.split()[0] for line in run("silence", "list").lines[1:]] == [str(coming.pk), str(current.pk)]
    assert "ended" in run("silence", "list", "--all").out
    assert ended.pk in [each["id"] for each in run("silence", "list", "--all", "--json").json["silences"]]


def test_list__empty_and_invalid_rows():
    assert run("silence", "list") == (0, "There are no silences.\n", "")
    make(-1, 1, proxies="a,b")
    assert "ignored: Line 1, “a,b”" in run("silence", "list").out


def test_end__now_or_before_it_begins():
    current, coming = make(-1, 1), make(1, 2)
    result = run("silence", "end", str(current.pk), str(coming.pk))
    assert result == (0, f"Silences {current.pk}, {coming.pk} are over.\n", "")
    current.refresh_from_db()
    assert current.ends <= timezone.now()
    assert not Silence.objects.filter(pk=coming.pk).exists()


def test_end__all_or_none():
    current, ended = make(-1, 1), make(-3, -2)
    for other, message in ((ended.pk, f"Silence {ended.pk} has ended."), (999, "There is no silence 999.")):
        result = run("silence", "end", str(current.pk), str(other))
        assert result[:2] == (2, "")
        assert result.err.startswith(f"{message} Nothing was changed.")
    before = current.ends
    current.refresh_from_db()
    assert current.ends == before
