"""The output of a command: text with colours for people, or one object of JSON for scripts."""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from django.core.management.base import OutputWrapper
from django.utils.translation import gettext as _
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from proxyhealth.cli.exits import failure
from proxyhealth.cli.table import Cell, Column, lay_out

_MIN_WIDTH = 20


class Output:
    """The output of a command. ``is_closed`` is True once nobody reads it any more, as after ``head``."""

    def __init__(self, stdout: OutputWrapper, stderr: OutputWrapper, options: Mapping[str, Any]) -> None:
        self.is_json = bool(options.get("json"))
        self.is_quiet = bool(options.get("quiet"))
        self.is_closed = _raw(stdout) is None  # by >&-
        self._stdout = stdout
        self._stderr = stderr
        self._options = options

    @property
    def is_terminal(self) -> bool:
        """True if lines can be drawn again."""
        return _is_terminal(self._stdout)

    @property
    def shows_progress(self) -> bool:
        return _is_terminal(self._stderr) and not self.is_quiet

    @property
    def width(self) -> int | None:
        """The columns of the terminal, or None for a pipe, which cuts no line."""
        if not self._stdout.isatty():
            return None
        return max(_MIN_WIDTH, shutil.get_terminal_size().columns)

    def line(self, *cells: str | Cell) -> None:
        """Write a line of these texts, which have to be clean."""
        parts = [Cell(cell) if isinstance(cell, str) else cell for cell in cells]
        self._write(self._render(parts) + "\n")

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
        # At once, because many lines are slow to write.
        lines = (self._render(line) for line in lay_out(columns, rows, self.width))
        self._write("".join(f"{line}\n" for line in lines))

    def json(self, data: Mapping[str, Any], *, indent: int | None = 2) -> None:
        self._write(self.encode(data, indent=indent))

    @staticmethod
    def encode(data: Mapping[str, Any], *, indent: int | None = 2) -> str:
        text = json.dumps(data, ensure_ascii=False, indent=indent)
        # One row with a lone surrogate must not make the whole list fail.
        return text.encode("utf-8", "replace").decode() + "\n"

    def warn(self, text: str) -> None:
        """Write a line to the standard error."""
        with suppress(BrokenPipeError):
            self._stderr.write(text)

    def console(self, *, of_errors: bool = False) -> Console:
        """Return a console of rich, for what is drawn again and again on a terminal."""
        stream = self._stderr if of_errors else self._stdout
        return Console(
            file=_raw(stream),  # rich ends its lines itself
            color_system="standard" if self._has_color(stream) else None,
            force_terminal=True,
            markup=False,
            emoji=False,
            highlight=False,
        )

    def _write(self, text: str) -> None:
        if self.is_closed:
            return
        try:
            self._stdout.write(text, ending="")
            self._stdout.flush()
        except BrokenPipeError:
            self._lose()
        except OSError as error:
            self._lose()
            raise failure(_("The output cannot be written: %(error)s") % {"error": error}) from error

    def _lose(self) -> None:
        """Write nothing more. Python must not fail with what is buffered when it exits."""
        self.is_closed = True
        if _raw(self._stdout) is sys.stdout:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _render(self, line: Sequence[Cell]) -> str:
        if not self._has_color(self._stdout):
            return "".join(cell.text for cell in line).rstrip()
        return "".join(_style(style).render(text, color_system=ColorSystem.STANDARD) for text, style in line)

    def _has_color(self, stream: OutputWrapper) -> bool:
        """Return True for a terminal, unless the options or the environment say otherwise."""
        if self._options.get("force_color"):
            return True
        environment = os.environ
        if self._options.get("no_color") or environment.get("DJANGO_COLORS") == "nocolor":
            return False
        return not environment.get("NO_COLOR") and _is_terminal(stream)


@lru_cache(maxsize=32)
def _style(text: str) -> Style:
    return Style.parse(text)


def _is_terminal(stream: OutputWrapper) -> bool:
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _raw(stream: OutputWrapper) -> Any:
    return stream._out
