"""A short run of each fuzzer, so that ``make fuzz`` works when it is needed."""

import pytest

from tests.probing.fuzz import fuzz_parser, fuzz_probes, fuzz_urls
from tests.probing.fuzz_responses import fuzz_responses
from tests.probing.fuzz_tls import fuzz_tls
from tests.storage.fuzz_contents import fuzz_contents


@pytest.mark.parametrize(
    ("fuzz", "count"),
    [(fuzz_parser, 2_000), (fuzz_urls, 500), (fuzz_probes, 30), (fuzz_responses, 50), (fuzz_tls, 32)],
)
def test_fuzz__ends_without_a_finding(fuzz, count):
    assert list(fuzz(1, count)) == []


@pytest.mark.django_db
def test_fuzz__contents_of_redis(redis_client):
    assert list(fuzz_contents(1, 2)) == []
