"""Fake statuses with the time when they began, and with a last probe that contradicts them."""

from datetime import UTC, datetime

import pytest

from proxyhealth import health
from proxyhealth.testing import FakeStatus, fake_snapshot

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def test_fake__began_at_its_check_unless_since_is_given():
    with fake_snapshot(paris="ok", oslo=FakeStatus("unhealthy", since=LONG_AGO)) as fake:
        paris, oslo = (health.snapshot().by_name[name] for name in ("paris", "oslo"))
    assert (paris.since, oslo.since) == (fake.snapshot.checked_at, LONG_AGO)


def test_fake__raw_result_contradicts_the_status():
    fakes = {
        "paris": FakeStatus("ok", raw=("unreachable", "timeout"), checked_at=LONG_AGO),
        "oslo": FakeStatus("unhealthy", raw="ok"),
    }
    with fake_snapshot(fakes, rome="ok") as fake:
        paris, oslo, rome = (health.snapshot().by_name[name] for name in ("paris", "oslo", "rome"))
    assert (paris.status, paris.healthy, paris.checked_at) == ("ok", True, LONG_AGO)
    assert (paris.last.status, paris.last.reason) == ("unreachable", "timeout")
    assert paris.last.checked_at == fake.snapshot.checked_at
    assert (oslo.last.status, oslo.healthy) == ("ok", False)
    assert (rome.raw, rome.last) == (None, rome)


@pytest.mark.parametrize(
    ("status", "raw"), [("ok", "ok"), ("unhealthy", "unreachable"), ("ok", "unregistered"), ("unknown", "ok")]
)
def test_fake__refuses_a_raw_result_without_a_contradiction(status, raw):
    with pytest.raises(ValueError, match=f"The raw status '{raw}' cannot contradict '{status}'"):
        FakeStatus(status, raw=raw)
