"""Old rows of the history are deleted in small steps, but none that something still needs."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from proxyhealth import tasks
from proxyhealth.exceptions import HistoryUnavailable
from proxyhealth.history import pruning
from proxyhealth.history.pruning import prune
from proxyhealth.models import Alarm, Channel, Delivery, Gap, Outage, Transition, Watch
from tests.support.proxies import wait_for
from tests.support.values import NOW, refuse_queries

pytestmark = pytest.mark.django_db

DAY = 24 * 3_600 * 1_000_000  # in tokens
TODAY = int(NOW.timestamp()) * 1_000_000


@pytest.fixture(autouse=True)
def last_round(db):
    """The time of the history is that of its last round."""
    return Watch.objects.create(pk=1, token=TODAY, watched=0)


def insert(*ages, after="ok", **values):
    """Insert the rows of a proxy with these ages in days."""
    id = uuid4()
    return Transition.objects.bulk_create(
        Transition(
            proxy_uuid=id,
            proxy_name="paris",
            before="ok",
            after=after,
            at=NOW,
            token=TODAY - int(age * DAY),
            watched=0,
            **values,
        )
        for age in ages
    )


def insert_gaps(*ages):
    Gap.objects.bulk_create(
        Gap(start=NOW, end=NOW, why="offline", token=TODAY - int(age * DAY), microseconds=1) for age in ages
    )


def insert_outage(begin, end=None):
    """Insert an outage that began and ended these days ago."""
    return Outage.objects.create(
        proxy_uuid=uuid4(),
        proxy_name="paris",
        status="unreachable",
        began_at=NOW,
        token=TODAY - int(begin * DAY),
        ended_at=end and NOW,
        end_token=end and TODAY - int(end * DAY),
    )


def insert_delivery(transition, outage, state="sent", number=0):
    channel, _ = Channel.objects.get_or_create(name="ops", defaults={"kind": "email", "listens_since": NOW})
    return Delivery.objects.create(
        channel=channel,
        transition=transition,
        outage=outage,
        state=state,
        number=number,
        created_at=NOW,
        next_attempt_at=NOW if state == "pending" else None,
    )


def ages(model=Transition):
    return [round((TODAY - token) / DAY, 3) for token in model.objects.values_list("token", flat=True)]


def test_prune__deletes_what_is_older_than_history_days(configure):
    configure(HISTORY_DAYS=200)
    insert(500, 200.001, 199.999, 1)
    insert_gaps(500, 200.001, 199.999)
    pruned = prune()
    assert ages() == [1, 199.999]
    assert ages(Gap) == [199.999]
    assert (pruned.transitions, pruned.gaps, pruned.complete) == (2, 2, True)
    assert pruned.before == NOW - timedelta(days=200)


def test_prune__keeps_the_gaps_of_the_uptime(configure):
    """It has no other way to know when nobody knew the statuses."""
    configure(HISTORY_DAYS=1.5)
    insert(89, 1.6, 1.4)
    insert_gaps(91, 89)
    prune()
    assert ages() == [1.4]
    assert ages(Gap) == [89]


def test_prune__keeps_the_last_status_of_each_proxy():
    """After Redis was emptied, and while it is down, it is the status of the proxy."""
    insert(900, 800)
    insert(700)
    insert(900, 800, after="removed")
    assert prune().transitions == 3
    assert ages() == [700, 800]
    assert prune().transitions == 0


def test_prune__keeps_rows_whose_signal_is_due(caplog):
    now = timezone.now()
    insert(700, 600, after="removed", signal_due_at=now)
    insert(700, 600, after="removed", signal_due_at=now - timedelta(days=3))  # nobody sends it any more
    assert prune().transitions == 2
    assert ages() == [600, 700]
    assert caplog.messages.count("history pruned transitions=2 gaps=0 outages=0") == 1


def test_prune__deletes_outages_and_deliveries_with_their_transitions():
    old, new = insert_outage(700, 600), insert_outage(700, 100)
    begin, end, _ = insert(700, 600, 1, after="removed")
    insert_delivery(begin, old)
    insert_delivery(begin, old, "failed", number=1)
    insert_delivery(end, old, "dropped")
    kept, _ = insert(100, 1)
    insert_delivery(kept, new)
    pruned = prune()
    assert (pruned.transitions, pruned.outages) == (2, 1)
    assert Outage.objects.get() == new  # it ended later
    assert Delivery.objects.get().transition == kept
    assert prune(dry_run=True).outages == 0


def test_prune__keeps_open_outages_and_what_channels_were_told():
    """A channel that was told of the begin has to be told of the end."""
    outage = insert_outage(700)
    begin, _, _ = insert(700, 600, 1, after="unreachable")
    insert_delivery(begin, outage)
    assert prune().transitions == 1
    assert (Outage.objects.count(), Delivery.objects.count()) == (1, 1)
    assert ages() == [1, 700]


def test_prune__keeps_what_is_pending():
    outage = insert_outage(700, 600)
    begin, end, _ = insert(700, 600, 1)
    insert_delivery(begin, outage)
    insert_delivery(end, outage, "pending")
    assert (prune().transitions, prune().outages) == (1, 0)
    assert Delivery.objects.get().transition == end
    Delivery.objects.update(state="sent")
    pruned = prune()
    assert (pruned.transitions, pruned.outages) == (1, 1)
    assert not Delivery.objects.exists()


def test_prune__in_batches_of_rows_with_one_token(monkeypatch, django_assert_max_num_queries):
    """A round writes the rows of many proxies with its token."""
    monkeypatch.setattr(pruning, "_BATCH", 10)
    for _ in range(40):
        insert(800)
    for _ in range(40):
        insert(800, 700)
    with django_assert_max_num_queries(30):
        assert prune().transitions == 40
    assert ages() == [700] * 40 + [800] * 40


def test_prune__ends_in_time_and_goes_on_later(monkeypatch):
    insert(*range(800, 700, -1))
    assert not prune(0).complete
    assert Transition.objects.count() == 100
    assert prune(60).complete
    assert Transition.objects.count() == 1


def test_prune__without_a_round_deletes_nothing(last_round):
    """The clock of this machine may be wrong."""
    last_round.delete()
    insert(800, 700)
    assert prune().before is None
    assert Transition.objects.count() == 2


def test_prune__counts_from_the_last_round():
    """Not from the clock of this machine, which may be wrong."""
    insert(500, 450, 1)
    Watch.objects.update(token=TODAY - 75 * DAY)
    assert prune().transitions == 1


def test_prune__database_down_is_a_clear_error():
    with connection.execute_wrapper(refuse_queries), pytest.raises(HistoryUnavailable, match="database is"):
        prune()


def test_task__goes_on_in_another_one(monkeypatch, redis_client):
    insert(800, 700)
    monkeypatch.setattr(tasks, "_PRUNING_TIME", 0)
    tasks.prune_history.run()
    wait_for(lambda: redis_client.llen("celery") == 1, what="the next task is sent")
    monkeypatch.setattr(tasks, "_PRUNING_TIME", 60)
    tasks.prune_history.run()
    assert redis_client.llen("celery") == 1
    assert Transition.objects.count() == 1


def test_task__in_eager_mode_deletes_all(monkeypatch):
    insert(800, 700)
    monkeypatch.setattr(tasks, "_PRUNING_TIME", 0)
    assert tasks.prune_history.apply().successful()
    assert Transition.objects.count() == 1


def command(*arguments):
    output = StringIO()
    call_command("proxyhealth_prune", *arguments, stdout=output)
    return output.getvalue()


def test_command__says_what_it_deletes():
    insert(800, 700)
    insert(100)
    insert_gaps(500)
    insert_outage(801, 800)
    rest = "what is from before 2025-10-18 08:00:00 UTC. Status changes: 1. Outages: 1. Gaps: 1.\n"
    assert command("--dry-run") == f"Would delete {rest}"
    assert Transition.objects.count() == 3
    assert command() == f"Deleted {rest}"
    assert ages() == [100, 700]
    assert ages(Gap) == []


def test_command__without_a_history(last_round):
    last_round.delete()
    assert command() == "There is no history yet: no round has been recorded.\n"


def test_command__database_down():
    with connection.execute_wrapper(refuse_queries), pytest.raises(CommandError, match="cannot be used"):
        command()


def test_prune__deletes_old_alarms(last_round):
    old, recent, open_alarm = (
        Alarm.objects.create(kind="redis", began_at=NOW - timedelta(days=500), ended_at=ended_at)
        for ended_at in (NOW - timedelta(days=401), NOW - timedelta(days=399), None)
    )
    channel = Channel.objects.create(name="ops", kind="webhook", target="", listens_since=NOW)
    Delivery.objects.create(channel=channel, alarm=old, created_at=NOW)
    prune(dry_run=True)
    assert Alarm.objects.count() == 3
    prune()
    assert set(Alarm.objects.all()) == {recent, open_alarm}
    assert not Delivery.objects.exists()
