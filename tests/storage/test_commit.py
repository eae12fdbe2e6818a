import json
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from django.core.cache import caches

from proxyhealth.exceptions import StoreError, Superseded
from proxyhealth.report import HealthReport
from proxyhealth.snapshot import RoundHistogram
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage import commit as commit_module
from proxyhealth.storage import merge, reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.confirmation import moment
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.merge import Round, merged
from tests.support.machine import at_most
from tests.support.values import NOW, a_round, changes, make_proxy, make_status, outbox


def test_commit__comes_back_equal():
    paris = make_status(
        make_proxy(),
        Status.UNHEALTHY,
        reason=Reason.REPORT_ERRORS,
        report=HealthReport(("kaputt ✕",), ("warm",)),
        latency=0.25,
    )
    begun = a_round()
    token = take_token()
    commit([paris], token, full_round=begun)
    snapshot = reader.read()
    assert dict(snapshot.statuses) == {paris.proxy.id: replace(paris, since=moment(token))}
    assert snapshot.number == 1
    assert snapshot.checked_at == begun.checked_at
    assert snapshot.duration == 0.3
    assert snapshot.stale_at == begun.checked_at + timedelta(seconds=180)
    assert not snapshot.stale
    assert abs((snapshot.committed_at - datetime.now(UTC)).total_seconds()) < 60


def test_commit__says_when_the_last_one_was_made(redis_client):
    assert reader.read().committed_at is None
    commit([], take_token(), full_round=a_round())
    round_at = reader.read().committed_at
    commit([make_status(make_proxy())], take_token())
    check_at = reader.read().committed_at
    assert check_at > round_at
    redis_client.flushall()
    commit([make_status(make_proxy())], take_token())
    assert reader.read().committed_at > check_at, "with the last copy it is that of the check all the same"


def test_commit__is_json_without_expiry(redis_client, snapshot_key):
    commit([make_status(make_proxy())], take_token(), full_round=a_round())
    document = json.loads(redis_client.get(snapshot_key))
    assert document["format"] == 3
    assert redis_client.ttl(snapshot_key) == -1


def test_commit__an_earlier_check_does_not_replace_a_later_one():
    proxy = make_proxy()
    slow = take_token()
    quick = take_token()
    commit([make_status(proxy, Status.OK)], quick)
    commit([make_status(proxy, Status.UNREACHABLE)], slow, full_round=a_round())
    assert reader.read().statuses[proxy.id].status is Status.OK


def test_commit__the_token_decides_whatever_the_clocks_say():
    proxy = make_proxy()
    commit([make_status(proxy, Status.OK)], take_token())
    earlier = replace(make_status(proxy, Status.UNREACHABLE), checked_at=NOW - timedelta(hours=1))
    commit([earlier], take_token())
    assert reader.read().statuses[proxy.id].status is Status.UNREACHABLE


def test_commit__a_slow_round_restores_no_deleted_proxy():
    proxy = make_proxy()
    commit([make_status(proxy)], take_token(), full_round=a_round())
    slow = take_token()
    commit([], take_token(), removed=[proxy.id])
    assert reader.read().statuses == {}
    commit([make_status(proxy)], slow, full_round=a_round())
    assert reader.read().statuses == {}


def test_commit__a_restored_proxy_is_seen_again():
    proxy = make_proxy()
    commit([], take_token(), removed=[proxy.id])
    commit([make_status(proxy)], take_token())
    assert list(reader.read().statuses) == [proxy.id]


def test_commit__a_round_removes_absent_proxies():
    gone, kept = make_proxy("gone"), make_proxy("kept")
    commit([make_status(gone), make_status(kept)], take_token(), full_round=a_round())
    commit([make_status(kept)], take_token(), full_round=a_round())
    assert list(reader.read().statuses) == [kept.id]


def test_commit__a_round_keeps_what_was_created_while_it_ran():
    old, new = make_proxy("old"), make_proxy("new")
    round_token = take_token()
    commit([make_status(new)], take_token())
    commit([make_status(old)], round_token, full_round=a_round())
    assert [status.proxy.name for status in reader.read().statuses.values()] == ["new", "old"]


