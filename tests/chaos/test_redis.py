"""Redis is killed, emptied, moved, or says nothing."""

from __future__ import annotations

import signal
import socket
import time

import pytest

from tests.chaos.deployment import HOOKS
from tests.chaos.polling import LIMIT as POLL_LIMIT
from tests.chaos.polling import Poller
from tests.support.proxies import wait_for

UNREADABLE = "The cache cannot be read"
CHANGE = "/admin/proxyhealth/workspaceproxy/"


def unreadable(poll):
    return poll.stale and poll.snapshot["stale_reason"].startswith(UNREADABLE)


def lima_is_down(poll):
    return poll.statuses["lima"] == "unreachable" and not poll.stale


def without_a_restart(deployment):
    """What has to come through an outage of Redis, by process ids."""
    return [part.pid for part in (deployment.web, *deployment.workers, *deployment.beats)]


def stays_stale(poller, since):
    """Once readers are told that they have a copy, a newer round only tells them otherwise."""
    polls = poller.between(since)
    first = next(index for index, poll in enumerate(polls) if poll.stale)
    copy = polls[first].snapshot["checked_at"]
    return all(poll.stale or poll.snapshot["checked_at"] > copy for poll in polls[first:])


@pytest.mark.fault("Redis killed in a round, back empty")
def test_redis_killed_in_a_round__the_last_copy_and_right_again(deploy, verdict):
    interval = 5
    deployment = deploy(interval=interval)
    for name in ("lima", "oslo", "silent"):
        deployment.add(name)
    deployment.proxies["silent"].be_silent()
    deployment.start()
    pids = without_a_restart(deployment)
    with Poller(deployment) as poller:
        deployment.proxies["silent"].wait_for_request(2 * interval)
        deployment.redis.kill()
        killed = time.monotonic()
        told = poller.wait_until(unreadable, 2, "readers are told")
        deployment.proxies["lima"].stop()
        poller.emptied()
        deployment.start_redis()
        took = poller.wait_until(lima_is_down, 2 * interval, "lima is down")
    assert stays_stale(poller, killed)
    assert without_a_restart(deployment) == pids
    assert not deployment.ended()
    poller.check({"lima": ("ok", "unreachable"), "oslo": "ok", "silent": "unreachable"})
    verdict(
        f"{len(poller.polls)} polls, the last copy, stale after {told:.1f} s, "
        f"right {took:.1f} s after Redis is back (limit {2 * interval} s)"
    )


@pytest.mark.fault("Redis down for 8 s, back empty")
def test_redis_down__the_operator_works_on_and_all_recovers(deploy, verdict):
    interval, down = 10, 8
    deployment = deploy(interval=interval)
    for name in ("lima", "oslo", "doomed", "moved"):
        deployment.add(name)
    moved = deployment.add("elsewhere", url="")
    deployment.start()
    pids = without_a_restart(deployment)
    slowest = 0.0

    def post(path, **form):
        nonlocal slowest
        page, elapsed = deployment.post(path, **form)
        assert elapsed < 1, f"POST {path} took {elapsed:.2f} s"
        slowest = max(slowest, elapsed)
        return page.text

    with Poller(deployment) as poller:
        number = deployment.snapshot()["number"]
        poller.wait_until(lambda p: p.snapshot["number"] > number, 2 * interval, "a round by beat")
        deployment.redis.kill()
        killed = time.monotonic()
        told = poller.wait_until(unreadable, 2, "readers are told")
        deployment.proxies["lima"].stop()

        pages = {}
        row = deployment.row("moved")
        pages["save"] = post(f"{CHANGE}{row['id']}/change/", name="moved", url=moved.url, version="v2")
        row = deployment.row("moved")
        assert (row["url"], row["version"]) == (moved.url, "v2")

        row = deployment.row("doomed")
        pages["delete"] = post(f"{CHANGE}{row['id']}/delete/", post="yes")
        assert deployment.row("doomed")["deleted"]

        row = deployment.row("oslo")
        pages["check now"] = post(CHANGE, action="check_now", _selected_action=row["id"])
        pages["check all now"] = post(f"{CHANGE}health/check/")

        assert "Stale." in deployment.health_page()
        assert UNREADABLE in deployment.health_page()
        assert deployment.metric("proxyhealth_snapshot_up") == 0
        assert deployment.metric("proxyhealth_last_round_timestamp_seconds") is None
        silent = [what for what, page in pages.items() if "next round" not in page]

        wait_for(lambda: time.monotonic() > killed + down, down + 1)
        poller.emptied()
        deployment.start_redis()
        took = poller.wait_until(
            lambda p: lima_is_down(p) and p.statuses["moved"] == "ok", interval, "all is right"
        )
    assert stays_stale(poller, killed)
    assert without_a_restart(deployment) == pids
    assert not deployment.ended()
    poller.check(
        {
            "lima": ("ok", "unreachable"),
            "oslo": "ok",
            "moved": ("ok", "unknown", "ok"),
            "elsewhere": "unregistered",
            "doomed": ("ok", "missing"),
        }
    )
    assert not silent, f"these do not say that the update comes later: {silent}"
    verdict(
        f"{len(poller.polls)} polls, the last copy, stale after {told:.1f} s; slowest POST "
        f"{slowest:.2f} s (limit 1 s); right {took:.1f} s after Redis is back (limit {interval} s)"
    )


