"""The results in a row that confirm a status."""

from dataclasses import replace

import pytest

from proxyhealth.statuses import Reason, Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit, read_waiting
from proxyhealth.storage.confirmation import Instant, confirm, moment
from proxyhealth.storage.lease import take_token
from tests.storage.documents import changed_json
from tests.support.values import a_round, changes, make_proxy, make_status, outbox

pytestmark = pytest.mark.usefixtures("redis_client")

STATUSES = {
    "+": {"status": Status.OK},
    "-": {"status": Status.UNREACHABLE, "reason": Reason.CONNECT},
    "u": {"status": Status.UNHEALTHY, "reason": Reason.REPORT_ERRORS},
    "?": {"status": Status.UNREGISTERED},
}


@pytest.fixture
def probe(configure):
    """``probe("++-")`` commits these results, and returns the confirmed statuses in the same letters."""
    configure(FAILURE_THRESHOLD=3, RECOVERY_THRESHOLD=2)
    proxy = make_proxy()

    def commit_each(letters, proxy=proxy):
        confirmed = ""
        for letter in letters:
            commit([make_status(proxy, **STATUSES[letter])], take_token())
            status = reader.read_anew().statuses[proxy.id]
            confirmed += next(key for key, values in STATUSES.items() if values["status"] == status.status)
            assert status.last.status == STATUSES[letter]["status"]
        return confirmed

    commit_each.proxy = proxy
    return commit_each


@pytest.mark.parametrize(
    ("results", "statuses"),
    [
        ("+--+--+--", "+++++++++"),  # never three in a row
        ("+---+++", "+++--++"),
        ("+--u", "+++u"),  # three failures, of whichever kind
        ("---+-++", "------+"),  # a new proxy has its first result at once
        ("-u-", "-u-"),  # one failure and another
        ("-+u+-", "--uu-"),
        ("?+?-", "?+?-"),
        ("+-?-", "++?-"),
        ("+--?++--", "+++?++++"),
    ],
)
def test_confirm__results_in_a_row(probe, results, statuses):
    assert probe(results) == statuses


def test_confirm__default_thresholds_take_each_result(probe, configure):
    configure(FAILURE_THRESHOLD=1, RECOVERY_THRESHOLD=1)
    assert probe("+-+-u+") == "+-+-u+"


def test_confirm__since_is_the_first_result_of_the_row(probe):
    probe("+")
    first = take_token()
    probe("---")
    (_, entry) = outbox()
    assert first < entry["at"] < entry["token"]
    status = reader.read().statuses[probe.proxy.id]
    assert status.since == moment(entry["at"])
    assert changes() == [("paris", "unknown", "ok"), ("paris", "ok", "unreachable")]


def test_confirm__a_status_that_waits_keeps_its_report(probe):
    probe("+")
    before = reader.read().statuses[probe.proxy.id]
    probe("--")
    status = reader.read().statuses[probe.proxy.id]
    assert replace(status, raw=None) == before
    assert (status.raw.status, status.raw.reason) == (Status.UNREACHABLE, Reason.CONNECT)
    assert [id for _, id in read_waiting()] == [probe.proxy.id]
    probe("+")
    assert reader.read().statuses[probe.proxy.id].raw is None
    assert read_waiting() == []


def test_confirm__a_changed_url_counts_at_once(probe):
    probe("+-")
    moved = replace(probe.proxy, url="https://elsewhere.example.com")
    assert probe("-", moved) == "-"


def test_confirm__a_repeated_commit_counts_once(probe):
    probe("+")
    for _ in range(5):
        token = take_token()
        commit([make_status(probe.proxy, Status.UNREACHABLE)], token)
        commit([make_status(probe.proxy, Status.UNREACHABLE)], token)
        commit([make_status(probe.proxy)], take_token())
    assert changes() == [("paris", "unknown", "ok")]


def test_confirm__a_streak_of_another_version_begins_anew(probe, redis_client):
    probe("+--")
    with reader.open_cache() as cache:
        value = cache.client.get(cache.key("snapshot"))
        raw = {"status": "unreachable", "count": "2"}
        value = changed_json(lambda whole: whole["judgements"].update(raw=[raw]))(value)
        cache.client.set(cache.key("snapshot"), value)
    assert probe("---") == "++-"


@pytest.mark.parametrize("name", ["since", "checked_at", "tls_expires_at"])
def test_round__replaces_a_document_with_a_damaged_time(probe, caplog, name):
    """A merge keeps these times for as long as the status lasts."""
    probe("+-")
    with reader.open_cache() as cache:
        value = cache.client.get(cache.key("snapshot"))
        target = {name: ["yesterday"]} if name == "since" else {"raw": [{"status": "ok", name: "yesterday"}]}
        value = changed_json(lambda whole: whole["judgements"].update(target))(value)
        cache.client.set(cache.key("snapshot"), value)
    commit([make_status(probe.proxy)], take_token(), full_round=a_round())
    assert reader.read_anew().fault == ""
    assert "snapshot replaced" in caplog.text


def test_confirm__keeps_the_watched_time_of_the_first_result():
    row = {"name": "paris", "ticket": 1, "status": "ok", "since": "2026-11-22T08:00:00.000000Z"}
    found = {"name": "paris", "ticket": 2, "status": "unhealthy"}
    waiting, none = confirm(row, found, Instant(5_000_000, 3), 2)
    assert none is None
    confirmed, begin = confirm(waiting, found | {"ticket": 3}, Instant(9_000_000, 4), 2)
    assert begin == Instant(5_000_000, 3)
    assert confirmed["since"] == "1970-01-01T00:00:05.000000Z"
