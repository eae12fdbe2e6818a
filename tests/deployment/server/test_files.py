"""The files of contrib/deploy, as the programs judge them that read them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deployment.server.units import read_unit
from tests.support.demo import ROOT
from tests.support.programs import find_program

DEPLOY = ROOT / "proxyhealth/contrib/deploy"
BIN = Path(sys.executable).parent
UNITS = DEPLOY / "systemd"
DOCKERFILE = DEPLOY / "docker/Dockerfile"
SERVICES = ("proxyhealth-web", "proxyhealth-worker", "proxyhealth-beat")
HIGHEST_EXPOSURE = 1.3  # of 10, as docs/deployment.md says
COMPOSE = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())


def output_of(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def program_of_tests(name: str) -> str:
    """Return the path of a program that pip installs beside Python."""
    path = shutil.which(name, path=f"{BIN}:{os.environ['PATH']}")
    assert path, f"{name} is missing: pip install -r requirements-dev.txt"
    return path


def test_units__are_valid(tmp_path: Path):
    """The programs are not where the units expect them, so each one gets another path."""
    analyze = find_program("systemd-analyze", "systemd")
    for file in UNITS.glob("proxyhealth*"):
        text = file.read_text().replace("/opt/proxyhealth/current/venv/bin/", f"{BIN}/")
        (tmp_path / file.name).write_text(text)
    assert output_of(analyze, "verify", "--man=no", *sorted(tmp_path.iterdir())) == ""


@pytest.mark.parametrize("service", SERVICES)
def test_unit__is_hardened(service: str):
    analyze = find_program("systemd-analyze", "systemd")
    text = output_of(analyze, "security", "--offline=yes", UNITS / f"{service}.service")
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", text)
    assert exposure
    assert float(exposure[1]) <= HIGHEST_EXPOSURE


@pytest.mark.parametrize("service", SERVICES)
def test_unit__never_gives_up(service: str):
    unit = read_unit(UNITS, f"{service}.service")
    assert unit["Restart"] == ["always"]
    assert unit["StartLimitIntervalSec"] == ["0"]


def test_worker__has_files_and_threads_for_its_probes():
    unit = read_unit(UNITS, "proxyhealth-worker.service")
    processes, probes = 4, 512
    assert int(unit["LimitNOFILE"][0]) > 2 * probes + 1000
    assert int(unit["TasksMax"][0]) > processes * 2 * probes
    worker = COMPOSE["services"]["worker"]
    assert worker["ulimits"]["nofile"] == int(unit["LimitNOFILE"][0])
    assert worker["pids_limit"] == int(unit["TasksMax"][0])


def test_dockerfile__passes_hadolint():
    assert output_of(program_of_tests("hadolint"), DOCKERFILE) == ""


def test_compose_file__has_the_schema_of_compose():
    output_of(
        program_of_tests("check-jsonschema"),
        "--builtin-schema",
        "vendor.compose-spec",
        DEPLOY / "docker/compose.yaml",
    )


def test_compose_file__names_only_what_exists(tmp_path: Path):
    (tmp_path / "secrets.sh").write_text((DEPLOY / "docker/secrets.sh").read_text())
    output_of("sh", tmp_path / "secrets.sh")
    folder = tmp_path / "secrets"
    assert folder.stat().st_mode & 0o777 == 0o700
    declared = {name: secret["file"] for name, secret in COMPOSE["secrets"].items()}
    assert declared == {file.name: f"./secrets/{file.name}" for file in folder.iterdir()}
    for service in COMPOSE["services"].values():
        assert set(service["secrets"]) <= declared.keys()
        assert set(service.get("depends_on", {})) <= COMPOSE["services"].keys()


def test_containers__start_the_same_commands_as_the_units():
    """Only the paths, and how the web server listens, differ."""
    web = shlex.split(
        re.findall(r"^CMD (.*)$", DOCKERFILE.read_text(), re.MULTILINE)[0].strip("[]").replace(",", "")
    )
    commands = {
        "proxyhealth-web": web,
        "proxyhealth-worker": COMPOSE["services"]["worker"]["command"],
        "proxyhealth-beat": COMPOSE["services"]["beat"]["command"],
    }
    for service, command in commands.items():
        (line,) = read_unit(UNITS, f"{service}.service")["ExecStart"]
        start = [part for part in shlex.split(line) if not part.startswith(("/", "$"))]
        ours = {option for option in start if option.startswith("--")}
        assert ours - {"--worker-tmp-dir", "--keep-alive"} <= set(command), service


def test_dockerfile__copies_only_what_exists():
    sources = re.findall(r"^COPY (?!--from)(\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert all((ROOT / source).exists() for source in sources)
    allowed = (DEPLOY / "docker/Dockerfile.dockerignore").read_text()
    assert all(f"\n!{source}\n" in allowed for source in sources)


def test_dockerfile__runs_its_last_step(tmp_path: Path):
    """The step that collects the static files, in a copy of the checkout."""
    step = re.search(r"^RUN (SECRET_KEY=.*?)^USER", DOCKERFILE.read_text(), re.MULTILINE | re.DOTALL)
    assert step
    for name in ("manage.py", "templates", "project", "proxyhealth"):
        output_of("cp", "-r", ROOT / name, tmp_path)
    path = f"PATH={BIN}:/usr/bin:/bin"
    output_of("env", "-i", "-C", tmp_path, path, "sh", "-c", step[1])
    assert (tmp_path / "var/static/staticfiles.json").exists()
