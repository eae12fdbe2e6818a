"""A rolling upgrade from the previous version, and the way back, while clients poll web servers of both."""

from __future__ import annotations

import json
import re
import zipfile
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

import pytest

from tests.chaos.polling import Poller
from tests.chaos.processes import START_TIMEOUT
from tests.support.demo import ROOT
from tests.support.proxies import wait_for

INTERVAL = 4
LIMIT = 5  # seconds for an answer, and until it shows a change: processes start all the time
CODE = Path(__file__).parent / "previous_version.zip"
ADMIN = "/admin/proxyhealth/workspaceproxy/"

# Chance decides which worker gets the task of a round, so that one of them may never begin a round.
_BEGIN = """
import logging, sys
from celery import current_app
logging.getLogger("proxyhealth.rounds.sharing").addHandler(logging.StreamHandler(sys.stdout))
current_app.tasks["proxyhealth.tasks.check_all"].apply().get()
"""

_UNDO_HISTORY = """
from django.core.management import call_command
call_command("migrate", "proxyhealth", "0001", verbosity=0)
"""

_MIGRATE = "from django.core.management import call_command; call_command('migrate', verbosity=0)"

# Chance decides which worker commits a round. This process always commits its own.
_HISTORY = """
import json
from proxyhealth.health import force_update
from proxyhealth.models import Gap, Transition
force_update()
rows = Transition.objects.order_by("pk").values_list("proxy_name", "before", "after", "signal_due_at")
print(json.dumps({"rows": list(rows), "gaps": [str(gap) for gap in Gap.objects.all()]}, default=str))
"""

# A worker of the previous version does not know the tasks of the history. It discards them.
_NEW_TASK = r"'proxyhealth\.tasks\.(?:recheck|record_history|send_signals)'"
_UNKNOWN_TASK = re.compile(
    rf"^[^\n]*ERROR[^\n]*Received unregistered task of type {_NEW_TASK}.*?^KeyError: {_NEW_TASK}$",
    re.MULTILINE | re.DOTALL,
)

_EVENT = re.compile(r"(round shared|shard end|round end) token=(\d+)")


class Version:
    """The web server and the worker of one version. The web server is polled while it runs."""

    def __init__(self, name, deployment, number):
        self.name = name
        self.deployment = deployment
        self.web = deployment.webs[number]
        self.worker = deployment.workers[number]
        self.base = deployment.bases[number]
        self.pollers = []
        self.polling = ExitStack()

    def start(self):
        self.web.start()
        self.poll()  # before it answers, so that the first answer is checked, too
        self.worker.start()
        self.worker.wait_for_log(" ready.")
        self.wait_until(lambda poll: True, "anything", START_TIMEOUT)

    def poll(self):
        self.pollers.append(self.polling.enter_context(Poller(self.deployment, self.base)))

    def stop_web(self):
        self.polling.close()
        self.web.stop()

    def wait_until(self, predicate, what, seconds=LIMIT):
        self.pollers[-1].wait_until(predicate, seconds, f"the {self.name} web server shows {what}")

    def tokens(self, event):
        """Return the tokens of the rounds for which the worker has logged this event."""
        return {token for name, token in _EVENT.findall(self.worker.log_text()) if name == event}


