"""docs/start.md, executed step by step in an empty directory, and the documents that assume its project."""

from __future__ import annotations

import re

import pytest

from tests.deployment.conftest import NEWEST
from tests.deployment.documents import DOCS, ROOT, UV_INSTALL, Reader, blocks
from tests.deployment.web import Web
from tests.support.ports import free_port
from tests.support.proxies import WorkspaceProxyServer, wait_for

START = (DOCS / "start.md").read_text()
RUNBOOK = (DOCS / "runbook.md").read_text()
PAIR = NEWEST  # which pip chooses for the reader

HEALTH_PAGE = "/admin/proxyhealth/workspaceproxy/health/"

# Runs several commands of Celery in one process, because the imports take most of their time.
CELERY = """
import shlex, sys
from celery.__main__ import main
for command in sys.argv[1:]:
    sys.argv = shlex.split(command)
    try:
        main()
    except SystemExit as end:
        assert not end.code, command
    print(end="\\0", flush=True)
"""


@pytest.fixture(scope="module")
def project(pair, redis_url, tmp_path_factory):
    """Follow the document to its end. Return the reader, and a session with the web server."""
    python, django = pair
    web, proxy = free_port(), free_port()
    changes = {
        "/path/to/the/checkout": str(ROOT),
        "python3 -m venv": f"{python} -m venv --without-pip",
        "pip install": f"{UV_INSTALL} 'django=={django}.*'",
        "8000": str(web),
        "8001": str(proxy),
        '"INTERVAL": 60': '"INTERVAL": 3',  # beat ticks soon
    }
    reader = Reader(
        tmp_path_factory.mktemp("start"),
        changes,
        REDIS_URL=f"{redis_url}/3",
        METRICS_TOKEN="secret",
        DJANGO_SUPERUSER_USERNAME="root",
        DJANGO_SUPERUSER_EMAIL="root@example.com",
        DJANGO_SUPERUSER_PASSWORD="a long password",
    )
    try:
        reader.follow(START)
        yield reader, Web(web)
    finally:
        reader.stop()


def test_start__ends_with_a_status_on_the_health_page(project, pair):
    reader, web = project
    web.sign_in("root")
    page = wait_for(lambda: "This is only a trial." in (page := web.get(HEALTH_PAGE)).text and page, 20)
    for path in re.findall(r'(?:href|src)="(/static/proxyhealth/[^"]+)"', page.text):
        assert web.get(path).ok
    assert "/static/proxyhealth/health.js" in page.text
    body = web.get("/api/v2/workspaceproxies").json()
    assert [(proxy["name"], proxy["status"]["status"]) for proxy in body["regions"]] == [("paris", "ok")]
    wait_for(lambda: not web.get("/api/v2/workspaceproxies").json()["snapshot"]["stale"], 20)
    assert reader.enter("python -m django --version").startswith(pair[1])


def test_start__metrics_need_the_token_and_no_extra(project):
    reader, web = project
    web.wait()
    assert web.get("/metrics").status_code == 401
    text = wait_for(
        lambda: (
            "proxyhealth_snapshot_up 1.0"
            in (text := web.get("/metrics", headers={"Authorization": "Bearer secret"}).text)
            and text
        ),
        20,
    )
    assert re.search(
        r"^proxyhealth_health_check_results\{proxy_id=\"[0-9a-f-]+\"\} 1\.0$", text, re.MULTILINE
    )
    assert "python_info" in text
    code = "from importlib import metadata; print([d.name for d in metadata.distributions()])"
    assert "django-prometheus" not in reader.enter(f'python -c "{code}"')


def test_start__samples_of_other_documents_run(project):
    reader, _ = project
    texts = [(ROOT / "README.md").read_text(), (DOCS / "python.md").read_text()]
    samples = [sample for text in texts for sample in blocks("python", text)]
    assert len(samples) == 9
    row = "from proxyhealth.models import WorkspaceProxy; proxy = WorkspaceProxy.objects.first()"
    call = "import json; assert set(json.loads(proxies(None).content)) == {'stale', 'proxies'}"
    reader.shell("\n".join([row, *samples, call]))


def test_start__runbook_finds_its_lines_in_the_logs(project):
    reader, _ = project
    sources = RUNBOOK.partition("## Proxyhealth")[0]
    lines = [" ".join(line.split()) for line in re.findall(r"`([^`]+=…[^`]*)`", sources)]
    assert [line.partition(" ")[0] for line in lines] == ["round", "round", "status"]
    lines += [
        "Scheduler: Sending due task proxyhealth-round",
        "Task proxyhealth.tasks.check_all[…] received",
        "round skipped: early",
        "status change proxy=… name=oslo from=unknown to=ok",  # at the level INFO, as a recovery
    ]
    commands = sorted(set(re.findall(r"celery -A host (?:status|inspect \w+)", RUNBOOK)))
    extra_tick = """celery -A host call proxyhealth.tasks.check_all --kwargs '{"gap": 60}'"""
    (reader.folder / "several.py").write_text(CELERY)
    quoted = " ".join(f'"{command}"' for command in commands)
    with WorkspaceProxyServer() as server:
        reader.shell(
            "from proxyhealth.models import WorkspaceProxy\n"
            f"WorkspaceProxy.objects.create(name='oslo', url='{server.url}')"
        )
        outputs = reader.enter(f"PYTHONPATH=. python {reader.folder / 'several.py'} {quoted}").split("\0")
        reader.enter(extra_tick)
        for line in lines:
            pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
            wait_for(
                lambda pattern=pattern: pattern.search(reader.log.read_text()), 30, f"the log has {line}"
            )
    for command, output in zip(commands, outputs, strict=False):
        assert "1 node online." in output, (command, output)
        assert ("'name': 'celery'" in output) == ("active_queues" in command)
    (grep,) = re.findall(r"^\$ (grep 'status change.*)$", RUNBOOK, re.MULTILINE)
    grep = grep.replace("<name>", "oslo").replace("worker.log", str(reader.log))
    assert "to=ok" in reader.enter(grep)
