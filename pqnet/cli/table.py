"""Tables that fit the terminal; where there is none, lines as long as they need to be."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["Column", "print_json", "print_table"]

WIDE = 100_000  # characters of a line that no terminal shows


class Column(NamedTuple):
    """A column: its title, whether it holds numbers, and which come first to be left out where there is no room.

    Of texts only the start and the end are shown where that is not enough.
    """

    title: str
    number: bool = True
    rank: int = 0  # 0 stays; of others the largest is left out first


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of texts, with the titles above them."""
    from rich.console import Console  # running models does without it
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    shown = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if shown else WIDE, highlight=False, emoji=False)
    kept, widths = _fitting(columns, cells, console.width)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold" if shown else "")
    for i in kept:
        table.add_column(Text(columns[i].title), justify="right" if columns[i].number else "left", no_wrap=True)
    for row in cells:
        table.add_row(*(Text(_shortened(row[i], widths[i])) for i in kept))
    if shown:
        console.print(table, soft_wrap=False)
    else:
        with console.capture() as captured:
            console.print(table)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_json(data: Any) -> None:
    """Print plain data for programs."""
    print(json.dumps(data, indent=1))


def _fitting(columns: Sequence[Column], rows: list[list[str]], width: int) -> tuple[list[int], list[int]]:
    """Return which columns to show, and how many characters each has."""
    widths = [max([len(column.title), *(len(row[i]) for row in rows)]) for i, column in enumerate(columns)]
    kept = list(range(len(columns)))

    def missing() -> int:
        return sum(widths[i] + 1 for i in kept) - 1 - width

    texts = [i for i in kept if not columns[i].number]
    while missing() > 0:
        longest = max(texts, key=lambda i: widths[i], default=None)
        if longest is not None and widths[longest] > 24:
            widths[longest] = max(24, widths[longest] - missing())
            continue
        spare = [i for i in kept if columns[i].rank > 0]
        if spare:
            kept.remove(max(spare, key=lambda i: columns[i].rank))
            texts = [i for i in texts if i in kept]
        elif longest is not None and widths[longest] > 8:
            widths[longest] = max(8, widths[longest] - missing())
        else:
            break
    return kept, widths


def _shortened(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3  # ends of names tell layers apart
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"
