import pytest

from proxyhealth.rounds.shards import split
from proxyhealth.statuses import Reason, Status
from tests.support.values import make_proxy, make_status


def test_split__into_shards_of_at_most_shard_size(configure):
    configure(SHARD_SIZE=3)
    proxies = [make_proxy(f"p{i}") for i in range(8)]
    shards = split(proxies, {})
    assert [len(shard) for shard in shards] == [3, 3, 2]
    assert {proxy.id for shard in shards for proxy in shard} == {proxy.id for proxy in proxies}


def test_split__silent_proxies_first_and_at_most_concurrency(configure):
    configure(SHARD_SIZE=100, CONCURRENCY=4, TIMEOUT=5)
    silent = [make_status(make_proxy(f"s{i}"), Status.UNREACHABLE, reason=Reason.TIMEOUT) for i in range(6)]
    quick = [make_status(make_proxy(f"q{i}"), latency=0.1) for i in range(20)]
    statuses = [*quick, *silent]
    shards = split([status.proxy for status in statuses], {status.proxy.id: status for status in statuses})
    silent_in = [sum(proxy.name.startswith("s") for proxy in shard) for shard in shards]
    assert silent_in == [4, 2]
    assert [len(shard) for shard in shards] == [4, 22]


def test_split__silent_proxies_in_equal_shares_for_processes(configure):
    configure(SHARD_SIZE=10)
    silent = [make_status(make_proxy(f"s{i}"), Status.UNREACHABLE, reason=Reason.TIMEOUT) for i in range(4)]
    quick = [make_status(make_proxy(f"q{i}"), latency=0.1) for i in range(31)]
    statuses = [*quick, *silent]
    shards = split([s.proxy for s in statuses], {s.proxy.id: s for s in statuses}, 2)
    assert [sum(proxy.name.startswith("s") for proxy in shard) for shard in shards] == [2, 2, 0, 0]
    assert [len(shard) for shard in shards] == [10, 10, 8, 7]
    assert len({proxy.id for shard in shards for proxy in shard}) == 35


@pytest.mark.parametrize(
    ("count", "processes", "sizes"),
    [
        (12, 4, [2, 2, 2, 2, 4]),
        (11, 20, 11 * [1]),
        (12, 11, [1, *10 * [1], 1]),
        (30, 14, [2, 2, *8 * [1], *4 * [2], 10]),
        (11, 1, [10, 1]),
    ],
)
def test_split__one_more_shard_than_processes(count, processes, sizes, configure):
    configure(SHARD_SIZE=10)
    proxies = [make_proxy(f"p{i}") for i in range(count)]
    assert [len(shard) for shard in split(proxies, {}, processes)] == sizes
