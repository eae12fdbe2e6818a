from tests.support.host_suite import DJANGO, PYTEST, make_suite, run_suite


def test_host_suite__passes_without_redis_broker_and_network(tmp_path):
    suite = make_suite(tmp_path)
    output = run_suite(suite, DJANGO + PYTEST)  # one process, because imports take most of the time
    assert "Ran 14 tests" in output
    assert "17 passed" in output
    assert not (suite / "live.sqlite3").exists()
