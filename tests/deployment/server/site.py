"""A server that docs/deployment.md sets up, below a folder and on free ports."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
import trustme

from tests.deployment.server.guide import Shell
from tests.deployment.server.units import SOCKET, read_unit
from tests.support.demo import ROOT
from tests.support.ports import free_port
from tests.support.postgresql import find_initdb, init_database
from tests.support.programs import find_program
from tests.support.proxies import wait_for

PASSWORD = "a-good-Password-7"
_PATHS = re.compile(r"(?<![\w$})./])/(etc|opt|var|run|usr/local/sbin)(?=[/ ]|$)", re.MULTILINE)
_FOLDERS = (
    *("bin", "etc/nginx/conf.d", "etc/nginx/sites-enabled", "etc/prometheus", "etc/systemd/system"),
    *("etc/redis", "opt/proxyhealth/releases", "run/proxyhealth", "supervisor.d", "usr/local/sbin"),
    *("var/backups", "var/log", "var/lib/proxyhealth", "var/lib/nginx"),
)
_CODE = ("project", "proxyhealth", "templates", "manage.py", "requirements.txt")

# Commands that change the machine. What they would do is done already, or not needed here.
NOT_RUN = ("adduser ", "apt-get ", "certbot ", "journalctl ", "$release/venv/bin/pip ")

_SHIMS = {
    "systemctl": 'cd {root} && exec {python} -m tests.deployment.server.units {folder} "$@"',
    # The user is the second argument.
    "runuser": 'user=$2; shift 3; [ "$user" = postgres ] && export PGUSER=postgres; exec "$@"',
    "chown": "exit 0",
    # Without the owner and the group.
    "install": """for word; do
  shift
  case $word in -o|-g) drop=1 ;; *) [ -z "$drop" ] && set -- "$@" "$word"; drop= ;; esac
done
exec /usr/bin/install "$@\"""",
    # The virtual environment of the tests, which has all packages.
    "python3": 'exec ln -s {prefix} "$3"',
    # The source is a copy of this checkout, with other paths and ports in its configuration files.
    "git": 'for target; do :; done; mkdir -p "${target%/*}" && exec cp -r {folder}/source "$target"',
    "nginx": 'exec {nginx} -e stderr -c {folder}/etc/nginx/nginx.conf "$@"',
}


