"""The watchdog's view of the prober, with a real Redis and real rounds: which alarms begin and end."""

import threading
from datetime import timedelta

import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.utils import timezone

from proxyhealth.models import Alarm, Channel, Delivery, Watch
from proxyhealth.notifications import alarms, watchdog
from proxyhealth.notifications.watchdog import View
from proxyhealth.rounds import runner
from proxyhealth.storage import reader
from proxyhealth.storage.counters import count_round
from proxyhealth.storage.lease import take_token
from tests.support.forks import run_python
from tests.support.ports import free_port
from tests.support.proxies import wait_for
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db

STALE_AFTER = 0.05


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(watchdog, "_PATIENCE", 0.0)


@pytest.fixture
def view():
    """A process that runs for a while."""
    return View(start=0)


def add_channel(name="ops", **values):
    values = {"kind": "webhook", "target": "http://127.0.0.1:9/", "enabled": True, **values}
    return Channel.objects.create(name=name, listens_since=timezone.now(), **values)


@pytest.fixture
def channel(monkeypatch):
    """A channel whose messages are only counted: their delivery has tests of its own."""
    monkeypatch.setattr("proxyhealth.notifications.sending.send_due", lambda patience: None)
    return add_channel()


def kinds():
    """Return the kind of each alarm, with a + if it is open."""
    return [alarm.kind + "+" * (alarm.ended_at is None) for alarm in Alarm.objects.order_by("pk")]


def told(channel):
    """Return the numbers of the deliveries of alarms: 0 for a begin, 1 for an end."""
    return list(Delivery.objects.filter(channel=channel).order_by("pk").values_list("number", flat=True))


def stop_rounds(configure):
    """Run a last round, and wait until its snapshot is stale."""
    configure(STALE_AFTER=STALE_AFTER)
    runner.run_round()
    wait_for(lambda: reader.read().stale)


def run_round(configure):
    configure(STALE_AFTER=60)
    runner.run_round()
    assert not reader.read_anew().stale


def test_look__no_round(view, channel, configure):
    stop_rounds(configure)
    view.look()
    (alarm,) = Alarm.objects.all()
    assert (alarm.kind, alarm.ended_at) == ("no_rounds", None)
    assert alarm.detail.startswith("No round has ended since the one of ")
    assert 0 < (timezone.now() - alarm.began_at).total_seconds() < 10
    (delivery,) = Delivery.objects.all()
    assert (delivery.channel, delivery.number, delivery.state) == (channel, 0, "pending")
    assert delivery.next_attempt_at <= timezone.now()


def test_look__fresh_round_ends_the_alarm(view, channel, configure):
    stop_rounds(configure)
    view.look()
    run_round(configure)
    view.look()
    assert kinds() == ["no_rounds"]
    assert told(channel) == [0, 1]


def test_look__of_other_processes_tells_nothing_again(view, channel, configure):
    others = [View(start=0) for _ in range(3)]
    stop_rounds(configure)
    for each in (view, *others, *others):
        each.look()
    assert (kinds(), told(channel)) == (["no_rounds+"], [0])
    run_round(configure)
    for each in (*others, view, View()):
        each.look()
    assert (kinds(), told(channel)) == (["no_rounds"], [0, 1])


def test_begin__another_process_is_faster(channel):
    begun = []

    def begin_first(execute, sql, params, many, context):
        if sql.startswith("SELECT COUNT") and not begun:
            begun.append(Alarm.objects.create(kind="redis", began_at=timezone.now()))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(begin_first):
        assert not alarms.begin("redis", "", 60)
    assert begun
    assert (kinds(), told(channel)) == (["redis+"], [])


def test_look__end_only_to_whom_the_begin_was_told(view, channel, configure):
    failed, disabled, gone = add_channel("failed"), add_channel("disabled"), add_channel("gone")
    off = add_channel("off", enabled=False)
    stop_rounds(configure)
    view.look()
    Delivery.objects.filter(channel=channel).update(state="sent")
    Delivery.objects.filter(channel=failed).update(state="failed")
    Channel.objects.filter(pk=disabled.pk).update(enabled=False)
    gone.delete()
    new = add_channel("new")
    run_round(configure)
    view.look()
    assert [told(each) for each in (channel, failed, disabled, off, new)] == [[0, 1], [0], [0], [], []]


def test_look__rolling_restart_tells_nobody(view, channel, configure, monkeypatch):
    stop_rounds(configure)
    monkeypatch.setattr(watchdog, "_PATIENCE", 60.0)
    view.look()
    monkeypatch.setattr(watchdog, "_PATIENCE", 0.0)
    View().look()  # of a web server that starts together with a worker
    assert kinds() == []


def test_look__clock_of_redis_set_forward(view, channel, configure):
    run_round(configure)
    view.look()
    stop_rounds(configure)
    configure(STALE_AFTER=60)  # so that a round which is a moment old looks like one of an hour ago
    view.look()
    assert kinds() == []


def test_look__prober_offline(view, channel, configure):
    stop_rounds(configure)
    count_round("offline", "Prober offline: no canary responded.", take_token())
    wait_for(lambda: reader.read().offline)
    view.look()
    (alarm,) = Alarm.objects.all()
    assert (alarm.kind, alarm.detail) == ("offline", "Prober offline: no canary responded.")
    run_round(configure)
    view.look()
    assert kinds() == ["offline"]