def test_commit__a_check_of_a_few_changes_nothing_else():
    one, other = make_proxy("one"), make_proxy("other")
    begun = a_round()
    commit([make_status(one), make_status(other)], take_token(), full_round=begun)
    commit([make_status(one, Status.UNHEALTHY)], take_token())
    snapshot = reader.read()
    assert {s.proxy.name: s.status for s in snapshot.statuses.values()} == {
        "one": Status.UNHEALTHY,
        "other": Status.OK,
    }
    assert (snapshot.checked_at, snapshot.duration, snapshot.number) == (begun.checked_at, 0.3, 2)


def test_commit__an_earlier_round_that_ends_later_is_refused():
    slow, quick = take_token(), take_token()
    newer = Round(NOW + timedelta(seconds=60), 1)
    commit([], quick, full_round=newer)
    with pytest.raises(Superseded):
        commit([], slow, full_round=Round(NOW, 90))
    assert reader.read().checked_at == newer.checked_at
    assert sum(reader.read().rounds.counts) == 1


def test_commit__an_incomplete_round_keeps_lost_proxies():
    lost, found, gone, new = (make_proxy(name) for name in ("lost", "found", "gone", "new"))
    begun = a_round()
    commit([make_status(p) for p in (lost, found, gone)], take_token(), full_round=begun)
    part = Round(NOW + timedelta(hours=1), 3.0, frozenset({lost.id, new.id}), "a worker died")
    commit([make_status(found, Status.UNHEALTHY)], take_token(), full_round=part)
    snapshot = reader.read()
    assert {s.proxy.name: s.status for s in snapshot.statuses.values()} == {
        "found": "unhealthy",
        "lost": "ok",
    }
    assert (snapshot.checked_at, snapshot.duration) == (begun.checked_at, begun.duration)
    assert sum(snapshot.rounds.counts) == 1
    assert snapshot.outcomes == {"success": 1, "incomplete": 1}
    assert snapshot.error == "a worker died"


def test_commit__puts_changes_into_the_outbox():
    proxy = make_proxy()
    commit([make_status(proxy)], take_token())
    commit([make_status(proxy)], take_token())
    report = HealthReport.sanitized(["connection refused"])
    token = take_token()
    commit([make_status(proxy, Status.UNREACHABLE, reason=Reason.CONNECT, report=report)], token)
    commit([], take_token(), full_round=a_round())
    assert changes() == [
        ("paris", "unknown", "ok"),
        ("paris", "ok", "unreachable"),
        ("paris", "unreachable", "removed"),
    ]
    down = outbox()[1]
    assert (down["proxy"], down["token"], down["at"]) == (str(proxy.id), token, token)
    assert (down["reason"], down["errors"]) == ("connect", ["connection refused"])


def test_commit__sorts_by_name_without_regard_to_case():
    statuses = [make_status(make_proxy(name)) for name in ("b", "C", "a")]
    commit(statuses, take_token())
    assert [s.proxy.name for s in reader.read().statuses.values()] == ["a", "b", "C"]


