"""Whatever dies, each change of a status is one row, and the signal of each row is sent."""

from __future__ import annotations

import json
import os
import random

import pytest

from tests.chaos.comparison import (
    check_chains,
    check_gaps,
    check_losses,
    check_rows,
    check_rows_of_epochs,
    check_signals,
    check_times,
)
from tests.chaos.history_chaos import HistoryChaos

INTERVAL = 1
STALE_AFTER = 3 * INTERVAL

# For a longer run, on PostgreSQL:
# DATABASE=postgresql KILLS=200 SECONDS=600 SEED=2 python -m pytest tests/chaos/test_history.py -k killed
KILLS = int(os.environ.get("KILLS", "20"))
SECONDS = int(os.environ.get("SECONDS", "15"))  # until faults end, if the machine is slow
SEED = os.environ.get("SEED", "1")
POOL = os.environ.get("POOL", "prefork")
LOSSES = 3
CHILDREN = 3


@pytest.fixture
def chaos(deploy, tmp_path, postgresql):
    """``chaos()`` makes a deployment with statuses that need two results to be confirmed."""

    (tmp_path / "steps").mkdir()

    def make(**options):
        settings = {"FAILURE_THRESHOLD": 2, "RECOVERY_THRESHOLD": 2, "RECHECK_AFTER": 0.3}
        env = {
            "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
            "PROXYHEALTH_SETTINGS": json.dumps(settings),
            "STEP_FOLDER": tmp_path / "steps",
            "SIGNALS_FILE": tmp_path / "signals",
        }
        deployment = deploy(interval=INTERVAL, concurrency=CHILDREN, env=env)
        if POOL == "forks":
            deployment.worker.command = f"exec python -m tests.chaos.forked_worker {CHILDREN}"
        else:
            deployment.worker.command += f" --pool {POOL}"
        return HistoryChaos(deployment, random.Random(SEED), postgresql=postgresql, **options)

    return make


@pytest.mark.fault("workers killed at each step of a change")
def test_killed_anywhere__each_change_is_a_row(chaos, verdict):
    chaos = chaos()
    with chaos.running():
        chaos.cause(KILLS, SECONDS)
        history = chaos.settle()
    (epoch,) = chaos.commits.epochs
    count = check_rows(epoch, history)
    check_times([epoch], history)
    check_chains(history, epoch.documents[-1])
    gaps = check_gaps(epoch, history, STALE_AFTER)
    repetitions = check_signals(chaos.signals(), history)
    verdict(
        f"{chaos.kills} kills, {chaos.faults['restart Redis']} restarts of Redis, "
        f"{chaos.faults['stop the database']} outages of the database: {count} changes in "
        f"{len(epoch.documents)} snapshots, each one row and a signal ({repetitions} repeated), {gaps} gaps"
    )


@pytest.mark.fault("Redis emptied while statuses change")
def test_redis_emptied__changes_are_found_beside_a_gap(chaos, verdict):
    chaos = chaos(persistent=False)
    with chaos.running():
        for _ in range(LOSSES):
            chaos.wait_for_round(documents=10)
            chaos.restart_redis()
        chaos.wait_for_round()
        history = chaos.settle()
    epochs = chaos.commits.epochs
    lost = check_rows_of_epochs(epochs, history)
    check_times(epochs, history)
    check_chains(history, epochs[-1].documents[-1])
    gaps = check_losses(epochs, history)
    check_signals(chaos.signals(), history)
    verdict(
        f"{LOSSES} times: {len(history['transitions'])} rows, each shown by a snapshot, and a signal; {lost} "
        f"changes lost with Redis; {gaps} gaps"
    )
