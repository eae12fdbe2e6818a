"""The commands of docs/runbook.md, taken from the document and run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import trustme
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from tests.contrib.expressions import DOCS
from tests.settings import REDIS_PORT
from tests.support.programs import find_program
from tests.support.servers import Server, server_context

RUNBOOK = (DOCS / "runbook.md").read_text()
BEGINNINGS = {
    # tests/deployment/test_readme_start.py runs these with the worker of docs/start.md.
    "celery -A host ",
    "grep 'status change",
    # Tests of this file.
    "curl --noproxy '*' -",
    "curl -sS -m 10 -i -H ",
    "getent hosts ",
    "openssl s_client ",
    "python manage.py migrate --check",
    "python manage.py proxyhealth ",
    "python manage.py shell -c ",
    'redis-cli -u "$REDIS_URL" ',
    # These show the state of a machine, and have no placeholder.
    "date -u",
    "dmesg -T",
    "ip route",
    "ulimit -",
}


def commands(beginning=""):
    """Return all commands of the runbook that begin so, from its blocks and from its sentences."""
    blocks = re.findall(r"^```console\n(.*?)^```", RUNBOOK, re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^\$ (.*)$", "\n".join(blocks), re.MULTILINE)
    programs = "|".join(sorted({text.split()[0] for text in BEGINNINGS}))
    prose = re.sub(r"^```.*?^```", "", RUNBOOK, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(line.split()) for line in re.findall(rf"`((?:{programs})\s[^`]+)`", prose)]
    return sorted({line for line in lines if line.startswith(beginning)})


def run(command, **env):
    """Run a command in a shell, as the reader of the runbook does. Return its output."""
    done = subprocess.run(
        ["sh", "-c", command],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout + done.stderr


def test_runbook__every_command_is_tried_by_a_test():
    for beginning in BEGINNINGS:
        assert commands(beginning), beginning
    others = {line for line in commands() if not line.startswith(tuple(BEGINNINGS))}
    assert others == {"celery -A host"}  # in the table of placeholders


def test_runbook__redis_commands_work(redis_client):
    lines = commands("redis-cli ")
    assert len(lines) >= 7
    for line in lines:
        assert line.startswith('redis-cli -u "$REDIS_URL" '), "the URL is that of Redis, not of a proxy"
        assert redis_client.execute_command(*shlex.split(line)[3:]) is not None, line
    assert str(REDIS_PORT) in str(redis_client.connection_pool.connection_kwargs)


def test_runbook__commands_show_the_answer_of_a_proxy(serve):
    find_program("curl", "curl")
    url = serve(report={"errors": ["the database is gone"]}).url
    for line in commands("curl --noproxy '*' -"):
        line = line.replace("<URL of a canary>", "<url>/healthz-report").replace("<url>", url)
        output = run(line, http_proxy="http://127.0.0.1:1")
        assert re.search("HTTP/1.[01] 200", output), line
        assert "the database is gone" in output
    for line in commands("getent hosts "):
        line = line.replace("<host of a canary>", "<host>").replace("<host>", "localhost")
        assert "localhost" in run(line)


def test_runbook__openssl_shows_the_certificate():
    find_program("openssl", "openssl")
    authority = trustme.CA()
    with Server(
        lambda link: link.recv(1),  # until openssl closes the connection
        host="127.0.0.1",
        tls=server_context(authority, "localhost"),
        read=False,
    ) as server:
        for line in commands("openssl s_client -connect"):
            output = run(line.replace("<host>:<port>", server.netloc).replace("<host>", "localhost"))
            assert "notAfter=" in output if "x509" in line else "BEGIN CERTIFICATE" in output


class Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    ("required", "sent", "expected"),
    [
        ("", "", "200 OK"),
        ("s3cret", "s3cret", "200 OK"),
        ("s3cret", "other", "401 Unauthorized"),
        ("s3cret", "", "401 Unauthorized"),
    ],
)
def test_runbook__curl_tells_metrics_from_a_refusal(configure, required, sent, expected):
    find_program("curl", "curl")
    configure(METRICS_TOKEN=required)
    (line,) = commands("curl -sS")
    with make_server("127.0.0.1", 0, get_wsgi_application(), handler_class=Quiet) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        target = f"127.0.0.1:{server.server_port}"
        first, *rest = run(line.replace("<target>", target), METRICS_TOKEN=sent, no_proxy="*").splitlines()
        thread.join(20)
    assert first.endswith(expected)
    assert ("proxyhealth_snapshot_up 0.0" in rest) == (expected == "200 OK")
    assert bool(rest) == (expected == "200 OK")


@pytest.mark.django_db
def test_runbook__shell_commands_work(serve, capsys):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    WorkspaceProxy.objects.create(name="oslo", url="")
    WorkspaceProxy.objects.create(name="lima", url="https://lima.example.com", deleted=True)
    (count,) = (shlex.split(line)[-1] for line in commands("python manage.py shell -c "))
    exec(count, {})
    assert capsys.readouterr().out.split() == ["3", "2", "1"]


@pytest.mark.django_db
def test_runbook__proxyhealth_commands_work(serve, capsys):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    lines = commands("python manage.py proxyhealth ")
    assert lines[0].endswith(" check --local")
    for line in lines:
        call_command(*shlex.split(line.replace("<name>", "paris"))[2:])
        assert capsys.readouterr().out
    assert not health.snapshot().stale


@pytest.mark.django_db
def test_runbook__migrate_reports_no_migration():
    (line,) = commands("python manage.py migrate")
    call_command(*shlex.split(line)[2:])  # raises SystemExit if there is one
