import json

import pytest

from proxyhealth.rounds.shards import Plan
from tests.support.values import NOW, make_proxy, make_status

SHARDS = [[make_proxy("a"), make_proxy("b")], [make_proxy("c")]]
PLAN = Plan.of(7, NOW, SHARDS)


def found(*shards):
    return [
        {"shard": index, "found": [make_status(proxy).judgement() for proxy in shard]}
        for index, shard in enumerate(shards)
    ]


def test_plan__survives_json():
    assert Plan.load(PLAN.dump()) == PLAN
    assert len(set(PLAN.tasks)) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({**json.loads(PLAN.dump()), "shards": 1})])
def test_load__what_is_no_plan(text):
    with pytest.raises(ValueError):  # noqa: PT011  those of the JSON parser, too
        Plan.load(text)


def test_outcome__complete():
    outcome = PLAN.outcome(found(*SHARDS))
    assert outcome.statuses == [make_status(proxy) for shard in SHARDS for proxy in shard]
    assert (outcome.missing, outcome.error, outcome.offline) == (frozenset(), "", False)


@pytest.mark.parametrize(
    "part", [{"lost": "why"}, {"found": []}, {"found": None}, None, "why", ValueError("x")]
)
def test_outcome__a_part_that_is_none(part):
    outcome = PLAN.outcome([*found(SHARDS[0]), part])
    assert [status.proxy.name for status in outcome.statuses] == ["a", "b"]
    assert outcome.missing == {SHARDS[1][0].id}
    assert outcome.error.startswith(
        "1 of 2 shards of the round were lost, 1 of 3 proxies keep their last status: "
    )


def test_outcome__offline_is_only_who_is_so_everywhere():
    offline = {"shard": 1, "lost": "Prober offline", "offline": True}
    everywhere = PLAN.outcome([{**offline, "shard": 0}, offline])
    assert (everywhere.offline, everywhere.error) == (True, "Prober offline")
    somewhere = PLAN.outcome([*found(SHARDS[0]), offline])
    assert not somewhere.offline
    assert "1 of 2 shards" in somewhere.error
