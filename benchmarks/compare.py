"""Compare the speed of this checkout with that of another checkout, in one run.

    python -m benchmarks.compare OTHER [PROGRAM ...] [--turns N] [--bound 1.05]

OTHER is the directory of the other checkout. PROGRAM is a program of this package. Quote it to add options:
"round --targets 10000 --rounds 2"; both checkouts must know them. The default is every program, with short
options. The checkouts take turns. Each run is a process in its checkout, with the interpreter that runs this
module. Figures are paired by their position in the tables that the programs print.

The ratio of a figure is the median of the ratios within the turns: both runs of a turn meet the same state of
the machine, and a median ignores single disturbances. A figure is "worse" if its ratio is beyond the bound
and so many turns agree that chance explains it with less than 1 % (sign test; it takes at least 7 turns).

The exit code is 1 if a figure is worse or a program fails. A figure beyond the bound is "unclear" if chance
may explain it, and "rounding" if the medians differ by at most the last printed digit. Columns of ratios are
left out. Rows of other clients are controls: if one is worse, the machine was too busy. Repeat the run.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
UNIT = re.compile(r"\b(?:ms|s|µs|KB|MB)\b")  # the first column with a unit ends the key columns
RELATIVE = re.compile(r"= 1$|^times\b")
CHANCE = 0.01

# The default options and turns of each program.
PROGRAMS = {
    "probe": ("--probes 25 --repeat 5", 7),
    "read": ("--proxies 1000 --seconds 0.1", 7),
    "scrape": ("--rounds 2", 7),
    "saves": ("--saves 10", 7),
    "round": ("--targets 2000 --rounds 3", 7),
}


class Figure(NamedTuple):
    """One number of a table. ``digits`` is how many decimal places the program prints."""

    row: str
    name: str
    value: float
    digits: int


# By table, row, column and part: a cell such as "5.88, 5.12" or "91 (68)" has several parts.
Run = dict[tuple[int, int, int, int], Figure]


class Comparison(NamedTuple):
    """One figure over all turns. The ratio is this / other; ``worse`` counts the turns that got worse."""

    figure: Figure
    this: list[float]
    other: list[float]
    ratio: float
    worse: int
    mark: str

    def line(self) -> str:
        row, name, _, digits = self.figure
        sides = [
            f"{statistics.median(side):,.{digits}f} ({min(side):,.{digits}f}–{max(side):,.{digits}f})"
            for side in (self.this, self.other)
        ]
        cells = (row, name, *sides, f"{self.ratio:.3f}", f"{self.worse} of {len(self.this)}", self.mark)
        return f"| {' | '.join(cells)} |"


def parse_tables(text: str) -> Iterator[list[list[str]]]:
    """Yield each Markdown table as its rows of cells, the header first."""
    table: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.split("|")[1:-1]])
        elif table:
            yield [table[0], *table[2:]]
            table = []


def parse_cell(cell: str) -> list[tuple[float, int]]:
    """Return the numbers of a cell and their decimal places. Add up processes: "94 (74) + 101 (74)"."""
    processes = [NUMBER.findall(process) for process in cell.split(" + ")]
    return [
        (sum(float(number.replace(",", "")) for number in part), len(part[0].partition(".")[2]))
        for part in zip(*processes, strict=True)
    ]


def parse_output(text: str) -> Run:
    figures: Run = {}
    for table_index, (header, *rows) in enumerate(parse_tables(text)):
        first = next((index for index, name in enumerate(header) if UNIT.search(name)), len(header))
        for column in range(first, len(header)):
            if not UNIT.search(header[column]) and not RELATIVE.search(header[column]):
                header[column] = f"{header[column - 1].partition(': ')[0]}: {header[column]}"
        for row_index, row in enumerate(rows):
            for column in range(first, len(header)):
                parts = [] if RELATIVE.search(header[column]) else parse_cell(row[column])
                for part, (value, digits) in enumerate(parts):
                    name = header[column] + (f" #{part + 1}" if len(parts) > 1 else "")
                    position = (table_index, row_index, column, part)
                    figures[position] = Figure(", ".join(row[:first]), name, value, digits)
    return figures


def run_program(checkout: Path, words: list[str]) -> Run:
    """Run a program in a checkout. Raise ``SystemExit`` if it fails; a missed target is no failure."""
    command = [sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:]]
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    figures = parse_output(result.stdout)
    if result.returncode not in (0, 1) or "Traceback" in result.stderr or not figures:
        raise SystemExit(f"{shlex.join(command)} failed in {checkout}:\n{result.stdout}{result.stderr}")
    return figures


def compare(this: list[Figure], other: list[Figure], bound: float) -> Comparison:
    """Compare one figure; the lists have one element a turn."""
    mine, theirs = [[figure.value for figure in side] for side in (this, other)]
    # A size of 0 KB on both sides is equal.
    ratios = [1.0 if a == b else a / b if b else float("inf") for a, b in zip(mine, theirs, strict=True)]
    ratio = statistics.median(ratios)
    if "/s" in this[0].name:  # a rate: more is better
        beyond, worse = ratio < 1 / bound, sum(each < 1 for each in ratios)
    else:
        beyond, worse = ratio > bound, sum(each > 1 for each in ratios)
    difference = abs(statistics.median(mine) - statistics.median(theirs))
    mark = ""
    if beyond and difference < 1.01 * 10 ** -this[0].digits:
        mark = "rounding"
    elif beyond:
        turns = len(ratios)
        chance = sum(math.comb(turns, count) for count in range(worse, turns + 1)) / 2**turns
        mark = "worse" if chance < CHANCE else "unclear"
    return Comparison(this[0], mine, theirs, ratio, worse, mark)


def compare_program(other: Path, words: list[str], turns: int, bound: float) -> list[Comparison]:
    """Run a program in both checkouts, ``turns`` times each."""
    runs: dict[Path, list[Run]] = {HERE: [], other: []}
    for turn in range(turns):
        for checkout in (HERE, other) if turn % 2 == 0 else (other, HERE):
            begin = time.monotonic()
            runs[checkout].append(run_program(checkout, words))
            seconds = time.monotonic() - begin
            print(f"{words[0]}: turn {turn + 1} of {turns}, {checkout}, {seconds:.0f} s", file=sys.stderr)
    first, *rest = [*runs[HERE], *runs[other]]
    if any(run.keys() != first.keys() for run in rest):
        raise SystemExit(f"{words[0]}: the tables do not have the same rows and columns in every run")
    return [
        compare([run[position] for run in runs[HERE]], [run[position] for run in runs[other]], bound)
        for position in first
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", type=Path, help="directory of the other checkout")
    parser.add_argument(
        "programs", nargs="*", default=list(PROGRAMS), help="programs, with options if quoted"
    )
    parser.add_argument("--turns", type=int, help="runs of each side; the default depends on the program")
    parser.add_argument("--bound", type=float, default=1.05, help="ratio from which a figure is worse")
    options = parser.parse_args()
    other = options.other.resolve()
    programs = [shlex.split(program) for program in options.programs]
    if unknown := {words[0] for words in programs} - PROGRAMS.keys():
        parser.error(f"unknown program {min(unknown)!r}; valid programs: {', '.join(PROGRAMS)}")
    if other == HERE or not (other / "benchmarks").is_dir():
        parser.error(f"{other} is not another checkout")
    marks: list[str] = []
    for words in programs:
        default_options, default_turns = PROGRAMS[words[0]]
        command = words if words[1:] else [*words, *shlex.split(default_options)]
        comparisons = compare_program(other, command, options.turns or default_turns, options.bound)
        print(f"\n{shlex.join(command)}\n")
        print("| row | figure | this (min–max) | other (min–max) | this / other | worse in | mark |")
        print("|---|---|---|---|---|---|---|")
        print("\n".join(comparison.line() for comparison in comparisons), flush=True)
        marks += [comparison.mark for comparison in comparisons]
    counts = ", ".join(f"{marks.count(mark)} {mark}" for mark in ("worse", "unclear", "rounding"))
    print(f"\n{len(marks)} figures: {counts}")
    return 1 if "worse" in marks else 0


if __name__ == "__main__":
    raise SystemExit(main())
