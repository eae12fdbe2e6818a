import json

import pytest

from proxyhealth.rounds.shards import Plan
from proxyhealth.statuses import Status
from tests.support.values import NOW, make_proxy, make_status

SHARDS = [[make_proxy("a"), make_proxy("b")], [make_proxy("c")]]
PLAN = Plan.create(7, NOW, SHARDS)


def parts_of(*shards):
    return [
        {"shard": index, "found": [make_status(proxy).judgement() for proxy in shard]}
        for index, shard in enumerate(shards)
    ]


def test_plan__dump_and_load():
    assert Plan.load(PLAN.dump()) == PLAN
    assert len(set(PLAN.tasks)) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({**json.loads(PLAN.dump()), "shards": 1})])
def test_load__invalid_text_raises(text):
    with pytest.raises(ValueError):  # noqa: PT011  also those of the JSON parser
        Plan.load(text)


def test_merge__all_shards():
    result = PLAN.merge(parts_of(*SHARDS))
    assert result.statuses == [make_status(proxy) for shard in SHARDS for proxy in shard]
    assert (result.missing, result.error, result.offline) == (frozenset(), "", False)


@pytest.mark.parametrize(
    "part", [{"lost": "why"}, {"found": []}, {"found": None}, None, "why", ValueError("x")]
)
def test_merge__lost_or_invalid_part(part):
    result = PLAN.merge([*parts_of(SHARDS[0]), part])
    assert [status.proxy.name for status in result.statuses] == ["a", "b"]
    assert result.missing == {SHARDS[1][0].id}
    assert result.error.startswith(
        "1 of 2 shards of the round were lost, 1 of 3 proxies keep their last status: "
    )


def test_merge__offline_only_if_all_shards_are():
    offline = {"shard": 1, "lost": "Prober offline", "offline": True}
    everywhere = PLAN.merge([{**offline, "shard": 0}, offline])
    assert (everywhere.offline, everywhere.error) == (True, "Prober offline")
    idle = make_status(SHARDS[0][0], Status.UNREGISTERED).judgement()
    assert PLAN.merge([{"shard": 0, "found": [idle, idle]}, offline]).offline, "it needed no network"
    somewhere = PLAN.merge([*parts_of(SHARDS[0]), offline])
    assert not somewhere.offline
    assert "1 of 2 shards" in somewhere.error
