"""The wheel, installed in a new virtual environment and a new project, as the README describes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
import requests

from tests.support.demo import environment, free_ports
from tests.support.proxies import WorkspaceProxyServer, wait_for

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = (ROOT / "docs" / "pages.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()

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


def run(*command, cwd, **env):
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


# Files of the developer and of editors. The build must not depend on .gitignore, which no archive has.
STRAY = [
    ".env",
    ".env.local",
    "db.sqlite3",
    "db.sqlite3-wal",
    "dump.rdb",
    "celerybeat-schedule.db",
    "id_rsa",
    "secrets.json",
    "__pycache__/x.pyc",
    "models.py.orig",
    "models.py~",
    "#models.py#",
    ".#models.py",
    ".models.py.swp",
    "models-copy.py",
    "models.orig.py",
    "Models.py",
    "x.pyc",
    "api/.env",
    "api/openapi.json.bak",
    "api/.git/config",
    "static/proxyhealth/.DS_Store",
    "static/proxyhealth/db.sqlite3",
    "static/a.js",
    "templates/proxyhealth/.badge.html.swp",
    "templates/a.html",
    "contrib/prometheus/secrets.yml",
    "migrations/.env",
    "node_modules/a.js",
    "venv/lib/a.py",
    ".venv/a.py",
    "build/lib/a.py",
    "../.env",
    "../db.sqlite3",
    "../var/demo.sqlite3",
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build the wheel and the sdist from a copy of the source, with stray files. Return their directory."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy2(ROOT / name, source)
    shutil.copytree(
        ROOT / "proxyhealth", source / "proxyhealth", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in STRAY:
        path = source / "proxyhealth" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("SECRET = 1")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--target", "sdist"]
    run(*build, "--directory", source / "dist", cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def host(wheel, valkey, tmp_path_factory):
    """Create a new project with the app, as the README describes. Return its directory."""
    folder = tmp_path_factory.mktemp("host")
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    # The wheel requires version ranges. The test needs the versions of its own environment.
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{d.name}=={d.version}\n" for d in distributions()))
    # Neither a pip in the new environment nor bytecode of all packages: both take seconds.
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--quiet", "--no-compile", "-c", constraints, wheel, cwd=folder)
    run(python, "-m", "django", "startproject", "host", folder, cwd=folder)
    for block in [*blocks("python"), *blocks("python", PAGES)]:
        first, _, rest = block.partition("\n")
        if first.startswith("# host/"):
            with (folder / first.removeprefix("# ")).open("a") as file:
                file.write(rest.replace('{"INTERVAL": 60}', '{"INTERVAL": 3}'))  # ticks come soon
    run(python, "manage.py", "check", cwd=folder)
    run(python, "manage.py", "migrate", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def deployment(host, valkey):
    """Run the project's worker and beat with the README's commands, and its web server."""
    port = free_ports()
    environ = {
        **{name: value for name, value in os.environ.items() if name in ("HOME", "LANG")},
        "PATH": f"{host / 'venv' / 'bin'}:{os.environ['PATH']}",
        "REDIS_URL": f"redis://127.0.0.1:{valkey.port}/3",
    }
    console = "\n".join(blocks("console"))
    commands = re.findall(r"^\$ (celery .*)$", console, re.MULTILINE)
    assert len(commands) == 2
    commands.append(f"python manage.py runserver --noreload 127.0.0.1:{port}")
    with (host / "log").open("wb") as log:
        processes = [
            subprocess.Popen(command.split(), cwd=host, env=environ, stdout=log, stderr=log)
            for command in commands
        ]
    try:
        yield host, f"http://127.0.0.1:{port}", environ
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)


def test_wheel__contains_exactly_the_files_of_the_app(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "proxyhealth").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == files
    assert {"proxyhealth/py.typed", "proxyhealth/static/proxyhealth/health.js"} <= names


def test_sdist__contains_the_files_of_the_wheel(wheel, built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive}
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == files | {"README.md", "CHANGELOG.md", "PKG-INFO", "pyproject.toml"}


def test_wheel__requires_version_ranges_for_the_app_only(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    metadata = archive.read(name).decode()
    requirements = re.findall(r"^Requires-Dist: ([a-z0-9-]+)(.*)$", metadata, re.MULTILINE)
    assert {name for name, _ in requirements} == {
        "asgiref",
        "celery",
        "certifi",
        "django",
        "django-prometheus",
        "idna",
        "prometheus-client",
        "redis",
        "requests",
    }
    assert not any("==" in version for _, version in requirements)
    assert ("celery", "[redis]<6,>=5.5") in requirements


def test_fresh_project__admin_json_and_metrics_work(deployment):
    host, base, environ = deployment
    with WorkspaceProxyServer(report={"warnings": ["hello from afar"]}) as server, requests.Session() as web:
        code = (
            "from django.contrib.auth.models import User\n"
            "from proxyhealth.models import WorkspaceProxy\n"
            "User.objects.create_superuser('root', '', 'root')\n"
            f"print(WorkspaceProxy.objects.create(name='paris', url='{server.url}').pk)\n"
        )
        id = run("python", "manage.py", "shell", "-v0", "-c", code, cwd=host, **environ).strip()

        def responds():
            try:
                return web.get(f"{base}/admin/login/", timeout=20).ok
            except (requests.ConnectionError, requests.Timeout):
                return False

        wait_for(responds, 60, "the web server responds")
        form = {"username": "root", "password": "root", "csrfmiddlewaretoken": web.cookies["csrftoken"]}
        web.post(f"{base}/admin/login/?next=/admin/", form, timeout=20).raise_for_status()

        def proxies():
            return web.get(f"{base}/api/v2/workspaceproxies", timeout=20).json()

        wait_for(lambda: proxies()["regions"][0]["healthy"], 30, "the proxy is ok")
        wait_for(lambda: not proxies()["snapshot"]["stale"], 30, "the first round ends")
        page = web.get(f"{base}/admin/proxyhealth/workspaceproxy/health/", timeout=20)
        assert page.ok
        assert "hello from afar" in page.text
        for path in re.findall(r'(?:href|src)="(/static/proxyhealth/[^"]+)"', page.text):
            assert web.get(base + path, timeout=20).ok
        assert "/static/proxyhealth/health.js" in page.text
        assert "paris" in web.get(f"{base}/admin/proxyhealth/workspaceproxy/", timeout=20).text
        metrics = web.get(f"{base}/metrics", timeout=20).text
        assert f'proxyhealth_health_check_results{{proxy_id="{id}"}} 1.0' in metrics
        assert "python_info" in metrics


def test_readme__python_samples_run(deployment):
    host, _, environ = deployment
    samples = [block for block in blocks("python") if not block.startswith("# host/")]
    assert samples
    for sample in samples:
        run("python", "manage.py", "shell", "-v0", "-c", sample, cwd=host, **environ)


def test_runbook__log_and_celery_commands_of_the_readme(deployment):
    """The README's worker and beat log what the runbook looks for, and answer its commands."""
    host, _, environ = deployment
    log = host / "log"
    sources = RUNBOOK.partition("## Proxyhealth")[0]
    lines = [" ".join(line.split()) for line in re.findall(r"`([^`]+=…[^`]*)`", sources)]
    assert [line.partition(" ")[0] for line in lines] == ["round", "round", "status"]
    lines += [
        "Scheduler: Sending due task proxyhealth-round",
        "Task proxyhealth.tasks.check_all[…] received",
        "round skipped: early",
        "status change proxy=… name=oslo from=none to=ok",  # at the level INFO, as a recovery
    ]
    commands = sorted(set(re.findall(r"celery -A host (?:status|inspect \w+)", RUNBOOK)))
    extra_tick = """celery -A host call proxyhealth.tasks.check_all --kwargs '{"gap": 60}'"""
    with WorkspaceProxyServer() as server:
        create = f"WorkspaceProxy.objects.create(name='oslo', url='{server.url}')"
        code = f"from proxyhealth.models import WorkspaceProxy\n{create}"
        run("python", "manage.py", "shell", "-v0", "-c", code, cwd=host, **environ)
        outputs = run("python", "-c", CELERY, *commands, extra_tick, cwd=host, **environ).split("\0")
        for line in lines:
            pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
            wait_for(lambda pattern=pattern: pattern.search(log.read_text()), 30, f"the log has {line}")
    for command, output in zip(commands, outputs, strict=False):
        assert "1 node online." in output, (command, output)
        assert ("'name': 'celery'" in output) == ("active_queues" in command)
    (grep,) = re.findall(r"^\$ (grep 'status change.*)$", RUNBOOK, re.MULTILINE)
    assert "to=ok" in run("sh", "-c", grep.replace("<name>", "oslo").replace("worker.log", "log"), cwd=host)


def test_readme__make_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+(?: [a-z0-9-]+)*):", makefile, re.MULTILINE))
    targets = {target for line in targets for target in line.split()}
    commands = set(re.findall(r"(?:`|\$ |PORT=\d+ )make ([a-z0-9-]+)", README))
    assert {"run", "test", "start-proxy", "stop-proxy"} <= commands
    assert commands <= targets


def test_readme__names_every_setting_status_reason_and_check():
    from proxyhealth import checks
    from proxyhealth.conf import NAMES
    from proxyhealth.statuses import Reason, Status

    for word in [*NAMES, *Status, *(reason for reason in Reason if reason)]:
        assert f"| `{word}` |" in README, word
    for name, (id, _) in checks.SETTINGS.items():
        assert f"| `proxyhealth.{id}` | `{name}` |" in SETTINGS, name
