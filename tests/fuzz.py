"""Random input for the parts that read what others wrote; the test run has only a short run of it.

    python -m tests.fuzz [--seed 1] [--only responses] [--count 100000]

The exit code is 1, and the output has the inputs, if one of the promises is broken that the functions
``fuzz_…`` name. The same seed produces the same input.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from contextlib import ExitStack

import django
from django.test.utils import setup_databases, setup_test_environment
from django.utils.module_loading import import_string

from tests.settings import REDIS_PORT
from tests.support.redis_server import LazyRedisServer

# Each fuzzer, and the number of its inputs.
FUZZERS = {
    "parser": ("tests.probing.fuzz.fuzz_parser", 400_000),
    "urls": ("tests.probing.fuzz.fuzz_urls", 100_000),
    "probes": ("tests.probing.fuzz.fuzz_probes", 20_000),
    "responses": ("tests.probing.fuzz_responses.fuzz_responses", 3_000),
    "tls": ("tests.probing.fuzz_tls.fuzz_tls", 1_000),
    "contents": ("tests.storage.fuzz_contents.fuzz_contents", 150),
}


def fuzz(name: str, seed: int, count: int) -> list[str]:
    """Run one fuzzer, and print its duration. Return its findings."""
    begin = time.monotonic()
    findings = list(import_string(FUZZERS[name][0])(seed, count))
    print(
        f"{name}: {count:,} inputs in {time.monotonic() - begin:.0f} s, {len(findings)} findings", flush=True
    )
    for finding in findings[:20]:
        print(f"{name}: {finding}", flush=True)
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=FUZZERS, action="append", help="run only this one; may be repeated")
    parser.add_argument("--count", type=int, help="the number of inputs")
    options = parser.parse_args()
    findings: list[str] = []
    with ExitStack() as stack:
        prepare(stack)
        for name in options.only or FUZZERS:
            findings += fuzz(name, options.seed, options.count or FUZZERS[name][1])
    print(f"{len(findings)} findings with seed {options.seed}")
    return 1 if findings else 0


def prepare(stack: ExitStack) -> None:
    """Start what the test run provides: a database in memory, a Redis server, and no log on the console."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()
    logging.disable(logging.CRITICAL)
    stack.callback(LazyRedisServer(REDIS_PORT).close)
    setup_test_environment()
    from proxyhealth.testing import real_services  # it imports models

    stack.enter_context(real_services())
    setup_databases(verbosity=0, interactive=False)


if __name__ == "__main__":
    sys.exit(main())
