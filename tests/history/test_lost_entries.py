"""The outbox is lost, and the next round cannot notice it."""

import pytest

from proxyhealth.history.recall import DatabaseMemory
from proxyhealth.history.records import record_history
from proxyhealth.models import Transition
from proxyhealth.statuses import Status
from proxyhealth.storage.commit import commit
from proxyhealth.storage.confirmation import moment
from proxyhealth.storage.merge import Round
from tests.history.test_any_history import START, Down, World
from tests.support.values import make_proxy, make_status

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_client")]

MINUTE = 60_000_000


def a_round(minute, *statuses, memory=None):
    token = START + minute * MINUTE
    commit(statuses, token, full_round=Round(moment(token), 0.1), memory=memory or DatabaseMemory())


@pytest.mark.parametrize("then", ["database down", "another change waits"])
def test_lost_outbox__is_noticed_by_a_later_round(redis_client, then):
    paris, oslo = make_proxy("paris"), make_proxy("oslo")
    a_round(0, make_status(paris), make_status(oslo))
    record_history()
    a_round(1, make_status(paris, Status.UNREACHABLE), make_status(oslo))
    redis_client.delete(World(redis_client).key("outbox"))
    if then == "database down":
        a_round(2, make_status(paris, Status.UNREACHABLE), make_status(oslo), memory=Down())
    else:
        commit([make_status(oslo, Status.UNHEALTHY)], START + 2 * MINUTE - 1, memory=DatabaseMemory())
        a_round(2, make_status(paris, Status.UNREACHABLE), make_status(oslo))
    record_history()
    a_round(3, make_status(paris, Status.UNREACHABLE), make_status(oslo))
    record_history()
    assert Transition.objects.filter(proxy_name="paris").latest("pk").after == "unreachable"
