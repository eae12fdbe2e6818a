"""systemd's part, played by supervisord: it runs the ExecStart lines of the units as they are.

``python -m tests.deployment.server.units FOLDER enable --now proxyhealth-web`` replaces ``systemctl``.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

# The file of the socket of the web server. supervisord closes only those below 1024.
SOCKET = 1500

Unit = dict[str, list[str]]


def read_unit(folder: Path, name: str) -> Unit:
    """Return the values of each key of a unit and its drop-ins. An empty value resets a key."""
    unit: Unit = defaultdict(list)
    for file in [folder / name, *sorted((folder / f"{name}.d").glob("*.conf"))]:
        for line in file.read_text().splitlines():
            key, separator, value = line.partition("=")
            if separator and not line.startswith("#"):
                unit[key] = [*unit[key], value] if value else []
    return unit


def _script(unit: Unit, *, socket: bool) -> str:
    """Return a shell script with the environment and the command of a unit."""
    exports = [f"export {pair}" for line in unit["Environment"] for pair in shlex.split(line)]
    limits = [f"ulimit -n {number}" for number in unit["LimitNOFILE"]]
    passing = f"export LISTEN_FDS=1 LISTEN_PID=$$; exec 3<&{SOCKET} {SOCKET}<&-" if socket else ""
    files = [f"set -a; . {path}; set +a" for path in unit["EnvironmentFile"]]
    (command,) = unit["ExecStart"]
    umask = [f"umask {mask}" for mask in unit["UMask"]]
    return "\n".join([*exports, *limits, *umask, *files, passing, f"exec {command}", ""])


class Systemctl:
    """The commands of ``systemctl`` that the guide uses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._units = folder / "etc/systemd/system"
        self._enabled = folder / "supervisor.d"

    def daemon_reload(self) -> None:
        for program in self._enabled.glob("proxyhealth-*.conf"):
            self._write(program.stem)

    def enable(self, *names: str) -> None:
        for name in names:
            assert (self._units / _with_suffix(name)).exists(), f"there is no unit {name}"
            if _with_suffix(name).endswith(".service"):
                self._write(name.removesuffix(".service"))
        self._supervisor("update")

    def _write(self, name: str) -> None:
        unit = read_unit(self._units, f"{name}.service")
        script = self._folder / f"run/{name}.sh"
        script.write_text(_script(unit, socket=(self._units / f"{name}.socket").exists()))
        options = {
            "command": f"/bin/bash {script}",
            "directory": unit["WorkingDirectory"][-1],
            "autorestart": {"always": "true"}[unit["Restart"][-1]],
            "stopwaitsecs": unit["TimeoutStopSec"][-1],
            "startsecs": "0",
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": f"{self._folder}/var/log/{name}.log",
            "stdout_logfile_maxbytes": "0",
        }
        lines = [f"[program:{name}]", *(f"{key}={value}" for key, value in options.items()), ""]
        (self._enabled / f"{name}.conf").write_text("\n".join(lines))

    def restart(self, *names: str) -> None:
        for name in names:
            if name.endswith(".target"):
                self._supervisor("restart", *(file.stem for file in self._enabled.glob("proxyhealth-*.conf")))
            else:
                self._supervisor("restart", name)

    def stop(self, *names: str) -> None:
        services = [file.stem for file in self._enabled.glob("proxyhealth-*.conf")]
        for name in names:
            self._supervisor("stop", *(services if name.endswith(".target") else [name]))

    def start(self, *names: str) -> None:
        services = [file.stem for file in self._enabled.glob("proxyhealth-*.conf")]
        for name in names:
            self._supervisor("start", *(services if name.endswith(".target") else [name]))

    def reload(self, *names: str) -> None:
        for name in names:
            self._supervisor("signal", "HUP", name)

    def _supervisor(self, *arguments: str) -> None:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "supervisor.supervisorctl",
                "-c",
                f"{self._folder}/supervisord.conf",
                *arguments,
            ],
            check=True,
            timeout=120,
        )


def _with_suffix(name: str) -> str:
    return name if name.rpartition(".")[2] in ("service", "socket", "target", "timer") else f"{name}.service"


if __name__ == "__main__":
    folder, action, *names = sys.argv[1:]
    getattr(Systemctl(Path(folder)), action.replace("-", "_"))(*(name for name in names if name != "--now"))