class Upgrade:
    """A deployment whose processes are those of the previous version, or of this checkout."""

    def __init__(self, deployment, old_code):
        self.deployment = deployment
        self.old_code = old_code
        self.old, self.new = Version("old", deployment, 0), Version("new", deployment, 1)
        self.beat = deployment.beat
        for process in (self.old.web, self.old.worker, self.beat):
            process.folder = old_code
        proxies = deployment.proxies
        self.next_save = cycle((proxies["sick"], proxies["fine"]))
        self.saved = self.changed = 0

    @property
    def readers(self):
        return [version for version in (self.old, self.new) if version.web.is_running]

    def migrate(self):
        """Migrate the database with the code of this checkout, while the previous version serves."""
        self.deployment.python(_MIGRATE)

    def drop_history(self):
        """Leave the database as the previous version has migrated it."""
        self.deployment.python(_UNDO_HISTORY)

    def replace_beat(self, folder):
        """Replace beat by another one that has the same schedule file."""
        self.beat.stop()
        self.beat.folder = folder
        self.beat.start()

    def wait_for_tick(self):
        self.beat.wait_for_log("Sending due task")

    def save_on_each(self):
        """Save a row on each web server, with the URL of another proxy. Wait until all show its status."""
        row = self.deployment.row("moved")
        for version in self.readers:
            proxy = next(self.next_save)
            self.deployment.post(f"{version.base}{ADMIN}{row['id']}/change/", name="moved", url=proxy.url)
            self.saved += 1
            for reader in self.readers:
                reader.wait_until(
                    lambda poll, status=proxy.status: poll.statuses["moved"] == status,
                    f"a save on the {version.name} one",
                )

    def request_round(self, version):
        """Request a round on a web server. Wait until all show one that began after the request."""
        last = max(reader.pollers[-1].polls[-1].snapshot["checked_at"] for reader in self.readers)
        self.deployment.post(f"{version.base}{ADMIN}health/check/", all=1)
        for reader in self.readers:
            reader.wait_until(lambda poll: poll.snapshot["checked_at"] > last, "the round that was requested")

    def change_a_status(self):
        """Change the status of a proxy, and request a round. Wait until all web servers show the change."""
        proxy = self.deployment.proxies["changing"]
        proxy.report_errors(*([] if proxy.status == "unhealthy" else ["It changed."]))
        self.changed += 1
        self.request_round(self.readers[0])
        for reader in self.readers:
            reader.wait_until(lambda poll: poll.statuses["changing"] == proxy.status, "a changed status")

    def share_rounds(self):
        """Begin rounds in a process of each version, until both workers have probed one of each version."""
        for version in (self.old, self.new):
            wait_for(
                lambda version=version: self.begin_round(version) & self.probed_by_both(),
                START_TIMEOUT,
                f"both workers probe a round that the {version.name} version has begun",
            )

    def begin_round(self, version):
        """Return the token of a round that a process of this version begins. Wait until it has ended."""
        log = self.deployment.python(_BEGIN, version.worker.folder)
        tokens = {token for _, token in _EVENT.findall(log)}  # none if another round was running
        wait_for(lambda: tokens <= self.tokens("round end"), LIMIT, "the round ends")
        return tokens

    def probed_by_both(self):
        return self.old.tokens("shard end") & self.new.tokens("shard end")

    def stop_worker_in_round(self, version):
        begun = self.tokens("round shared")
        self.deployment.post(f"{self.readers[0].base}{ADMIN}health/check/", all=1)
        wait_for(lambda: self.tokens("round shared") != begun, LIMIT, "a round begins")
        version.worker.stop()

    def tokens(self, event):
        return self.old.tokens(event) | self.new.tokens(event)

    def check_polls(self):
        """Check every poll of every web server. Return their number."""
        statuses = {"fine": "ok", "sick": "unhealthy", "down": "unreachable", "blank": "unregistered"}
        statuses |= {name: "ok" for name in self.deployment.proxies if name.startswith("a-slow")}
        statuses["moved"] = ("ok", *["unknown", "unhealthy", "unknown", "ok"] * self.saved)
        statuses["changing"] = ("ok", *["unhealthy", "ok"] * self.changed)
        pollers = [*self.old.pollers, *self.new.pollers]
        for poller in pollers:
            while poller.polls[0].code == 0:
                del poller.polls[0]  # the web server did not listen yet
            poller.check(statuses, limit=LIMIT)
            stale = [str(poll) for poll in poller.polls if poll.stale]
            assert not stale, f"{len(stale)} of {len(poller.polls)} polls are stale: {stale[0]}"
        return sum(len(poller.polls) for poller in pollers)

    def wait_for_history(self):
        """Wait until the history ends with the statuses of all proxies. Check each row of it.

        A worker of the previous version may have discarded the task that records the last changes.
        """
        proxies = self.deployment.proxies
        expected = {name: proxies[name].status for name in ("fine", "sick", "down", "changing")}
        expected |= {
            "blank": "unregistered",
            "moved": self.readers[0].pollers[-1].polls[-1].statuses["moved"],
        }

        def complete_history():
            chains = self.read_history()
            return chains if expected.items() <= {name: chains[name][-1] for name in chains}.items() else None

        chains = wait_for(complete_history, START_TIMEOUT, f"the history ends with {expected}")
        for name in ("fine", "sick", "down", "blank"):
            assert chains[name] == ["unknown", expected[name]], "one row since the upgrade, and no other"
        return chains

    def read_history(self):
        """Run a round, and return the statuses of each proxy in the history: chains without a gap."""
        history = json.loads(self.deployment.python(_HISTORY))
        assert history["gaps"] == [], "the statuses were never stale"
        chains = {}
        for name, before, after, signal_due_at in history["rows"]:
            chain = chains.setdefault(name, [before])
            assert before == chain[-1] != after, history
            assert signal_due_at is None, "no receiver is connected"
            chain.append(after)
        return chains

    def count_rounds(self):
        """Check that no round or task failed, and that each was counted once. Return the number of rounds."""
        url = f"{self.readers[0].base}/metrics"
        successes = 'proxyhealth_rounds_total{outcome="success"} '
        wait_for(  # a round may be about to end
            lambda: f"\n{successes}{len(self.tokens('round end'))}.0\n" in self.deployment.page(url),
            LIMIT,
            "each round is counted once",
        )
        counters = re.compile(
            r'^proxyhealth_(?:rounds|task_runs)_total{outcome="(\w+)".*} [1-9]', re.MULTILINE
        )
        assert set(counters.findall(self.deployment.page(url))) <= {"success", "skipped"}
        for process in self.deployment.processes:
            log = process.log_text()
            if process is self.old.worker:
                log = _UNKNOWN_TASK.sub("", log)
            assert not re.search("Traceback|ERROR", log), process.name
        return len(self.tokens("round end"))