class Site:
    """All processes of the deployment, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("http", "https", "postgresql", "valkey")}
        self.ports |= {name: free_port() for name in ("prometheus", "alertmanager", "receiver")}
        self.base = f"https://localhost:{self.ports['https']}"
        self.ca = folder / "ca.pem"
        self._make_folders()
        self._make_certificate()
        self._make_shims()
        _copy_source(self.translate, folder / "source")
        self.shell = Shell(folder, self._environment(), self.translate)
        self._make_postgresql()
        self._supervisord = self._start_supervisord()

    def translate(self, text: str) -> str:
        """Replace only the paths, ports, and intervals of a command or of a configuration file."""
        ports = self.ports
        text = _PATHS.sub(rf"{self.folder}/\1", text)
        for pattern, replacement in {
            r"\blisten \[::\]:80\b": f"listen 127.0.0.2:{ports['http']}",
            r"\blisten 80\b": f"listen 127.0.0.1:{ports['http']}",
            r"\blisten \[::\]:443\b": f"listen 127.0.0.2:{ports['https']}",
            r"\blisten 443\b": f"listen 127.0.0.1:{ports['https']}",
            r"@SITE@:443": f"@SITE@:{ports['https']}",
            r"https://\$site\b": f"https://$site:{ports['https']}",
            r":5432\b": f":{ports['postgresql']}",
            r"\b6380\b": str(ports["valkey"]),
            r":9090\b": f":{ports['prometheus']}",
            r":9093\b": f":{ports['alertmanager']}",
            r":5001\b": f":{ports['receiver']}",
            r"^user=proxyhealth$": f"user={getpass.getuser()}",
            r"^site=.*": "site=localhost",
            r"^valkey=valkey$": "valkey=redis",  # the Valkey of the tests has no TLS
            # So that the test need not wait for minutes.
            r"_interval: 15s\b": "_interval: 1s",
            r"(?<=proxyhealth_interval_seconds\)) \+ 60\b": " + 1",
            r"\bgroup_wait: 30s\b": "group_wait: 1s",
            r"\bgroup_interval: 5m\b": "group_interval: 1s",
            r"\bclient_body_timeout 10s": "client_body_timeout 2s",
            r"\bcreatesuperuser\b": "createsuperuser --noinput",
        }.items():
            text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        return text

    def _make_folders(self) -> None:
        for name in _FOLDERS:
            (self.folder / name).mkdir(parents=True)
        (self.folder / "etc/redis/redis.conf").write_text("daemonize no\n")
        (self.folder / "etc/nginx/nginx.conf").write_text(
            f"pid {self.folder}/run/nginx.pid; events {{ }}\nuser {getpass.getuser()};\n"
            f"http {{ access_log {self.folder}/var/log/nginx-access.log; include /etc/nginx/mime.types;\n"
            f"client_body_temp_path {self.folder}/var/lib/nginx/body;\n"
            f"proxy_temp_path {self.folder}/var/lib/nginx/proxy;\n"
            f"include {self.folder}/etc/nginx/conf.d/*.conf; }}\n"
        )

    def _make_certificate(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca)
        certificate = authority.issue_cert("localhost")
        folder = self.folder / "etc/letsencrypt/live/localhost"
        folder.mkdir(parents=True)
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(folder / "fullchain.pem", append=True)
        certificate.private_key_pem.write_to_path(folder / "privkey.pem")

    def _make_shims(self) -> None:
        nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or find_program(
            "nginx", "nginx"
        )
        values = {
            "root": ROOT,
            "folder": self.folder,
            "python": sys.executable,
            "prefix": sys.prefix,
            "nginx": nginx,
        }
        for name, text in _SHIMS.items():
            for key, value in values.items():
                text = text.replace(f"{{{key}}}", str(value))
            (self.folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (self.folder / "bin" / name).chmod(0o755)

    def _environment(self) -> dict[str, str]:
        postgresql = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        paths = [
            f"{self.folder}/bin",
            f"{self.folder}/usr/local/sbin",
            *map(str, postgresql),
            os.environ["PATH"],
        ]
        return {
            "PATH": ":".join(paths),
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "CURL_CA_BUNDLE": str(self.ca),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.ports["postgresql"]),
            "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
        }

    def _make_postgresql(self) -> None:
        data = self.folder / "var/lib/postgresql"
        data.mkdir()
        init_database(data)
        # The superuser needs no password here; all others have one.
        (data / "pg_hba.conf").write_text(
            "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        server = find_initdb().with_name("postgres")
        command = (
            f"{server} -D {data} -c port={self.ports['postgresql']} -c unix_socket_directories= -c fsync=off"
        )
        self._add_program("postgresql", command, user="postgres", stopsignal="INT")

    def _add_program(self, name: str, command: str, **options: str) -> None:
        if os.geteuid() != 0:
            options.pop("user", None)
        lines = [f"[program:{name}]", f"command={command}", "startsecs=0", "redirect_stderr=true"]
        lines += [f"stdout_logfile={self.folder}/var/log/{name}.log"]
        lines += [f"{key}={value}" for key, value in options.items()]
        (self.folder / f"supervisor.d/{name}.conf").write_text("\n".join([*lines, ""]))

    def _start_supervisord(self) -> subprocess.Popen[bytes]:
        folder = self.folder
        redis = find_program("redis-server", "redis-server")
        self._add_program("redis-server", f"{redis} {folder}/etc/redis/redis.conf", autostart="false")
        self._add_program("nginx", f'{folder}/bin/nginx -g "daemon off;"', autostart="false")
        # Debian's units take the options from /etc/default.
        self._add_program(
            "prometheus",
            self._with_default_arguments("prometheus")
            + f" --config.file={folder}/etc/prometheus/prometheus.yml"
            + f" --storage.tsdb.path={folder}/var/lib/prometheus'",
            autostart="false",
            environment=f'SSL_CERT_FILE="{self.ca}"',
        )
        self._add_program(
            "prometheus-alertmanager",
            self._with_default_arguments("prometheus-alertmanager")
            + f" --config.file={folder}/etc/prometheus/alertmanager.yml"
            + f" --storage.path={folder}/var/lib/alertmanager'",
            autostart="false",
        )
        control = f"{folder}/supervisor.sock"
        (folder / "supervisord.conf").write_text(
            f"[supervisord]\nnodaemon=true\nlogfile={folder}/var/log/supervisord.log\n"
            f"pidfile={folder}/supervisord.pid\n[unix_http_server]\nfile={control}\n"
            f"[rpcinterface:supervisor]\n"
            f"supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n"
            f"[supervisorctl]\nserverurl=unix://{control}\n[include]\nfiles={folder}/supervisor.d/*.conf\n"
        )
        listening = self._open_socket()
        process = subprocess.Popen(
            [
                # It stops all programs also if this process is killed.
                *("setpriv", "--pdeathsig", "TERM"),
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "supervisor.supervisord",
                "-c",
                f"{folder}/supervisord.conf",
            ],
            env=self._environment(),
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[listening],
        )
        os.close(listening)
        wait_for(Path(control).exists, 10, "supervisord runs")
        wait_for(lambda: "ready to accept" in self.log("postgresql"), 20, "PostgreSQL runs")
        return process

    def _with_default_arguments(self, name: str) -> str:
        """Return a command up to the options of /etc/default. The rest must end with a single quote."""
        return f"/bin/sh -c '. {self.folder}/etc/default/{name}; exec {name} $ARGS"

    def _open_socket(self) -> int:
        """Open the socket of the web server, as systemd does. It stays open while the web server restarts."""
        unit = read_unit(self.folder / "source/proxyhealth/contrib/deploy/systemd", "proxyhealth-web.socket")
        (path,) = unit["ListenStream"]
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            os.chmod(path, int(unit["SocketMode"][0], 8))
            listening.listen(2048)
            return os.dup2(listening.fileno(), SOCKET)

    def follow(self, section: str) -> str:
        """Run the commands of a section of the guide. Return what they print."""
        return self.shell.follow(section, skip=NOT_RUN)

    def add_proxy(self, name: str, url: str) -> None:
        self.manage(
            "shell",
            "--command",
            "from proxyhealth.models import WorkspaceProxy; "
            f'WorkspaceProxy.objects.create(name="{name}", url="{url}")',
        )

    def secret(self, name: str) -> str:
        """Return the value of a variable in the environment file."""
        lines = (self.folder / "etc/proxyhealth/environment").read_text().splitlines()
        return next(line for line in lines if line.startswith(f"{name}=")).partition("=")[2].strip("'")

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(
            self.base + path, verify=str(self.ca), timeout=60, allow_redirects=False, **options
        )

    def metrics(self) -> str:
        token = self.secret("PROXYHEALTH_METRICS_TOKEN")
        return self.get("/metrics", headers={"Authorization": f"Bearer {token}"}).text

    def ready(self) -> bool:
        """Return whether all parts work, also those that a load balancer does not need."""
        return self.get("/readyz?require=database,cache,snapshot").status_code == 200

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))

    def manage(self, *arguments: str) -> str:
        quoted = " ".join(f"'{argument}'" for argument in arguments)
        return self.shell.run(f"proxyhealth-manage {quoted}")

    def systemctl(self, action: str, *names: str) -> None:
        self.shell.run(f"systemctl {action} {' '.join(names)}")

    def main_pid(self, name: str) -> int:
        """Return the id of the main process of a service, or 0."""
        output = self.shell.run(
            f"{sys.executable} -m supervisor.supervisorctl -c supervisord.conf pid {name} 2>/dev/null"
        )
        return int(output)

    def log(self, name: str) -> str:
        log = self.folder / f"var/log/{name}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def wait_until_ready(self, seconds: float = 60) -> None:
        wait_for(self._answers_ready, seconds, "the site is ready")

    def _answers_ready(self) -> bool:
        try:
            return self.ready()
        except requests.RequestException:
            return False

    def close(self) -> None:
        self.shell.close()
        self._supervisord.terminate()  # it stops all programs first
        self._supervisord.wait(30)


def _copy_source(translate: Callable[[str], str], target: Path) -> None:
    """Copy this checkout, with other paths and ports in the configuration files."""
    target.mkdir()
    for name in _CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, target / name)
    for file in (target / "proxyhealth/contrib").rglob("*"):
        if file.is_file():
            file.write_text(translate(file.read_text()))
