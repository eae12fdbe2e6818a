"""The wheel and the sdist: their files, requirements, and README; and lists in the documents."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.demo import environment

ROOT = Path(__file__).parent.parent


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


def core_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    return archive.read(name).decode()


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


def test_packages__an_index_accepts_metadata_and_readme(built):
    output = run(
        sys.executable, "-m", "twine", "--no-color", "check", "--strict", *built.iterdir(), cwd=built
    )
    assert output.count("PASSED") == 2


def test_wheel__requires_version_ranges_for_the_app_only(wheel):
    metadata, _, _ = core_metadata(wheel).partition("\n\n")
    requirements = re.findall(r"^Requires-Dist: ([a-z0-9-]+)(.*)$", metadata, re.MULTILINE)
    requirements.remove(("apprise", "<3,>=2.2; extra == 'apprise'"))
    # An extra, because it refuses the newest Django, and pip would install an older one.
    requirements.remove(("django-prometheus", "<3,>=2.4; extra == 'prometheus'"))
    assert {name for name, _ in requirements} == {
        "asgiref",
        "celery",
        "certifi",
        "django",
        "idna",
        "prometheus-client",
        "redis",
        "requests",
        "rich",
    }
    assert not any("==" in version for _, version in requirements)
    assert ("celery", "[redis]<6,>=5.5") in requirements


def test_readme__has_no_broken_links_on_a_package_index(wheel):
    _, _, readme = core_metadata(wheel).partition("\n\n")
    assert readme.startswith("# proxyhealth\n")
    assert "](" not in readme
    assert "Start a new project (`docs/start.md`)" in readme


def test_readme__links_are_absolute_with_an_address(built, tmp_path):
    """The comment in pyproject.toml says which line to change once the repository has an address."""
    shutil.copytree(built.parent, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "pyproject.toml"
    text = config.read_text()
    replacement = r"[\1](https://example.org/v$HFPR_VERSION/\2)"
    assert replacement.partition("https://")[0] in text
    config.write_text(text.replace(r"'\1 (`\2`)'", f"'{replacement}'"))
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    run(*build, "--directory", tmp_path / "absolute", cwd=tmp_path)
    (path,) = (tmp_path / "absolute").glob("*.whl")
    _, _, readme = core_metadata(path).partition("\n\n")
    version = path.name.split("-")[1]
    assert f"[Start a new project](https://example.org/v{version}/docs/start.md)" in readme
    assert set(re.findall(r"\]\((\w+)", readme)) == {"https"}
