"""Measure ten tests of another project with ``proxyhealth.testing``: without Redis, broker, and network."""

import argparse
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.support.host_suite import DJANGO, PYTEST, make_suite, run_suite

LIMIT = 1.0  # seconds for the tests, without the start of Python and the imports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    slowest = 0.0
    print("| runner | s for ten tests | s for the process |")
    print("|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        suite = make_suite(Path(folder))
        for runner, code, tests in (
            ("Django", DJANGO, ["test_proxies"]),
            ("pytest", PYTEST, ["test_proxies.py", "--deselect", "test_proxies.py::test_fixture_of_pytest"]),
        ):
            processes, totals = [], []
            for _ in range(repeat):
                begin = time.monotonic()
                output = run_suite(suite, code, *tests)
                processes.append(time.monotonic() - begin)
                totals.append(_seconds_of_tests(output))
            slowest = max(slowest, statistics.median(totals))
            print(f"| {runner} | {statistics.median(totals):.2f} | {statistics.median(processes):.2f} |")
    return 1 if slowest >= LIMIT else 0


def _seconds_of_tests(output: str) -> float:
    if match := re.search(r"Ran 10 tests in ([\d.]+)s", output):
        return float(match[1])
    assert "10 passed" in output
    # The set-up of the first test also creates the database, as Django's runner does before its tests.
    return sum(map(float, re.findall(r"^([\d.]+)s (?:call|setup|teardown)", output, re.MULTILINE)))


if __name__ == "__main__":
    sys.exit(main())
