"""The number of false changes of status when probes are lost at random."""

import math
import random

import pytest

from benchmarks.thresholds import RECHECK_AFTER, TIMEOUT, changes, count_failures, expected
from proxyhealth.statuses import Status
from proxyhealth.storage.confirmation import Thresholds


@pytest.mark.parametrize(("failure", "recovery"), [(1, 1), (2, 1), (3, 1), (3, 3)])
def test_false_failures__are_as_few_as_the_arithmetic_says(failure, recovery):
    thresholds = Thresholds(failure, recovery)
    count, _ = count_failures(proxies=15, rounds=1440, thresholds=thresholds, loss=0.1, seed=1)
    mean = 15 * expected(1440, thresholds, 0.1)
    assert abs(count - mean) < 4 * math.sqrt(mean)


def test_false_failures__expected_with_one_percent_lost():
    month = 30 * 1440
    assert 1000 * expected(month, Thresholds(1, 1), 0.01) == pytest.approx(427_680, abs=1)
    assert 1000 * expected(month, Thresholds(2, 1), 0.01) == pytest.approx(4_319.6, abs=0.1)
    assert 1000 * expected(month, Thresholds(3, 1), 0.01) == pytest.approx(43.2, abs=0.001)


def test_failure__silent_proxy_is_confirmed_in_time():
    change = next(changes(1, Thresholds(3, 1), 1 - 1e-12, random.Random(1)))
    assert change.after == Status.UNREACHABLE
    assert change.confirmed_at - change.at == 2 * (RECHECK_AFTER + TIMEOUT)
