"""Tables as HTML, for objects that notebooks show."""

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["table"]


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; integers have separators of thousands and lie to the right, all else is text.

    Examples
    --------
    >>> print(table("Bytes", ["layer", "bytes"], [["<fc>", 1234]]))
    <table><caption>Bytes</caption><tr><th scope="col">layer</th><th scope="col">bytes</th></tr>
    <tr><td>&lt;fc&gt;</td><td style="text-align: right">1,234</td></tr></table>
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(f"\n<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f'<td style="text-align: right">{value:,}</td>'
    return f"<td>{escape(str(value))}</td>"
