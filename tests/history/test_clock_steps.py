"""Steps of the clock of Redis, on which all times of the history are based."""

import pytest

from proxyhealth.history.recall import DatabaseMemory
from proxyhealth.history.records import record_history
from proxyhealth.history.uptime import uptimes
from proxyhealth.models import Gap, Transition, WorkspaceProxy
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.confirmation import moment
from proxyhealth.storage.merge import Round
from tests.support.values import make_status

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_client")]

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
START = 1_795_000_000 * SECOND


@pytest.fixture
def proxy():
    return WorkspaceProxy.objects.create(name="paris", url="https://paris.example.com").as_proxy()


def rounds(proxy, *results):
    """Commit a round for each pair of a token and a status."""
    for token, status in results:
        commit(
            [make_status(proxy, status)],
            token,
            full_round=Round(moment(token), 0.1),
            memory=DatabaseMemory(),
        )
        record_history()


def test_step_back__order_stays_and_no_time_is_known_twice(proxy):
    """Tokens go on from the last one, a microsecond each, until the clock is there again."""
    last = START + 10 * MINUTE
    rounds(
        proxy,
        *((START + minute * MINUTE, Status.OK) for minute in range(11)),
        (last + 1, Status.UNREACHABLE),
        (last + 2, Status.OK),
        (last + MINUTE, Status.OK),
    )
    rows = list(Transition.objects.order_by("pk"))
    assert [row.after for row in rows] == ["ok", "unreachable", "ok"]
    assert [row.at for row in rows] == [moment(START), moment(last + 1), moment(last + 2)]
    assert [row.watched for row in rows] == [0, 10 * MINUTE + 1, 10 * MINUTE + 2]
    assert Gap.objects.count() == 0
    window = uptimes(reader.read_anew())[proxy.id]["30d"]
    assert window.known - window.up == pytest.approx(1e-6)


def test_step_forward__skipped_time_is_not_known(proxy, configure):
    configure(STALE_AFTER=180)
    rounds(
        proxy,
        (START, Status.OK),
        (START + MINUTE, Status.OK),
        (START + MINUTE + HOUR, Status.UNREACHABLE),
        (START + 2 * MINUTE + HOUR, Status.UNREACHABLE),
    )
    gap = Gap.objects.get()
    assert (gap.why, gap.microseconds) == ("no_rounds", HOUR - 3 * MINUTE)
    assert gap.end == moment(START + MINUTE + HOUR)
    down = Transition.objects.latest("pk")
    assert (down.after, down.watched) == ("unreachable", 4 * MINUTE)
    assert reader.read_anew().watched == 5 * MINUTE


def test_step_of_a_worker__does_not_reach_the_history(proxy):
    """Its clock dates only the check."""
    for minute, status in enumerate((Status.OK, Status.UNREACHABLE)):
        token = START + minute * MINUTE
        commit(
            [make_status(proxy, status)],
            token,
            full_round=Round(moment(token - 100 * HOUR), 0.1),
            memory=DatabaseMemory(),
        )
    record_history()
    assert [row.at for row in Transition.objects.order_by("pk")] == [moment(START), moment(START + MINUTE)]
    assert Gap.objects.count() == 0