def test_look__one_offline_round_tells_nobody(view, channel, configure):
    run_round(configure)
    count_round("offline", "Prober offline: no canary responded.", take_token())
    wait_for(lambda: reader.read().offline)
    view.look()
    assert kinds() == []


def test_look__no_round_ever(view, channel, configure):
    configure(STALE_AFTER=STALE_AFTER)
    wait_for(lambda: view.look() or kinds())
    assert Alarm.objects.get().detail.startswith("No round has ended yet.")


@pytest.fixture
def redis_away(settings):
    """``redis_away()`` is what a process sees that cannot reach Redis any more."""

    def leave():
        address = f"redis://127.0.0.1:{free_port()}/0"
        settings.CACHES = {"default": {**django_settings.CACHES["default"], "LOCATION": address}}

    return leave


def test_look__redis_away(view, channel, configure, settings, redis_away):
    run_round(configure)
    view.look()
    caches = settings.CACHES
    redis_away()
    view.look()
    assert kinds() == []  # it may be a restart
    configure(STALE_AFTER=STALE_AFTER)
    wait_for(lambda: view.look() or kinds())
    assert kinds() == ["redis+"]
    assert Alarm.objects.get().detail.startswith("The cache cannot be read (")
    settings.CACHES = caches
    run_round(configure)
    view.look()
    assert (kinds(), told(channel)) == (["redis"], [0, 1])


def test_look__redis_away_for_this_process_only(view, channel, configure, redis_away):
    run_round(configure)
    redis_away()
    configure(STALE_AFTER=STALE_AFTER)
    for token in range(5):
        Watch.objects.update_or_create(pk=1, defaults={"token": token, "watched": 0})  # others run rounds
        view.look()
        threading.Event().wait(STALE_AFTER)
    assert kinds() == []


def test_look__redis_away_after_no_rounds_is_one_alarm(view, channel, configure, redis_away):
    stop_rounds(configure)
    view.look()
    redis_away()
    wait_for(lambda: view.look() or reader.is_unreadable())
    threading.Event().wait(STALE_AFTER)
    view.look()
    assert kinds() == ["no_rounds+"]


def test_begin__many_alarms_in_an_hour(channel):
    now = timezone.now()
    for minutes in (50, 30, 10):
        Alarm.objects.create(kind="offline", began_at=now - timedelta(minutes=minutes), ended_at=now)
    assert not alarms.begin("offline", "", 599)
    assert alarms.begin("offline", "", 601)
    assert told(channel) == [0]


def test_alarm__without_time_zones(channel, settings):
    settings.USE_TZ = False
    assert alarms.begin("redis", "", 60)
    alarms.end()
    alarm = Alarm.objects.get()
    assert alarm.ended_at - alarm.began_at >= timedelta(seconds=60)
    assert told(channel) == [0, 1]


def test_end__clock_set_back(channel):
    Alarm.objects.create(kind="redis", began_at=timezone.now() + timedelta(hours=1))
    alarms.end()
    alarm = Alarm.objects.get()
    assert alarm.ended_at == alarm.began_at


def test_look__database_down_is_logged_once(view, configure, caplog):
    stop_rounds(configure)
    with connection.execute_wrapper(refuse_queries):
        view.look()
        view.look()
    logged = [record.getMessage() for record in caplog.records if "alarms" in record.getMessage()]
    assert logged == [
        "alarms cannot be told: the history cannot be used in the database: the database is down"
    ]
    view.look()
    assert kinds() == ["no_rounds+"]


def test_look__sends_until_the_begin_is_told(view, channel, configure, monkeypatch):
    calls = []
    monkeypatch.setattr("proxyhealth.notifications.sending.send_due", calls.append)
    stop_rounds(configure)
    view.look()
    view.look()
    assert len(calls) == 2
    Delivery.objects.update(state="sent")
    view.look()
    View(start=0).look()
    assert len(calls) == 2


PROCESS = """
from threading import enumerate
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.test import RequestFactory

def watchdogs():
    return [thread for thread in enumerate() if thread.name == "proxyhealth watchdog"]

def request():
    environ = RequestFactory().get("/livez").environ
    assert list(application(environ, lambda *args: None))

settings.ROOT_URLCONF = "proxyhealth.readiness.urls"  # takes less time
application = get_wsgi_application()
assert not watchdogs()
request()
request()
assert len(watchdogs()) == 1
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    assert not watchdogs()
    request()
    assert len(watchdogs()) == 1
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""


def test_watchdog__starts_with_the_first_request():
    run_python(PROCESS, REDIS_URL="redis://127.0.0.1:1/0")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_watchdog__looks_again_and_again(monkeypatch, configure):
    looks = []

    def look(view):
        looks.append(threading.current_thread().name)
        if len(looks) == 3:
            raise SystemExit  # ends the thread

    configure(INTERVAL=0.01)
    monkeypatch.setattr(View, "look", look)
    monkeypatch.setattr("proxyhealth.isolation.is_decided", lambda: False)
    dog = watchdog.Watchdog()
    dog.start()
    dog.start()
    dog._thread.join(10)
    assert looks == 3 * ["proxyhealth watchdog"]
    configure(INTERVAL="invalid")
    assert watchdog._period() == 5  # the look logs the error


def test_watchdog__not_in_tests(client):
    client.get("/livez")
    assert not [each for each in threading.enumerate() if each.name == "proxyhealth watchdog"]