@pytest.fixture
def upgrade(deploy, tmp_path):
    """A deployment of the previous version with one proxy per status, and as many shards."""
    old_code = tmp_path / "previous_version"
    zipfile.ZipFile(CODE).extractall(old_code)
    deployment = deploy(interval=INTERVAL, webs=2, workers=2, env={"PROXYHEALTH_SHARD_SIZE": 1})
    deployment.add("fine")
    deployment.add("sick", errors=("It is sick.",))
    deployment.add("changing")
    deployment.add("down").stop()
    for n in range(4):  # the first by name: meanwhile, a new process takes shards of an old one, too
        deployment.add(f"a-slow{n}", delay=0.6)
    deployment.add_rows({"blank": "", "moved": deployment.proxies["fine"].url})
    upgrade = Upgrade(deployment, old_code)
    upgrade.drop_history()
    deployment.start_redis()
    for process in (upgrade.old.web, upgrade.old.worker, upgrade.beat):
        process.start()
    with Poller(deployment) as poller:
        poller.wait_until(lambda poll: not poll.stale, START_TIMEOUT, "a round has ended")
    upgrade.old.poll()
    yield upgrade
    upgrade.old.polling.close()
    upgrade.new.polling.close()


@pytest.mark.alone
@pytest.mark.fault("rolling upgrade, and the way back")
def test_rolling_upgrade__never_stale_never_wrong(upgrade, verdict):
    old, new = upgrade.old, upgrade.new
    upgrade.save_on_each()
    assert list(upgrade.old_code.glob("proxyhealth/rounds/__pycache__/*")), "another code runs"

    upgrade.migrate()
    upgrade.save_on_each()
    new.start()
    upgrade.save_on_each()
    upgrade.change_a_status()
    upgrade.share_rounds()

    old.stop_web()
    upgrade.stop_worker_in_round(old)
    upgrade.replace_beat(upgrade.old_code)
    old.start()
    upgrade.save_on_each()

    upgrade.replace_beat(ROOT)
    upgrade.stop_worker_in_round(old)
    upgrade.save_on_each()
    upgrade.wait_for_tick()
    upgrade.change_a_status()
    old.stop_web()
    upgrade.count_rounds()

    # The way back: the first process of the previous version finds a document of this one.
    old.start()
    upgrade.save_on_each()
    upgrade.share_rounds()
    upgrade.replace_beat(upgrade.old_code)
    upgrade.stop_worker_in_round(new)
    upgrade.save_on_each()
    new.stop_web()
    upgrade.wait_for_tick()
    upgrade.change_a_status()

    assert not upgrade.deployment.exited()
    rounds = upgrade.count_rounds()
    polls = upgrade.check_polls()
    verdict(f"{polls} polls, never stale, never wrong, {rounds} rounds, all complete")


@pytest.mark.alone
@pytest.mark.fault("upgrade to the first version with a history")
def test_rolling_upgrade__history_has_each_change_once(upgrade, verdict):
    old, new = upgrade.old, upgrade.new
    upgrade.migrate()
    new.start()
    upgrade.wait_for_history()
    upgrade.change_a_status()

    upgrade.stop_worker_in_round(old)
    upgrade.request_round(new)
    upgrade.change_a_status()

    # A worker of the previous version commits a change alone. The next upgrade finds it.
    old.worker.start()
    upgrade.stop_worker_in_round(new)
    upgrade.change_a_status()
    new.worker.start()

    chains = upgrade.wait_for_history()
    assert chains["changing"] == ["unknown", "ok", "unhealthy", "ok", "unhealthy"]
    polls = upgrade.check_polls()
    verdict(f"{polls} polls, never stale, never wrong, each change in the history, no gap")