def test_commit__many_at_once_lose_nothing():
    proxies = [make_proxy(f"p{i}") for i in range(24)]

    def commit_one(proxy):
        commit([make_status(proxy)], take_token())

    threads = [threading.Thread(target=commit_one, args=(proxy,)) for proxy in proxies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    snapshot = reader.read()
    assert set(snapshot.statuses) == {proxy.id for proxy in proxies}
    assert snapshot.number == 24


def test_commit__a_lone_surrogate_does_not_spoil_other_rows():
    odd = replace(make_proxy("odd"), display_name="\ud800")
    good = make_proxy("good")
    commit([make_status(odd), make_status(good)], take_token())
    assert reader.read().statuses[odd.id].proxy.display_name == "?"
    assert good.id in reader.read().statuses


DAMAGED = {
    "pickle": b"\x80\x05pickle",
    "another format": b'{"format": 99}',
    "cut off": b'{"format": 2, "commit": "%s", "number"' % (b"0" * 32),
    "empty": b"",
}


@pytest.mark.parametrize("value", DAMAGED.values(), ids=DAMAGED)
def test_commit__replaces_what_it_cannot_read(redis_client, snapshot_key, caplog, value):
    """Otherwise one bad value would make every round fail, for ever."""
    redis_client.set(snapshot_key, value)
    proxy = make_proxy()
    commit([make_status(proxy)], take_token(), full_round=a_round())
    assert list(reader.read().statuses) == [proxy.id]
    assert "snapshot replaced" in caplog.text


def test_commit__a_slow_check_restores_no_removed_proxy():
    proxy = make_proxy()
    commit([make_status(proxy)], take_token(), full_round=a_round())
    old, new = take_token(), take_token()
    commit([], new, full_round=a_round())
    commit([make_status(proxy)], old)
    assert reader.read().statuses == {}


def test_rounds__are_observed_in_the_histogram():
    for seconds in (0.0005, 0.3, 5.0, 31.0):
        commit([], take_token(), full_round=a_round(seconds))
    rounds = reader.read().rounds
    assert rounds.sum == pytest.approx(36.3005)
    by_bound = dict(zip([*RoundHistogram.BOUNDS, "more"], rounds.counts, strict=True))
    assert {bound for bound, count in by_bound.items() if count} == {0.001, 0.5, 5.0, "more"}


def test_removed__is_forgotten_in_time(redis_client, snapshot_key):
    id = UUID(int=1)
    token = take_token()
    commit([], token - 2 * merge._TOMBSTONE_AGE, removed=[id])
    assert str(id) in json.loads(redis_client.get(snapshot_key))["removed"]
    commit([], token)
    assert str(id) in json.loads(redis_client.get(snapshot_key))["removed"], "there was no full round since"
    commit([], take_token(), full_round=a_round())
    commit([], take_token())
    assert json.loads(redis_client.get(snapshot_key))["removed"] == {}


def test_commit__gives_up_after_too_many_conflicts(monkeypatch, redis_client, snapshot_key):
    monkeypatch.setattr("proxyhealth.storage.commit._COMMIT_ATTEMPTS", 3)
    merge, attempts = merged, []

    def merge_slowly(value, **options):
        attempts.append(1)
        store_of_somebody_else = json.dumps({"format": 2, "commit": f"{len(attempts):032x}"}).encode()
        redis_client.set(snapshot_key, store_of_somebody_else)
        return merge(value, **options)

    monkeypatch.setattr("proxyhealth.storage.commit.merged", merge_slowly)
    with pytest.raises(StoreError, match="changed during each of 3 attempts"):
        commit([], 1, full_round=a_round())
    assert len(attempts) == 3


def test_commit__a_late_removal_is_ignored():
    proxy = make_proxy()
    early = take_token()
    commit([make_status(proxy)], take_token())
    commit([], early, removed=[proxy.id])
    assert list(reader.read().statuses) == [proxy.id]


def test_commit__replaces_another_type_under_its_key(redis_client, snapshot_key, caplog):
    redis_client.rpush(snapshot_key, "not", "ours")
    commit([make_status(make_proxy())], take_token())
    assert reader.read().number == 1
    assert "its key holds another type" in caplog.text


@pytest.mark.parametrize("value", DAMAGED.values(), ids=DAMAGED)
def test_commit__a_check_leaves_what_it_cannot_read(redis_client, snapshot_key, caplog, value):
    redis_client.set(snapshot_key, value)
    result = commit([make_status(make_proxy())], take_token())
    assert not result.complete, "the caller requests a round"
    assert redis_client.get(snapshot_key) == value
    assert "check not committed, a round is needed" in caplog.text


def test_commit__the_lock_of_a_killed_process_expires(redis_client):
    """Before, the next commit waited for ten seconds."""
    key = caches["default"].make_key("proxyhealth:commit")
    lock = commit_module._commit_lock()
    lock.__enter__()  # and the process dies
    assert 0 < redis_client.pttl(key) <= 1_000
    with at_most(3):
        commit([make_status(make_proxy())], take_token())
    assert reader.read().number == 1


def test_commit__goes_on_without_the_lock_after_a_timeout(redis_client, monkeypatch):
    blocking = redis_client.lock(caches["default"].make_key("proxyhealth:commit"), timeout=0.5)
    assert blocking.acquire()
    commit([make_status(make_proxy())], take_token())
    assert reader.read().number == 1