def has_address(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True


@pytest.mark.fault("Redis moved from {before} to {after}")
@pytest.mark.parametrize(
    ("before", "after", "addresses"),
    [
        # As "localhost" on most machines: both are always there, but only one of them is served.
        ("::1", "127.0.0.1", ["::1 127.0.0.1", "::1 127.0.0.1"]),
        ("127.0.0.2", "127.0.0.3", ["127.0.0.2", "127.0.0.3"]),
    ],
    ids=["other_family", "other_address"],
)
def test_redis_moved__is_found_behind_its_name(deploy, tmp_path, verdict, before, after, addresses):
    if not has_address(before):
        pytest.skip(f"this machine has no {before}")
    interval = 8
    hosts = tmp_path / "hosts"
    hosts.write_text(f"redis.test {addresses[0]}")
    deployment = deploy(
        interval=interval,
        redis_name="redis.test",
        redis_bind=before,
        env={"PYTHONPATH": HOOKS, "HOSTS_FILE": hosts},
    )
    for name in ("lima", "oslo"):
        deployment.add(name)
    deployment.start()
    pids = without_a_restart(deployment)
    with Poller(deployment) as poller:
        deployment.redis.kill()
        moved = hosts.with_suffix(".new")
        moved.write_text(f"redis.test {addresses[1]}")
        moved.replace(hosts)  # in one step: who looks the name up finds it
        killed = time.monotonic()
        poller.wait_until(unreadable, 2, "readers are told")
        deployment.proxies["lima"].stop()
        poller.emptied()
        deployment.start_redis(bind=after)
        took = poller.wait_until(lima_is_down, 2 * interval, "lima is down")
    assert stays_stale(poller, killed)
    assert without_a_restart(deployment) == pids
    poller.check({"lima": ("ok", "unreachable"), "oslo": "ok"})
    verdict(
        f"{len(poller.polls)} polls, the last copy meanwhile, "
        f"right {took:.1f} s after it is back (limit {2 * interval} s)"
    )


@pytest.mark.fault("Redis says nothing for 6 s, then is replaced")
def test_redis_hangs__readers_and_saves_do_not(deploy, verdict):
    interval, hang = 8, 6
    deployment = deploy(interval=interval)
    for name in ("lima", "oslo"):
        deployment.add(name)
    deployment.start()
    pids = without_a_restart(deployment)
    with Poller(deployment) as poller:
        deployment.redis.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        poller.wait_until(unreadable, 3, "readers are told")
        deployment.proxies["lima"].stop()
        row = deployment.row("oslo")
        _, elapsed = deployment.post(
            f"{CHANGE}{row['id']}/change/", name="oslo", url=row["url"], version="v2"
        )
        assert deployment.row("oslo")["version"] == "v2"
        wait_for(lambda: time.monotonic() > stopped + hang, hang + 1)
        poller.emptied()
        deployment.redis.kill()
        deployment.start_redis()
        back = time.monotonic()
        took = poller.wait_until(lima_is_down, 2 * interval, "lima is down")
    assert elapsed < 1, f"a save took {elapsed:.2f} s"
    assert stays_stale(poller, stopped)
    assert without_a_restart(deployment) == pids
    # The project has its cache wait for a second; every few seconds one reader finds that out.
    poller.check(
        {"lima": ("ok", "unreachable"), "oslo": "ok"},
        late=lambda p: POLL_LIMIT + 1 if stopped <= p.at <= back else POLL_LIMIT,
    )
    slowest = max(p.elapsed for p in poller.polls)
    verdict(
        f"{len(poller.polls)} polls, slowest {slowest:.1f} s (limit {POLL_LIMIT + 1} s), "
        f"save {elapsed:.2f} s (limit 1 s), right {took:.1f} s after it is replaced (limit {2 * interval} s)"
    )
