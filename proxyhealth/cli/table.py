"""Tables as lines of styled text, as wide as a terminal, or as wide as they need to be in a pipe.

Those of rich take 16 times as long, which is 15 s for 10,000 proxies.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

from proxyhealth.notifications.wording import isolated
from proxyhealth.texts import clean

GAP = "  "
MAX_CELL = 1_000  # characters

# Columns of a terminal below which no column shrinks.
_MIN_FLEXIBLE = 24
_MIN_COLUMN = 4


class Cell(NamedTuple):
    """A text of a table, and its style as rich names it."""

    text: str
    style: str = ""


Line = list[Cell]


class Column(NamedTuple):
    """A column. In a narrow terminal, those with the highest ``drop`` are left out first; 0 always stays.

    A ``flexible`` column takes what the others leave.
    """

    title: str
    drop: int = 0
    flexible: bool = False
    right: bool = False


def lay_out(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int | None) -> Iterator[Line]:
    """Yield the title and the rows as lines of at most ``width`` cells of a terminal. Omit empty columns.

    The texts are cleaned here: those of proxies and people must not reach the terminal as they are.
    """
    cleaned = [[cell._replace(text=clean(cell.text, MAX_CELL)) for cell in row] for row in rows]
    needed = [max((cell_len(row[place].text) for row in cleaned), default=0) for place in range(len(columns))]
    places = [place for place, cells in enumerate(needed) if cells or not rows]
    widths = {place: max(needed[place], cell_len(columns[place].title)) for place in places}
    if width is not None:
        _fit(columns, widths, width)
    yield _line([Cell(column.title, "bold") for column in columns], columns, widths)
    for row in cleaned:
        yield _line(row, columns, widths)


def _fit(columns: Sequence[Column], widths: dict[int, int], width: int) -> None:
    """Leave out columns and shrink the flexible ones, then the others, until all fit."""

    def excess(minimum: int | None = None) -> int:
        cells = (
            min(cells, minimum) if minimum and columns[place].flexible else cells
            for place, cells in widths.items()
        )
        return sum(cells) + len(GAP) * (len(widths) - 1) - width

    while excess(_MIN_FLEXIBLE) > 0 and any(columns[place].drop for place in widths):
        del widths[max(widths, key=lambda place: columns[place].drop)]
    for is_flexible in (True, False):
        for place in widths:
            if columns[place].flexible is is_flexible:
                widths[place] -= max(0, min(excess(), widths[place] - _MIN_COLUMN))


def _line(row: Sequence[Cell], columns: Sequence[Column], widths: dict[int, int]) -> Line:
    line: Line = []
    last = max(widths)
    for place, width in widths.items():
        text, style = row[place]
        space = width - cell_len(text)
        if space < 0:
            text, space = set_cell_size(text, width - 1).rstrip() + "…", 0
        padding = " " * space
        if line:
            line.append(Cell(GAP))
        if columns[place].right:
            line += [Cell(padding), Cell(isolated(text), style)]
        else:
            line += [Cell(isolated(text), style), Cell("" if place == last else padding)]
    return line
